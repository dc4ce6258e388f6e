"""Pose refinement: the exponential map, the motion of each view, its gradient through the rasterizer."""

import math

import pytest
import torch
from small_scenes import arguments

from gsopt.poses import PoseRefiner, se3_exp
from gsopt.render import rasterization

ANGLES = {  # length of the rotation vector; the series ends and the closed form begins at 1
    "zero": 0.0,
    "tiny": 1e-9,
    "small": 1e-3,
    "just below 1": 1 - 1e-12,
    "just above 1": 1 + 1e-12,
    "near a half turn": math.pi - 1e-6,
    "more than a turn": 7.0,
}


def twist(angle: float) -> torch.Tensor:
    axis = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    return torch.cat([angle * axis, torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64)])


def generator(twist: torch.Tensor) -> torch.Tensor:
    """The matrix whose exponential the motion is. [4, 4]"""
    x, y, z, *rho = twist.tolist()
    rows = [[0, -z, y, rho[0]], [z, 0, -x, rho[1]], [-y, x, 0, rho[2]], [0, 0, 0, 0]]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("angle", ANGLES.values(), ids=ANGLES)
def test_it_is_the_exponential_map(angle):
    motion = se3_exp(twist(angle))
    expected = torch.linalg.matrix_exp(generator(twist(angle)))
    torch.testing.assert_close(motion, expected, rtol=0, atol=1e-13)
    rotation = motion[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", ANGLES.values(), ids=ANGLES)
def test_it_is_as_exact_in_float32(angle):
    given = twist(angle).float()
    expected = torch.linalg.matrix_exp(generator(given.double()))
    torch.testing.assert_close(se3_exp(given).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, 0.9, 1.1, 3.0])
def test_its_gradient_is_right_also_at_zero(angle):
    given = torch.stack([twist(angle), -twist(angle)]).requires_grad_()
    assert torch.autograd.gradcheck(se3_exp, (given,))


def test_at_first_the_views_stay_where_they_are_to_the_bit():
    viewmats = arguments()["viewmats"] + 0.1
    refiner = PoseRefiner(5, scale=3.0)
    assert torch.equal(refiner(viewmats[0], 4), viewmats[0])
    assert torch.equal(refiner(viewmats, torch.tensor([4, 0])), viewmats)


def test_a_motion_is_in_the_axes_of_the_camera_and_in_units_of_scale():
    viewmat = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    refiner = PoseRefiner(2, scale=10.0)
    with torch.no_grad():
        refiner.delta[1] = torch.tensor([0.0, 0, 0, 0.1, 0, 0])
    moved = refiner(viewmat, 1)
    assert torch.equal(moved[:3, :3], viewmat[:3, :3])
    assert (moved - viewmat)[:3, 3].tolist() == pytest.approx(
        [1.0, 0.0, 0.0]
    )  # 0.1 x 10 to the camera's right
    assert torch.equal(refiner(viewmat, 0), viewmat)
    assert refiner.twists[1].tolist() == pytest.approx([0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0,), "num_views: expected 1 or more, found 0"),
        ((1, 0.0), "scale: expected a length"),
        ((1, float("inf")), "scale: expected a length"),
    ],
)
def test_arguments_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        PoseRefiner(*given)


# ------------------------------------------------------------------------------- through the rasterizer


def picture(refiner: PoseRefiner, scene: dict, view: int, backend: str) -> torch.Tensor:
    viewmat = refiner(scene["viewmats"][view], view)[None]
    values = scene | {"viewmats": viewmat, "Ks": scene["Ks"][view : view + 1]}
    return rasterization(**values, packed=False, backend=backend)[0]


def by_delta(backend: str, dtype: torch.dtype, start: torch.Tensor) -> torch.Tensor:
    """Gradient of a weighted sum of pixels by `delta`. [2, 6]"""
    scene = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    refiner = PoseRefiner(2, scale=1.5).to(dtype)
    with torch.no_grad():
        refiner.delta.copy_(start)
    image = picture(refiner, scene, 1, backend)
    weights = torch.linspace(-1, 1, image.numel(), dtype=dtype).view_as(image)
    (image * weights).sum().backward()
    return refiner.delta.grad.double()


STARTS = {
    "zero": torch.zeros(2, 6),
    "off": 0.05 * torch.randn(2, 6, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_gradient_of_the_kernel_is_that_of_the_reference(start):
    expected = by_delta("reference", torch.float64, STARTS[start])
    found = by_delta("cpu", torch.float32, STARTS[start])
    assert not expected[0].any()  # the other view
    assert expected[1].abs().min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("start", STARTS)
def test_the_gradient_is_that_of_finite_differences(start):
    scene = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    weights = torch.linspace(-1, 1, 16 * 20 * 3, dtype=torch.float64).view(1, 16, 20, 3)

    @torch.no_grad()
    def value(shift: torch.Tensor) -> float:
        refiner = PoseRefiner(2, scale=1.5).double()
        refiner.delta.copy_(STARTS[start])
        refiner.delta[1] += shift
        return (picture(refiner, scene, 1, "reference") * weights).sum().item()

    steps = 1e-5 * torch.eye(6, dtype=torch.float64)
    differences = [(value(step) - value(-step)) / 2e-5 for step in steps]
    expected = by_delta("reference", torch.float64, STARTS[start])[1]
    torch.testing.assert_close(torch.tensor(differences).double(), expected, rtol=1e-3, atol=1e-2)


def test_cameras_that_were_moved_find_back():
    """A fixed scene, four photos of it, and cameras some 2 degrees and 4% of their distance off."""
    generator = torch.Generator().manual_seed(0)
    scene = arguments(means=torch.rand(60, 3, generator=generator) * 1.6 - 0.8)
    for name, size in (("quats", (60, 4)), ("colors", (60, 9, 3))):
        scene[name] = torch.rand(*size, generator=generator) - 0.3
    scene |= {"scales": torch.full((60, 3), 0.12), "opacities": torch.full((60,), 0.9)}
    scene["width"], scene["height"] = 48, 40
    scene["Ks"] = torch.tensor([[44.0, 0, 24], [0, 44, 20], [0, 0, 1]]).repeat(4, 1, 1)
    turns = torch.tensor([[0.0, 0.4 * i, 0.1 * i, 0, 0, 0] for i in range(4)])
    away = torch.eye(4)
    away[2, 3] = 2.5
    true = away @ se3_exp(turns)  # [4, 4, 4]
    photos = [picture(PoseRefiner(4), scene | {"viewmats": true}, i, "cpu").detach() for i in range(4)]

    moved = 0.03 * torch.randn(4, 6, generator=generator)
    scene["viewmats"] = se3_exp(moved) @ true
    refiner = PoseRefiner(4)
    optimizer = torch.optim.Adam(refiner.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)

    def errors() -> torch.Tensor:
        with torch.no_grad():
            return (refiner(scene["viewmats"], torch.arange(4)) - true).flatten(1).norm(dim=1)

    before, losses = errors(), []
    for step in range(240):
        loss = (picture(refiner, scene, step % 4, "cpu") - photos[step % 4]).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.1 * sum(losses[:4])
    assert (errors() < 0.15 * before).all()
