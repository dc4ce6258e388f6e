"""Random small scenes for comparing rasterizer backends: of every kind that has its own code path or limit.

    scene = random_scene(seed)  # keyword arguments of gsopt.rasterization, float64
    expected = results(scene, "reference", torch.float64)  # from render_compare
    found = results(scene, "cpu", torch.float32)
    assert not disagreements(found, expected)

All numbers of a scene are representable in float32, so that both precisions start from the same scene, and no
scene is ambiguous (see render_compare).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from render_compare import Scene, ambiguity
from torch import Tensor

from gsopt.geometry import num_sh_bases, quat_to_rotmat


class Draw:
    """Random numbers of one seed, rounded to float32."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        numbers = torch.rand(*shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        return numbers.float().double()

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp().float().double()

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, *options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]


def random_scene(seed: int, kind: str | None = None) -> Scene:
    """An unambiguous scene; without `kind`, the kinds take turns as the seed grows."""
    kind = kind or list(KINDS)[seed % len(KINDS)]
    for attempt in range(200):
        scene = _draw_scene(Draw(seed * 1000 + attempt), kind)
        if ambiguity(scene) is None:
            return scene
    raise RuntimeError(f"kind {kind!r}, seed {seed}: 200 ambiguous scenes in a row, last: {ambiguity(scene)}")


def _draw_scene(draw: Draw, kind: str) -> Scene:
    n, cameras = draw.integer(1, 24), draw.choice(1, 1, 1, 2, 3)
    width, height = draw.integer(2, 40), draw.integer(2, 36)
    scene = {
        "means": draw.uniform(-1.2, 1.2, n, 3),  # the cameras stand 3 away from the origin
        "quats": draw.uniform(-1, 1, n, 4),
        "scales": draw.log_uniform(0.03, 0.3, n, 3),
        "opacities": draw.uniform(0.02, 0.95, n),
        "width": width,
        "height": height,
        "packed": draw.choice(True, False),
        "render_mode": draw.choice("RGB", "RGB", "RGB", "D", "ED", "RGB+D", "RGB+ED"),
        "rasterize_mode": draw.choice("classic", "classic", "antialiased"),
        "absgrad": draw.choice(True, False),
        "eps2d": draw.choice(0.3, 0.3, 0.1),
    }
    KINDS[kind](draw, scene)
    _draw_cameras(draw, scene, cameras)
    _draw_colors(draw, scene, cameras)
    return scene


def _draw_cameras(draw: Draw, scene: Scene, cameras: int) -> None:
    """Cameras turned at random around the origin, which lies 3 in front of them."""
    scene["viewmats"] = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    turned = quat_to_rotmat(draw.uniform(-1, 1, cameras, 4))
    scene["viewmats"][:, :3, :3] = turned.float().double()
    scene["viewmats"][:, :3, 3] = draw.uniform(-0.1, 0.1, cameras, 3)
    scene["viewmats"][:, 2, 3] += 3.0
    scene["viewmats"] = scene["viewmats"].float().double()
    # Some kinds place the Gaussians in the coordinates of the first camera.
    if scene.pop("in_camera", False):
        rotation, shift = scene["viewmats"][0, :3, :3], scene["viewmats"][0, :3, 3]
        scene["means"] = ((scene["means"] - shift) @ rotation).float().double()
    width, height = scene["width"], scene["height"]
    focal = draw.uniform(0.7, 1.5, cameras, 2) * max(width, height)
    Ks = torch.eye(3, dtype=torch.float64).repeat(cameras, 1, 1)
    Ks[:, 0, 0], Ks[:, 1, 1] = focal.unbind(-1)
    Ks[:, 0, 2] = width * draw.uniform(0.4, 0.6, cameras)
    Ks[:, 1, 2] = height * draw.uniform(0.4, 0.6, cameras)
    scene["Ks"] = Ks.float().double()


def _draw_colors(draw: Draw, scene: Scene, cameras: int) -> None:
    rows = (len(scene["means"]),) if draw.choice(True, True, False) else (cameras, len(scene["means"]))
    degree = draw.choice(None, 0, 1, 2, 3, 3)
    if degree is None:
        channels = draw.choice(1, 3, 3, 4, 7)
        scene["colors"] = draw.uniform(-0.2, 1.0, *rows, channels)
    else:
        channels = 3
        spare = draw.choice(0, 0, 1)  # bands beyond the degree are ignored
        scene["sh_degree"] = degree
        scene["colors"] = draw.uniform(-0.6, 0.6, *rows, num_sh_bases(degree + spare), 3)
        if draw.choice(True, False):
            scene["colors"] = (scene["colors"][..., :1, :].clone(), scene["colors"][..., 1:, :].clone())
    if draw.choice(True, False):
        scene["backgrounds"] = draw.uniform(0, 1, cameras, channels)


def _resize(draw: Draw, scene: Scene, n: int) -> None:
    """Another number of Gaussians."""
    scene["means"] = draw.uniform(-1.2, 1.2, n, 3)
    scene["quats"] = draw.uniform(-1, 1, n, 4)
    scene["scales"] = draw.log_uniform(0.03, 0.3, n, 3)
    scene["opacities"] = draw.uniform(0.02, 0.95, n)


def _behind(draw: Draw, scene: Scene) -> None:
    """All around the cameras, half of them behind."""
    _resize(draw, scene, draw.integer(10, 40))
    scene["means"] = draw.uniform(-5, 5, *scene["means"].shape)


def _near(draw: Draw, scene: Scene) -> None:
    """Around the near plane, in front of the first camera; seen so close, small things are large."""
    near = scene["near_plane"] = draw.choice(0.1, 0.3, 1.0)
    n = len(scene["means"])
    depths = draw.uniform(0.7 * near, 1.6 * near, n, 1)
    scene["means"] = torch.cat([draw.uniform(-0.6, 0.6, n, 2) * depths, depths], dim=-1)
    scene["in_camera"] = True
    scene["scales"] = draw.log_uniform(0.03 * near, 0.3 * near, n, 3)


def _huge(draw: Draw, scene: Scene) -> None:
    scene["scales"] = draw.log_uniform(1, 8, *scene["scales"].shape)
    scene["opacities"] = draw.uniform(0.02, 0.4, len(scene["means"]))


def _tiny(draw: Draw, scene: Scene) -> None:
    scene["scales"] = draw.log_uniform(1e-5, 1e-2, *scene["scales"].shape)


def _opaque(draw: Draw, scene: Scene) -> None:
    """Alphas around the largest, 0.999, and pixels that end after a few splats."""
    _resize(draw, scene, draw.integer(15, 40))
    scene["scales"] = draw.log_uniform(0.1, 0.6, *scene["scales"].shape)
    scene["opacities"] = draw.uniform(0.99, 1.0, len(scene["means"]))
    scene["opacities"][::3] = 1.0
    scene["opacities"][1::3] = draw.uniform(0.5, 0.95, len(scene["opacities"][1::3]))


def _transparent(draw: Draw, scene: Scene) -> None:
    scene["opacities"] = draw.log_uniform(0.001, 0.03, len(scene["means"]))


def _off_screen(draw: Draw, scene: Scene) -> None:
    """Beside the first camera's image, some reaching into it; far out the projection is clamped."""
    n = len(scene["means"])
    depths = draw.uniform(1, 4, n, 1)
    scene["means"] = torch.cat([draw.uniform(-1.5, 1.5, n, 2) * depths, depths], dim=-1)
    scene["in_camera"] = True
    scene["scales"] = draw.log_uniform(0.1, 1.0, n, 3)


def _empty(draw: Draw, scene: Scene) -> None:
    _resize(draw, scene, 0)


def _single(draw: Draw, scene: Scene) -> None:
    _resize(draw, scene, 1)


def _thin_image(draw: Draw, scene: Scene) -> None:
    width, height = draw.choice((1, 30), (30, 1), (1, 1), (17, 1), (1, 16))
    scene["width"], scene["height"] = width, height


def _crowded(draw: Draw, scene: Scene) -> None:
    """So many that pixels end before the last."""
    _resize(draw, scene, draw.integer(60, 90))
    scene["width"], scene["height"] = draw.integer(8, 20), draw.integer(8, 20)
    scene["scales"] = draw.log_uniform(0.15, 0.6, *scene["scales"].shape)
    scene["opacities"] = draw.uniform(0.3, 0.95, len(scene["means"]))


def _twins(draw: Draw, scene: Scene) -> None:
    """Pairs of the same place and size, as densification makes: the lower index is in front."""
    n = len(scene["means"])
    for name in ("means", "quats", "scales"):
        scene[name] = scene[name].repeat(2, 1)
    scene["opacities"] = draw.uniform(0.02, 0.95, 2 * n)


def _clipped(draw: Draw, scene: Scene) -> None:
    _resize(draw, scene, draw.integer(10, 40))
    scene["radius_clip"] = draw.choice(2.0, 3.0, 5.0)
    scene["far_plane"] = draw.choice(3.0, 3.5, 4.0)
    scene["scales"] = draw.log_uniform(0.01, 0.2, *scene["scales"].shape)


KINDS: dict[str, Callable[[Draw, Scene], None]] = {
    "ordinary": lambda draw, scene: None,
    "behind": _behind,
    "near": _near,
    "huge": _huge,
    "tiny": _tiny,
    "opaque": _opaque,
    "transparent": _transparent,
    "off screen": _off_screen,
    "empty": _empty,
    "single": _single,
    "thin image": _thin_image,
    "crowded": _crowded,
    "twins": _twins,
    "clipped": _clipped,
}
