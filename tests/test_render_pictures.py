"""Pictures of the reference rasterizer: painted by hand, blended on paper, and made in several ways."""

import math

import pytest
import torch
from random_scenes import random_scene
from render_compare import disagreements, results
from small_scenes import TENSORS, on_axis, one_thread, project, render, scene, trained  # noqa: F401
from torch import Tensor

from gsopt.geometry import quat_scale_to_covar
from gsopt.render import reference
from gsopt.render.call import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_STOP, RenderCall


def paint(values: dict) -> tuple[Tensor, Tensor]:
    """Colour and alpha of one camera's image, pixel by pixel and splat by splat."""
    splats, background = project(values), values["backgrounds"][0]
    order = splats.depths.argsort(stable=True).tolist()
    colors = reference.colors_from_sh(RenderCall(**values), splats.camera_ids, splats.gaussian_ids)
    image = torch.zeros(values["height"], values["width"], 4, dtype=torch.float64)
    for row, column in torch.cartesian_prod(*map(torch.arange, image.shape[:2])).tolist():
        left, color = 1.0, torch.zeros(3, dtype=torch.float64)
        for i in order:
            x, y = splats.means2d[i].tolist()
            a, b, c = splats.conics[i].tolist()
            dx, dy = x - (column + 0.5), y - (row + 0.5)
            exponent = (a * dx * dx + 2 * b * dx * dy + c * dy * dy) / 2
            opacity = float(values["opacities"][splats.gaussian_ids[i]])
            alpha = min(ALPHA_MAX, opacity * math.exp(-exponent))
            if alpha < ALPHA_MIN:
                continue
            if left * (1 - alpha) <= TRANSMITTANCE_STOP:
                break
            color += left * alpha * colors[i]
            left *= 1 - alpha
        image[row, column, :3], image[row, column, 3] = color + left * background, 1 - left
    return image[..., :3], image[..., 3:]


@pytest.mark.parametrize("opacity", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("tile_size", [3, 16])
def test_picture_is_the_one_painted_by_hand(opacity, tile_size):
    values = scene(n=25, size=11, tile_size=tile_size, scales=scene(n=25)["scales"] / 2)
    values["opacities"] = values["opacities"] * opacity / 0.9
    values["height"] = 7
    image, alpha, _ = render(values)
    expected_image, expected_alpha = paint(values)
    torch.testing.assert_close(image[0], expected_image)
    torch.testing.assert_close(alpha[0], expected_alpha)


BLEND = {
    "nothing": ([], 0, 0),
    "one": ([(2, 0.5, 1)], 0.5, 0.5),
    "nearer first, whatever the order": (
        [(3, 0.5, 0.2), (2, 0.25, 1)],
        0.25 + 0.75 * 0.5 * 0.2,
        1 - 0.75 * 0.5,
    ),
    "equal depths: lower index first": ([(2, 0.5, 1), (2, 0.5, 0)], 0.5, 0.75),
    "largest alpha": ([(2, 1, 1)], 0.999, 0.999),
    "below the smallest alpha": ([(2, 0.0039, 1)], 0, 0),
    "above the smallest alpha": ([(2, 0.004, 1)], 0.004, 0.004),
    "ends before what would leave too little": ([(2, 0.99, 1), (3, 0.9901, 1), (4, 0.5, 1)], 0.99, 0.99),
    "goes on while enough is left": ([(2, 0.99, 1), (3, 0.98, 1)], 0.99 + 0.01 * 0.98, 1 - 0.01 * 0.02),
    "at the near plane": ([(0.5, 0.5, 1)], 0.5, 0.5),
    "before the near plane": ([(0.4999, 0.5, 1)], 0, 0),
    "at the camera": ([(0, 0.5, 1)], 0, 0),
    "behind the camera": ([(-1, 0.5, 1)], 0, 0),
    "at the far plane": ([(8, 0.5, 1)], 0.5, 0.5),
    "behind the far plane": ([(8.0001, 0.5, 1)], 0, 0),
    "not a number": ([(math.nan, 0.5, 1), (2, 0.5, 1)], 0.5, 0.5),
    "opacity not a number": ([(1, math.nan, 1), (2, 0.5, 1)], 0.5, 0.5),
    "infinitely far": ([(math.inf, 0.5, 1), (2, 0.5, 1)], 0.5, 0.5),
}


@pytest.mark.parametrize("case", BLEND)
def test_blending(case):
    splats, color, alpha = BLEND[case]
    values = trained(on_axis(*splats, near_plane=0.5, far_plane=8.0))
    image, alphas, info = render(values)
    assert image.item() == pytest.approx(color, abs=1e-12)
    assert alphas.item() == pytest.approx(alpha, abs=1e-12)
    info["means2d"].retain_grad()
    image.sum().backward()
    for name in TENSORS[:-1]:
        assert values[name].grad.isfinite().all(), name


@pytest.mark.parametrize(("opacity", "gradient"), [(0.5, 1), (0.998, 1), (0.9991, 0), (1, 0)])
def test_clamped_alpha_has_no_gradient(opacity, gradient):
    values = trained(on_axis((2, opacity, 1)), "opacities", "colors")
    render(values)[0].sum().backward()
    assert values["opacities"].grad.item() == gradient
    assert values["colors"].grad.item() == min(opacity, ALPHA_MAX)  # the colour keeps its own


# ---- one picture in several ways


def test_render_modes_are_channels_of_each_other():
    modes = {mode: render(scene(render_mode=mode))[:2] for mode in ("RGB", "D", "ED", "RGB+D", "RGB+ED")}
    alpha = modes["RGB"][1]
    assert all(torch.equal(alphas, alpha) for _, alphas in modes.values())
    torch.testing.assert_close(modes["RGB+D"][0], torch.cat([modes["RGB"][0], modes["D"][0]], dim=-1))
    torch.testing.assert_close(modes["RGB+ED"][0], torch.cat([modes["RGB"][0], modes["ED"][0]], dim=-1))
    torch.testing.assert_close(modes["ED"][0] * alpha, modes["D"][0])


def test_depth_is_a_colour():
    values = scene(backgrounds=None)
    depths = project(values).depths
    expected = render(values | {"colors": depths[:, None], "sh_degree": None})[0]
    torch.testing.assert_close(render(values | {"render_mode": "D"})[0], expected)


def test_expected_depth_of_nothing_is_zero():
    assert render(scene(n=0, render_mode="ED"))[0].abs().sum() == 0


def test_background_shows_through():
    values = scene(cameras=2)
    image, alpha, _ = render(values)
    without = render(values | {"backgrounds": None})[0]
    torch.testing.assert_close(image, without + (1 - alpha) * values["backgrounds"][:, None, None])


BASE = scene(9, cameras=2)
SAME = {
    "other tiles": {"tile_size": 3},
    "packed": {"packed": True},
    "chunks of channels": {"channel_chunk": 1},
    "segmented sort": {"segmented": True},
    "absgrad": {"absgrad": True},
    "unused bands": {"colors": torch.cat([BASE["colors"], torch.ones(9, 5, 3).double()], dim=1)},
    "colours of both cameras": {"colors": BASE["colors"].repeat(2, 1, 1, 1)},
    "quaternions of other lengths": {"quats": BASE["quats"] * 7},
    "covariances": {
        "quats": None,
        "scales": None,
        "covars": quat_scale_to_covar(BASE["quats"], BASE["scales"]).triu(),
    },
}


@pytest.mark.parametrize("case", SAME)
def test_same_picture(case):
    image, alpha, _ = render(BASE)
    same_image, same_alpha, _ = render(BASE | SAME[case])
    torch.testing.assert_close(same_image, image)
    torch.testing.assert_close(same_alpha, alpha)


def test_cameras_do_not_see_each_other():
    values = scene(9, cameras=3)
    both = render(values)[0]
    for i in range(3):
        one = {name: values[name][i : i + 1] for name in ("viewmats", "Ks", "backgrounds")}
        torch.testing.assert_close(render(values | one)[0], both[i : i + 1])


def test_antialiasing_scales_opacity_by_the_areas_of_the_splats():
    values = scene(n=1, size=16, scales=torch.full((1, 3), 1e-2, dtype=torch.float64), backgrounds=None)
    values["means"] = torch.zeros(1, 3, dtype=torch.float64)
    values["opacities"] = torch.ones(1, dtype=torch.float64) * 0.9
    info = render(values | {"rasterize_mode": "antialiased", "eps2d": 0.05})[2]
    sharp, blurred = (project(values | {"eps2d": eps2d}).conics[0] for eps2d in (0.0, 0.05))
    areas = [(a * c - b * b).rsqrt() for a, b, c in (sharp, blurred)]
    torch.testing.assert_close(info["opacities"][0, 0], 0.9 * (areas[0] / areas[1]))


@pytest.mark.parametrize("seed", range(14))
def test_packed_changes_nothing(seed):
    values = random_scene(seed)
    packed = results(values | {"packed": True}, "reference", torch.float64)
    unpacked = results(values | {"packed": False}, "reference", torch.float64)
    assert not disagreements(packed, unpacked, tolerance=1e-12)
