"""The reference rasterizer: its derivatives, its parts against gsplat's own functions, odd Gaussians."""

import math

import pytest
import torch
from small_scenes import TENSORS, one_thread, project, render, scene, trained  # noqa: F401
from torch import Tensor

from gsopt.geometry import quat_scale_to_covar
from gsopt.render import reference
from gsopt.render.call import RenderCall
from gsopt.render.info import tile_intersections


@pytest.fixture
def gsplat():
    return pytest.importorskip("gsplat.cuda._torch_impl")


# ---- derivatives

MODES = {
    "colour": {},
    "depth": {"render_mode": "D"},
    "expected depth, antialiased": {"render_mode": "RGB+ED", "rasterize_mode": "antialiased", "eps2d": 0.1},
    "two cameras, packed": {"packed": True, "n": 3, "cameras": 2, "render_mode": "RGB+D"},
}


def check_gradient(values: dict, name: str) -> None:
    """Compare the gradient by one tensor with finite differences, for two random weightings of the images."""
    generator = torch.Generator().manual_seed(0)
    image = render(values)[0]
    channels = image.shape[3] + 1
    weights = torch.rand(2, *image.shape[:3], channels, generator=generator, dtype=torch.float64)

    def weighted(tensor: Tensor) -> Tensor:
        image, alpha, _ = render(values | {name: tensor})
        return (weights * torch.cat([image, alpha], dim=-1)).flatten(1).sum(1)

    assert torch.autograd.gradcheck(weighted, values[name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TENSORS)
def test_gradients_are_derivatives(mode, name):
    values = trained(scene(**MODES[mode]), name)
    assert len(project(values).depths) == len(values["means"]) * len(values["viewmats"])
    check_gradient(values, name)


@pytest.mark.parametrize("part", [0, 1])
def test_gradients_of_harmonics_in_two_parts(part):
    values = trained(scene(), "colors")
    parts = [values["colors"].detach()[:, :1].clone(), values["colors"].detach()[:, 1:].clone()]
    parts[part].requires_grad_()
    image = render(values)[0]
    image_of_parts = render(values | {"colors": tuple(parts)})[0]
    assert torch.equal(image_of_parts, image)
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (image * weights).sum().backward()
    (image_of_parts * weights).sum().backward()
    assert torch.equal(parts[part].grad, values["colors"].grad.split([1, 3], dim=1)[part])


def test_gradients_of_covariances():
    values = scene(quats=None, scales=None)
    values["covars"] = quat_scale_to_covar(scene()["quats"], scene()["scales"]).requires_grad_()
    check_gradient(values, "covars")


def test_gradients_where_the_projection_is_clamped():
    # Beyond 1.3 half images from the axis, and large enough to be seen from there.
    means = torch.tensor([[2.6, 0.1, 0.0], [-0.2, -2.9, 0.3], [2.8, 3.0, 0.1]], dtype=torch.float64)
    values = trained(scene(n=3, means=means, scales=scene(n=3)["scales"] * 3), "means")
    assert len(project(values).depths) == 3
    check_gradient(values, "means")


def test_absgrad_adds_up_the_gradients_of_pixels():
    values = trained(scene(absgrad=True, size=5), "means")
    image, _, info = render(values)
    expected = torch.zeros_like(info["means2d"])
    for pixel in image.sum(-1).flatten():
        expected += torch.autograd.grad(pixel, info["means2d"], retain_graph=True)[0].abs()
    image.sum().backward()
    torch.testing.assert_close(info["means2d"].absgrad, expected)
    assert not info["means2d"].absgrad.requires_grad


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("n", [0, 3])
def test_means2d_has_a_gradient_when_all_is_frozen(packed, n):
    values = scene(n=n, packed=packed, absgrad=True)
    image, _, info = render(values)
    info["means2d"].retain_grad()
    image.sum().backward()
    assert info["means2d"].grad.shape == info["means2d"].shape == info["means2d"].absgrad.shape
    expected = trained(values, "means")
    image, _, info_trained = render(expected)
    info_trained["means2d"].retain_grad()
    image.sum().backward()
    assert torch.equal(info["means2d"].grad, info_trained["means2d"].grad)
    with torch.no_grad():
        assert not render(values)[2]["means2d"].requires_grad


# ---- the parts, against gsplat's functions of plain PyTorch


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_gsplats(gsplat, seed):
    # gsplat's function knows nothing of opacities: above exp(3.33² / 2) / 255 they leave the rectangle alone.
    values = scene(n=60, cameras=2, size=40, seed=seed, rasterize_mode="antialiased", eps2d=0.3)
    values["means"] = values["means"] * 4
    values["opacities"] = torch.full((60,), 1e6, dtype=torch.float64)
    covars = quat_scale_to_covar(values["quats"], values["scales"])
    radii, means2d, depths, conics, compensations = gsplat._fully_fused_projection(
        values["means"], covars, values["viewmats"], values["Ks"], 40, 40, calc_compensations=True
    )
    visible = (radii > 0).all(-1)
    splats = project(values)
    assert torch.equal(torch.stack([splats.camera_ids, splats.gaussian_ids], dim=-1), visible.nonzero())
    assert 20 < len(splats.depths) < 120
    assert torch.equal(splats.radii, radii[visible])
    torch.testing.assert_close(splats.means2d, means2d[visible])
    torch.testing.assert_close(splats.depths, depths[visible])
    torch.testing.assert_close(splats.conics, conics[visible])
    torch.testing.assert_close(splats.compensations, compensations[visible])


@pytest.mark.parametrize("degree", range(5))
def test_colors_are_gsplats(gsplat, degree):
    values = scene(n=20, cameras=2, sh_degree=degree)
    values["colors"] = torch.randn(20, 25, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    splats = project(values)
    colors = reference.colors_from_sh(RenderCall(**values), splats.camera_ids, splats.gaussian_ids)
    centers = torch.linalg.inv(values["viewmats"])[splats.camera_ids, :3, 3]
    rows = splats.gaussian_ids
    expected = gsplat._spherical_harmonics(degree, values["means"][rows] - centers, values["colors"][rows])
    torch.testing.assert_close(colors, (expected + 0.5).clamp_min(0))
    assert (colors == 0).any()
    assert (colors > 0).any()


@pytest.mark.parametrize("tile_size", [5, 16])
@pytest.mark.parametrize("cameras", [1, 3])
def test_intersections_are_gsplats(gsplat, cameras, tile_size):
    values = scene(n=30, cameras=cameras, size=50, tile_size=tile_size)
    values["means"] = values["means"] * 4  # some off screen
    info = render(values)[2]
    tiles = math.ceil(50 / tile_size)
    counts, isect_ids, flatten_ids = gsplat._isect_tiles(
        info["means2d"], info["radii"], info["depths"], tile_size, tiles, tiles
    )
    assert counts.sum() > 0
    assert torch.equal(info["tiles_per_gauss"], counts)
    assert torch.equal(info["isect_ids"], isect_ids)
    assert torch.equal(info["flatten_ids"], flatten_ids)
    assert torch.equal(info["isect_offsets"], gsplat._isect_offset_encode(isect_ids, cameras, tiles, tiles))


def test_intersections_of_equal_depths_are_in_the_order_of_indices():
    means2d = torch.full((1, 100, 2), 8.0)
    _, _, flatten_ids, _ = tile_intersections(
        means2d, torch.full((1, 100, 2), 3, dtype=torch.int32), torch.ones(1, 100), 16, 1, 1, n_images=1
    )
    assert flatten_ids.tolist() == list(range(100))


def test_too_many_tiles_are_refused():
    with pytest.raises(ValueError, match="tile_size: 4096 images of 2048 x 2048 tiles are too many"):
        tile_intersections(
            torch.zeros(4096, 0, 2),
            torch.zeros(4096, 0, 2).int(),
            torch.zeros(4096, 0),
            1,
            2048,
            2048,
            n_images=4096,
        )


# ---- odd Gaussians

ODD = {
    "scale zero": {"scales": 0.0},
    "scale tiny": {"scales": 1e-20},
    "scale huge": {"scales": 1e6},
    "scale infinite": {"scales": math.inf},
    "scale not a number": {"scales": math.nan},
    "quaternion zero": {"quats": 0.0},
    "quaternion long": {"quats": 1e8},
    "mean not a number": {"means": math.nan},
    "mean far away": {"means": 1e12},
    "mean at the camera": {"means": "camera"},
    "colour huge": {"colors": 1e6},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", ODD)
def test_one_odd_gaussian_spoils_no_gradient(case, packed, dtype):
    values = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in scene(packed=packed).items()}
    [(name, value)] = ODD[case].items()
    values[name] = values[name].clone()
    values[name][0] = torch.linalg.inv(values["viewmats"][0])[:3, 3] if value == "camera" else value
    values = trained(values)
    image, alpha, _ = render(values)
    (image.sum() + alpha.sum()).backward()
    assert image.isfinite().all()
    for tensor in TENSORS:
        assert values[tensor].grad.isfinite().all(), tensor


@pytest.mark.parametrize(
    ("case", "seen"),
    [
        ("scale zero", True),
        ("scale huge", True),
        ("quaternion long", True),
        ("quaternion zero", False),
        ("scale infinite", False),
        ("scale not a number", False),
        ("mean not a number", False),
        ("mean far away", False),
    ],
)
def test_which_odd_gaussians_are_seen(case, seen):
    values = scene()
    [(name, value)] = ODD[case].items()
    values[name][0] = value
    assert project(values).gaussian_ids.tolist() == [0, 1, 2, 3][not seen :]


def test_radii_clip():
    values = scene(n=30, size=32)
    radii = project(values).radii.amax(-1)
    limit = float(radii.median())
    clipped = project(values | {"radius_clip": limit})
    assert torch.equal(clipped.gaussian_ids, (radii > limit).nonzero()[:, 0])
    assert 0 < len(clipped.depths) < 30


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20), (20, 1), (17, 16)])
@pytest.mark.parametrize("n", [0, 3])
def test_sizes(width, height, n):
    values = trained(scene(n=n, cameras=2, width=width, height=height, tile_size=16))
    image, alpha, _ = render(values)
    assert image.shape == (2, height, width, 3)
    assert alpha.shape == (2, height, width, 1)
    image.sum().backward()
    assert values["means"].grad.shape == (n, 3)
