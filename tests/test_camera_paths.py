"""Orbits and interpolations: where their cameras are, and where they look."""

import math

import numpy as np
import pytest
import torch
from scenes import orbit as ring

from gsopt.camera_paths import (
    circle_of,
    in_order,
    interpolate,
    key_times,
    look_at_point,
    looking_at,
    orbit,
)
from gsopt.cameras import Camera, scene_up
from gsopt.errors import InputError

NO_POINTS = torch.zeros(0, 3)


def camera(center, target, up=(0.0, 0.0, 1.0), name="a.png", focal=50.0) -> Camera:
    vectors = (torch.tensor(v, dtype=torch.float64) for v in (center, target, up))
    K = torch.tensor([[focal, 0.0, 20.0], [0.0, focal, 15.0], [0.0, 0.0, 1.0]])
    return Camera(name, 40, 30, K, looking_at(*vectors).float())


def turned(cameras: list[Camera], seed: int) -> tuple[list[Camera], torch.Tensor, torch.Tensor]:
    """The cameras in a world that is turned at random and moved; with its rotation and shift."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    moved = []
    for each in cameras:
        viewmat = each.viewmat.double().clone()
        viewmat[:3, :3] = viewmat[:3, :3] @ rotation.T
        viewmat[:3, 3] -= viewmat[:3, :3] @ shift
        moved.append(Camera(each.name, each.width, each.height, each.K, viewmat.float()))
    return moved, rotation, shift


def pixel(camera: Camera, point: torch.Tensor) -> list[float]:
    x, y, z = (camera.K.double() @ (camera.viewmat.double() @ torch.cat([point, torch.ones(1)]))[:3]).tolist()
    assert z > 0
    return [x / z, y / z]


@pytest.mark.parametrize("seed", range(3))
def test_up_and_target_of_a_ring_in_any_world(seed):
    cameras, rotation, shift = turned(ring(12), seed)
    torch.testing.assert_close(scene_up(cameras).double(), rotation[:, 2], atol=0.1, rtol=0)
    torch.testing.assert_close(look_at_point(cameras, NO_POINTS), shift, atol=1e-5, rtol=0)


def test_up_of_cameras_whose_rolls_cancel_is_against_their_view():
    down = [camera((0, 0, 5), (0, 0, 0), up) for up in ((1.0, 0, 0), (-1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0))]
    torch.testing.assert_close(scene_up(down).double(), torch.tensor([0, 0, 1.0]).double())
    with pytest.raises(ValueError, match="no cameras"):
        scene_up([])


@pytest.mark.parametrize("seed", range(3))
def test_an_orbit_is_a_closed_even_circle_that_looks_at_the_middle_upright(seed):
    cameras, _, _ = turned(ring(12), seed)
    path = orbit(cameras, NO_POINTS, 24)
    circle, up = circle_of(cameras, NO_POINTS), scene_up(cameras).double()
    centers = torch.stack([each.center.double() for each in path])
    steps = (centers - centers.roll(1, dims=0)).norm(dim=1)  # the first follows the last
    torch.testing.assert_close(steps, steps[:1].expand(24), atol=1e-4, rtol=0)
    heights = (centers - circle.target) @ up
    torch.testing.assert_close(heights, torch.full_like(heights, circle.height), atol=1e-4, rtol=0)
    distances = (torch.stack([each.center.double() for each in cameras]) - circle.target).norm(dim=1)
    assert math.hypot(circle.radius, circle.height) == pytest.approx(distances.median().item(), abs=1e-4)
    for each in path:
        assert pixel(each, circle.target) == pytest.approx([each.width / 2, each.height / 2], abs=1e-3)
        x, y = pixel(each, circle.target + 0.1 * up)
        assert x == pytest.approx(each.width / 2, abs=1e-3)
        assert y < each.height / 2  # up in the scene is up in the picture
    across = torch.linalg.cross(centers[0] - circle.target, centers[1] - circle.target)
    assert across @ up > 0  # counterclockwise, seen from above
    assert [each.name for each in path[:2]] == ["0000.png", "0001.png"]


def test_an_orbit_begins_beside_the_first_camera():
    cameras = ring(12)
    first = orbit(cameras, NO_POINTS, 5)[0].center
    flat = torch.stack([first[:2], cameras[0].center[:2]])
    flat = flat / flat.norm(dim=1, keepdim=True)
    assert (flat[0] @ flat[1]).item() > 0.99


def test_an_orbit_has_the_lens_of_the_camera_in_the_middle_distance():
    near = [camera((2 * math.cos(a), 2 * math.sin(a), 0), (0, 0, 0), focal=20.0) for a in (0, 2)]
    far = [camera((9 * math.cos(a), 9 * math.sin(a), 0), (0, 0, 0), focal=90.0) for a in (1, 3, 5)]
    path = orbit([*near, *far], NO_POINTS, 4)
    assert path[0].K[0, 0] == 90
    assert path[0].center.norm().item() == pytest.approx(9, abs=1e-4)


def test_cameras_that_all_look_the_same_way_are_circled_before_them():
    rows = [camera((x, y, 10), (x, y, 0), up=(0, 1.0, 0)) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    points = torch.tensor([[0.0, 0.0, 4.0], [1.0, 0.0, 4.0], [0.0, 0.0, 30.0]])
    circle = circle_of(rows, points)  # parallel: the points say how far
    torch.testing.assert_close(circle.target, torch.tensor([0, 0, 4.0]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(circle.axis, torch.tensor([0, 0, 1.0]).double(), atol=1e-5, rtol=0)
    assert circle.radius == pytest.approx(1.0, abs=1e-5)
    path = orbit(rows, points, 8)
    assert all(each.center[2].item() == pytest.approx(10, abs=1e-4) for each in path)
    assert all(-each.viewmat[1, 1] > 0.9 for each in path)  # upright all the way


def test_a_first_camera_on_the_axis_does_no_harm():
    cameras = [camera((0, 0, 4), (0, 0, 0), up=(0, 1.0, 0)), *ring(9)]
    cameras[0] = camera((scene_up(cameras) * 4).tolist(), (0, 0, 0), up=(0, 1.0, 0))
    assert all(each.viewmat.isfinite().all() for each in orbit(cameras, NO_POINTS, 7))


@pytest.mark.parametrize(
    ("cameras", "points"),
    [
        # standing in the middle, looking outward
        (
            [camera((math.cos(a), math.sin(a), 0), (9 * math.cos(a), 9 * math.sin(a), 0)) for a in range(6)],
            [],
        ),
        ([camera((x, 0, 0), (x, 9, 0)) for x in range(4)], [[0.0, -5.0, 0.0]]),  # parallel, points behind
    ],
)
def test_cameras_that_do_not_look_at_one_place_have_no_orbit(cameras, points):
    with pytest.raises(InputError, match="--path orbit: expected cameras that look at one place"):
        orbit(cameras, torch.tensor(points).reshape(-1, 3), 8)


def test_an_interpolation_passes_through_every_camera():
    cameras = ring(7)
    keys, times = key_times(cameras)
    assert {key.name for key in keys} == {each.name for each in cameras}
    steps = 4000
    path = interpolate(cameras, steps + 1)
    for key, time in zip(keys, times, strict=True):
        near = path[round(time / times[-1] * steps)]
        assert (near.center - key.center).norm() < 0.01
        assert (near.viewmat[:3, :3] - key.viewmat[:3, :3]).abs().max() < 0.01
    for end, key in ((path[0], keys[0]), (path[-1], keys[-1])):
        torch.testing.assert_close(end.viewmat, key.viewmat, atol=1e-5, rtol=0)


def test_an_interpolation_is_smooth_and_its_cameras_are_rigid():
    path = interpolate(ring(9), 200)
    centers = np.stack([each.center.numpy() for each in path])
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    assert steps.max() < 3 * np.median(steps)
    turns = np.linalg.norm(np.diff(centers, n=2, axis=0), axis=1)
    assert turns.max() < 0.3 * np.median(steps)
    for each in path:
        rotation = each.viewmat[:3, :3].double()
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-5, rtol=0)


def test_intrinsics_are_interpolated():
    cameras = [camera((float(x), -5, 0), (0, 0, 0), name=f"{x}.png", focal=50.0 + 10 * x) for x in range(3)]
    focals = [each.K[0, 0].item() for each in interpolate(cameras, 9)]
    assert focals == sorted(focals)
    assert (focals[0], focals[-1]) == (50, 70)


def test_cameras_that_stand_and_look_as_the_one_before_are_left_out():
    cameras = [camera((x, -5, 0), (0, 0, 0), name=f"{i}.png") for i, x in enumerate((0, 0, 1, 1, 2))]
    assert [key.name for key in key_times(cameras)[0]] == ["0.png", "2.png", "4.png"]
    turning = [camera((0, 0, 0), (math.cos(a), math.sin(a), 0), name=f"{a}.png") for a in range(3)]
    assert len(interpolate(turning, 10)) == 10  # at one place
    for few in (cameras[:1], cameras[:2]):
        with pytest.raises(InputError, match="expected 2 or more different training cameras, found 1"):
            interpolate(few, 10)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["r_0", "r_1", "r_2", "r_10"], ["r_0", "r_1", "r_2", "r_10"]),  # by the value of numbers
        (["a", "z", "b", "y"], ["a", "z", "b", "y"]),  # names without an order: to the nearest
    ],
)
def test_order(names, expected):
    cameras = [camera((x, -5, 0), (x, 0, 0), name=name) for x, name in enumerate(names)]
    assert [each.name for each in in_order(cameras[::-1])] == expected


def test_a_fitted_camera_sees_all_without_distortion():
    given = camera((0, -5, 0), (0, 0, 0))
    same = given.fitted(80, 60)
    torch.testing.assert_close(same.K, given.resized(80, 60).K)
    wide = given.fitted(100, 30)
    assert (wide.width, wide.height, wide.K[0, 0].item(), wide.K[1, 1].item()) == (100, 30, 50, 50)
    assert (wide.K[0, 2].item(), wide.K[1, 2].item()) == (50, 15)
