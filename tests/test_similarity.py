"""Similarities, and worlds that are normalised by them."""

import json
import math

import numpy as np
import pytest
import scenes
import torch
from scipy.spatial.transform import Rotation
from splats import random_tensors

from gsopt.cameras import camera_to_json, cameras_to_json
from gsopt.datasets import load_scene
from gsopt.datasets.normalization import normalization
from gsopt.errors import InputError
from gsopt.similarity import Similarity, move_gaussians

BUILDERS = [scenes.write_colmap, scenes.write_nerf_synthetic, scenes.write_transforms]


def any_move(seed: int = 0, scale: float = 37.0, far: float = 500.0) -> Similarity:
    random = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=random).as_matrix()
    return Similarity(scale, torch.from_numpy(rotation), torch.from_numpy(far * random.normal(size=3)))


def pixels(camera, xyz):
    local = xyz.double() @ camera.viewmat[:3, :3].double().T + camera.viewmat[:3, 3].double()
    flat = local @ camera.K.double().T
    return flat[:, :2] / flat[:, 2:]


def test_a_move_and_back_is_none():
    move = any_move()
    xyz = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(move.inverse().points(move.points(xyz)), xyz.double())
    nothing = move.inverse().after(move)
    assert nothing.scale == pytest.approx(1)
    torch.testing.assert_close(nothing.rotation, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(nothing.translation, torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(move.inverse().viewmat(move.viewmat(torch.eye(4))), torch.eye(4).double())


def test_a_move_survives_json_to_the_bit():
    move = any_move()
    again = Similarity.of_json(json.loads(json.dumps(move.to_json())))
    assert again.scale == move.scale
    assert torch.equal(again.rotation, move.rotation)
    assert torch.equal(again.translation, move.translation)


def test_points_have_the_same_bits_alone_and_among_others():
    xyz = torch.randn(1001, 3, generator=torch.Generator().manual_seed(0))
    move = any_move()
    together = move.points(xyz)
    assert all(torch.equal(move.points(xyz[i : i + 1])[0], together[i]) for i in range(0, 1001, 97))


@pytest.mark.parametrize("degree", [0, 3])
def test_gaussians_moved_and_back_are_the_same_but_for_rounding(degree):
    tensors, move = random_tensors(40, degree), any_move(far=3.0)
    again = move_gaussians(move_gaussians(tensors, move), move.inverse())
    for name, value in tensors.items():
        if name == "rotation":  # q and -q are one rotation
            again[name] = again[name] * (again[name] * value).sum(dim=1, keepdim=True).sign()
        torch.testing.assert_close(again[name], value, atol=2e-6, rtol=1e-5, msg=name)


# normalisation


def viewmats(*centers, looking=(0.0, 0.0, 0.0), up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """Cameras at places, that look at a point and are level for an up-vector."""
    found = []
    for center in np.array(centers, float):
        forward = np.array(looking) - center
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        viewmat = np.eye(4)
        viewmat[:3, :3] = [right, np.cross(forward, right), forward]
        viewmat[:3, 3] = -viewmat[:3, :3] @ center
        found.append(viewmat)
    return np.stack(found)


RING = [(4 * math.cos(a), 4 * math.sin(a), 1.0) for a in np.arange(8) * math.pi / 4]


@pytest.mark.parametrize("kind", ["scale", "up"])
@pytest.mark.parametrize("seed", range(4))
def test_cameras_come_to_a_common_place(kind, seed):
    there = any_move(seed, scale=0.01 * 100**seed, far=1e6)
    moved = np.stack([there.viewmat(torch.from_numpy(one)).numpy() for one in viewmats(*RING)])
    world = normalization(moved, kind)
    centers = torch.stack([torch.from_numpy(-one[:3, :3].T @ one[:3, 3]) for one in moved])
    placed = world.points(centers)
    atol = 1e-7 if there.scale > 1 else 1e-4  # of cameras 1e6 away, at this scale, digits are lost
    torch.testing.assert_close(placed.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=atol, rtol=0)
    assert placed.norm(dim=1).max().item() == pytest.approx(1, abs=atol)
    torch.testing.assert_close(world.rotation @ world.rotation.T, torch.eye(3, dtype=torch.float64))
    if kind == "up":
        up = world.rotation @ there.rotation @ torch.tensor([0.0, 0, 1], dtype=torch.float64)
        torch.testing.assert_close(up, torch.tensor([0.0, 0, 1], dtype=torch.float64), atol=1e-9, rtol=0)
    else:
        assert torch.equal(world.rotation, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("up", [(0, 0, -1), (0, 1e-9, -1), (0, 0, 1), (1, 0, 0)])
def test_up_from_any_side(up):
    axis = np.array(up, float) / np.linalg.norm(up)
    side = np.cross(axis, [0.3, 1, 0.2])
    world = normalization(
        viewmats(*(3 * np.cross(axis, side) * s + side for s in (-1, 0.2, 1)), up=axis), "up"
    )
    assert torch.linalg.det(world.rotation).item() == pytest.approx(1)
    np.testing.assert_allclose(world.rotation.numpy() @ axis, [0, 0, 1], atol=1e-6)


def test_cameras_at_one_place_keep_their_scale():
    shots = viewmats((5.0, 5, 5), (5.0, 5, 5))
    world = normalization(shots, "scale")
    assert world.scale == 1
    np.testing.assert_allclose(world.translation, [-5, -5, -5])


def test_another_kind_is_refused(tmp_path):
    scene = scenes.write_colmap(tmp_path)
    with pytest.raises(InputError, match="--normalize big: expected one of none, scale, up"):
        load_scene(scene, normalize="big")


@pytest.mark.parametrize("kind", ["scale", "up"])
@pytest.mark.parametrize("build", BUILDERS)
def test_a_normalised_scene_shows_the_same(tmp_path, build, kind):
    plain = load_scene(build(tmp_path))
    assert plain.world is None
    scene = load_scene(tmp_path, normalize=kind)
    assert scene.world is not None
    assert scene.extent == pytest.approx(plain.extent * scene.world.scale, rel=1e-5)
    points = scene.world.points(plain.points.xyz).float()
    for view, expected in zip((*scene.train, *scene.test), (*plain.train, *plain.test), strict=True):
        torch.testing.assert_close(
            pixels(view.camera, points), pixels(expected.camera, plain.points.xyz), atol=1e-3, rtol=1e-4
        )
        assert torch.equal(view.image, expected.image)
    if build is not scenes.write_transforms:  # there they are random, in this world
        assert torch.equal(scene.points.xyz, points)
    up = scene.world.rotation.float() @ plain.up
    torch.testing.assert_close(scene.up, up, atol=1e-5, rtol=0)
    if kind == "up":
        torch.testing.assert_close(scene.up, torch.tensor([0.0, 0, 1]), atol=0.05, rtol=0)  # of train views


def test_the_move_may_be_given(tmp_path):
    scene = load_scene(scenes.write_colmap(tmp_path), normalize="up")
    moved = scene.world.after(Similarity(1.0, torch.eye(3).double(), torch.ones(3).double()))
    again = load_scene(tmp_path, normalize=moved)
    assert again.world is moved
    same = load_scene(tmp_path, normalize=Similarity.of_json(scene.world.to_json()))
    for view, expected in zip(same.train, scene.train, strict=True):
        assert torch.equal(view.camera.viewmat, expected.camera.viewmat)


@pytest.mark.parametrize("build", BUILDERS)
def test_cameras_are_written_where_they_are_in_the_world(tmp_path, build):
    plain, scene = load_scene(build(tmp_path)), load_scene(tmp_path, normalize="up")
    expected = [camera_to_json(view.camera, i) for i, view in enumerate(plain.train)]
    assert cameras_to_json([view.camera for view in plain.train]) == expected
    written = cameras_to_json([view.camera for view in scene.train], scene.world)
    for entry, other in zip(written, expected, strict=True):
        for key in ("position", "rotation"):
            np.testing.assert_allclose(entry.pop(key), other.pop(key), atol=1e-5)
        assert entry == other


def test_a_scene_at_the_coordinates_of_a_map_loses_no_digits(tmp_path):
    """400 km east, 5,000 km north: float32 counts in half metres there, but not in the normalised world."""
    offset = np.array([400_000.0, 5_000_000.0, 100.0])
    near = scenes.write_transforms(tmp_path / "near")
    far = scenes.write_transforms(tmp_path / "far")
    content = json.loads((far / "transforms.json").read_text())
    for frame in content["frames"]:
        for row, value in zip(frame["transform_matrix"], offset, strict=False):
            row[3] += value
    (far / "transforms.json").write_text(json.dumps(content))
    xyz, rgb = scenes.ball_points(50)
    np.savez(tmp_path / "near.npz", xyz=xyz.astype(np.float64), rgb=rgb)
    np.savez(tmp_path / "far.npz", xyz=xyz + offset, rgb=rgb)
    here = load_scene(near, normalize="up", init=tmp_path / "near.npz")
    there = load_scene(far, normalize="up", init=tmp_path / "far.npz")
    torch.testing.assert_close(there.points.xyz, here.points.xyz, atol=1e-6, rtol=0)
    for view, expected in zip(there.train, here.train, strict=True):
        torch.testing.assert_close(view.camera.viewmat, expected.camera.viewmat, atol=1e-6, rtol=0)
    position = cameras_to_json([there.train[0].camera], there.world)[0]["position"]
    home = cameras_to_json([here.train[0].camera], here.world)[0]["position"]
    np.testing.assert_allclose(np.array(position) - offset, home, atol=1e-5)
