"""Scenes of transforms files: NeRF-synthetic folders and single transforms.json."""

import json
import math
import re

import numpy as np
import pytest
import scenes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gsopt.datasets import load_scene
from gsopt.datasets.transforms import read_transforms


def change_json(path, **changes):
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_same_camera(camera, expected):
    torch.testing.assert_close(camera.viewmat, expected.viewmat, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(camera.K, expected.K)
    assert (camera.width, camera.height) == (expected.width, expected.height)


# NeRF-synthetic


def test_nerf_synthetic_is_split_by_its_files_and_keeps_alpha(tmp_path):
    scene = load_scene(scenes.write_nerf_synthetic(tmp_path))
    assert (scene.format, scene.has_alpha) == ("nerf-synthetic", True)
    assert [view.camera.name for view in scene.train] == [f"train/r_{i}.png" for i in range(6)]
    assert [view.camera.name for view in scene.test] == ["test/r_0.png", "test/r_1.png"]
    for view, expected in zip([*scene.train, *scene.test], scenes.orbit(8, 24, 24), strict=True):
        assert_same_camera(view.camera, expected)
        np.testing.assert_array_equal(view.image, scenes.picture(expected, alpha=True))
    np.testing.assert_array_equal(scene.points.xyz, scenes.ball_points(200)[0])


@pytest.mark.parametrize(
    ("there", "test"), [(("test", "val"), ["test/r_0.png"]), (("val",), ["val/r_0.png"]), ((), [])]
)
def test_test_views_come_from_the_test_file_else_from_val(tmp_path, there, test):
    scenes.write_nerf_synthetic(tmp_path, test=1)
    content = (tmp_path / "transforms_test.json").read_text()
    (tmp_path / "transforms_test.json").unlink()
    for name in there:
        scenes.save_picture(tmp_path / name / "r_0.png", scenes.orbit(7, 24, 24)[6], alpha=True)
        (tmp_path / f"transforms_{name}.json").write_text(content.replace("./test/", f"./{name}/"))
    assert [view.camera.name for view in load_scene(tmp_path).test] == test


def test_a_test_file_that_repeats_train_views_is_fine(tmp_path):
    scenes.write_nerf_synthetic(tmp_path)
    (tmp_path / "transforms_test.json").write_text((tmp_path / "transforms_train.json").read_text())
    scene = load_scene(tmp_path)
    assert [v.camera.name for v in scene.test] == [v.camera.name for v in scene.train]


# a single transforms.json


def test_transforms_json_is_split_by_sorted_names(tmp_path):
    scenes.write_transforms(tmp_path, views=10)
    content = json.loads((tmp_path / "transforms.json").read_text())
    change_json(tmp_path / "transforms.json", frames=content["frames"][::-1])
    scene = load_scene(tmp_path)
    assert (scene.format, scene.has_alpha) == ("transforms", False)
    assert [view.camera.name for view in scene.test] == ["0000.png", "0008.png"]
    assert [view.camera.name for view in scene.train] == [f"{i:04d}.png" for i in (1, 2, 3, 4, 5, 6, 7, 9)]
    for view in scene.train:
        expected = scenes.orbit(10)[int(view.camera.name[:4])]
        assert_same_camera(view.camera, expected)
        np.testing.assert_array_equal(view.image, scenes.picture(expected))


def test_the_path_of_a_json_file_is_a_scene_too(tmp_path):
    scenes.write_transforms(tmp_path)
    (tmp_path / "transforms.json").rename(tmp_path / "other.json")
    assert len(load_scene(tmp_path / "other.json").train) == 5


F, W, H = 33.6, 32, 24  # of the tiny scenes: focal length and size in pixels
ANGLE_X, ANGLE_Y = 2 * math.atan(0.5 * W / F), 2 * math.atan(0.5 * H / F)
NO_INTRINSICS = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h"))
INTRINSICS = {
    "lengths": ({}, {}, (F, F, 16, 12)),
    "only fl_x": ({"fl_y": None, "cx": None, "cy": None}, {}, (F, F, 16, 12)),
    "no size": ({"w": None, "h": None}, {}, (F, F, 16, 12)),
    "size as floats": ({"w": 32.0, "h": 24.0}, {}, (F, F, 16, 12)),
    "twice the size": ({"w": 64, "h": 48}, {}, (F / 2, F / 2, 8, 6)),
    "angle": (NO_INTRINSICS | {"camera_angle_x": ANGLE_X}, {}, (F, F, 16, 12)),
    "two angles": (NO_INTRINSICS | {"camera_angle_x": ANGLE_X, "camera_angle_y": ANGLE_Y / 2}, {},
                   (F, 12 / math.tan(ANGLE_Y / 4), 16, 12)),
    "angle in degrees": (NO_INTRINSICS | {"x_fov": math.degrees(ANGLE_X)}, {}, (F, F, 16, 12)),
    "two angles in degrees": (NO_INTRINSICS | {"x_fov": 60.0, "y_fov": 40.0}, {},
                              (16 / math.tan(math.radians(30)), 12 / math.tan(math.radians(20)), 16, 12)),
    "only the height's angle": (NO_INTRINSICS | {"camera_angle_y": ANGLE_Y}, {}, (F, F, 16, 12)),
    "only fl_y": ({"fl_x": None}, {}, (F, F, 16, 12)),
    "length and angle": ({"fl_y": None, "camera_angle_y": ANGLE_Y / 2}, {},
                         (F, 12 / math.tan(ANGLE_Y / 4), 16, 12)),
    "lengths before angles": ({"camera_angle_x": 0.1, "camera_angle_y": 0.1}, {}, (F, F, 16, 12)),
    "per frame": (NO_INTRINSICS, {"fl_x": 30, "fl_y": 31, "cx": 15, "cy": 11, "w": 32, "h": 24},
                  (30, 31, 15, 11)),
    "frame before file": ({}, {"fl_x": 30.0, "cy": 11}, (30, 30, 16, 11)),
    "frame's angle before file's lengths": ({"fl_x": 1.0}, {"camera_angle_x": ANGLE_X}, (F, F, 16, 12)),
    "null is absent": ({}, {"fl_x": None, "fl_y": None, "w": None}, (F, F, 16, 12)),
    "no distortion": ({"k1": 0, "k2": 0.0, "p1": 0, "p2": 0, "camera_model": "OPENCV"}, {}, (F, F, 16, 12)),
}  # fmt: skip


@pytest.mark.parametrize(("file", "frame", "expected"), INTRINSICS.values(), ids=INTRINSICS)
def test_intrinsics_of_the_file_or_the_frame(tmp_path, file, frame, expected):
    scenes.write_transforms(tmp_path, views=2)
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    change_json(tmp_path / "transforms.json", frames=[entry | frame for entry in frames], **file)
    for view in load_scene(tmp_path, test_every=0).train:
        K = view.camera.K
        assert (K[0, 0], K[1, 1], K[0, 2], K[1, 2]) == pytest.approx(expected)
        assert (view.camera.width, view.camera.height) == (W, H)


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        ({"k1": 0.1, "k2": -0.05, "p1": 0.01, "p2": -0.01}, "OPENCV"),
        ({"k1": 0.1}, "OPENCV"),
        ({"k1": 0.1, "k3": 0.02}, "FULL_OPENCV"),
        ({"k1": 0.05, "k2": 0.01, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE"),
        ({"k1": 0.05, "k2": 0.01, "is_fisheye": True}, "OPENCV_FISHEYE"),
    ],
)
def test_distorted_photos_become_what_a_pinhole_sees(tmp_path, keys, model):
    scenes.write_transforms(tmp_path, views=2, width=96, height=72)
    order = {
        "OPENCV": "k1 k2 p1 p2",
        "OPENCV_FISHEYE": "k1 k2 k3 k4",
        "FULL_OPENCV": "k1 k2 p1 p2 k3 k4 k5 k6",
    }
    lens = tuple(keys.get(key, 0.0) for key in order[model].split())
    for camera in scenes.orbit(2, 96, 72):
        scenes.save_picture(tmp_path / "images" / camera.name, camera, model=model, distortion=lens)
    change_json(tmp_path / "transforms.json", **keys)
    for view in load_scene(tmp_path, test_every=0).train:
        assert np.abs(view.image.numpy() - scenes.picture(view.camera).astype(float)).mean() < 2.0


def test_distorted_photos_keep_straight_alpha(tmp_path):
    scenes.write_transforms(tmp_path, views=2, width=96, height=72, k1=0.1)
    for camera in scenes.orbit(2, 96, 72):
        path = tmp_path / "images" / camera.name
        scenes.save_picture(path, camera, alpha=True, model="OPENCV", distortion=(0.1, 0.0, 0.0, 0.0))
    for view in load_scene(tmp_path, test_every=0).train:
        straight = torch.from_numpy(scenes.picture(view.camera, alpha=True))
        assert (view.image[..., 3].float() - straight[..., 3].float()).abs().mean() < 2.0
        solid = (view.image[..., 3] > 128) & (
            straight[..., 3] > 128
        )  # colours are not darkened at the border
        assert (view.image[solid].float() - straight[solid].float())[:, :3].abs().mean() < 4.0


@pytest.mark.parametrize(
    ("file_path", "stored", "name"),
    [
        ("images/a.png", "images/a.png", "a.png"),
        ("./images/a", "images/a.png", "a.png"),
        ("images/a", "images/a.JPG", "a.JPG"),
        ("images\\a.png", "images/a.png", "a.png"),
        ("a.png", "a.png", "a.png"),
        ("images/left/../a.png", "images/a.png", "a.png"),
        ("images/v1.5", "images/v1.5.png", "v1.5.png"),
    ],
)
def test_file_paths(tmp_path, file_path, stored, name):
    scenes.write_transforms(tmp_path, views=1)
    frame = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]
    (tmp_path / "images" / "0000.png").rename(tmp_path / stored)
    change_json(tmp_path / "transforms.json", frames=[frame | {"file_path": file_path}])
    photos, folder = read_transforms(tmp_path / "transforms.json")
    assert [photo.name for photo in photos] == [name]
    assert photos[0].path == tmp_path / stored == folder / name


def test_names_keep_the_subfolders_that_differ(tmp_path):
    scenes.write_transforms(tmp_path, views=2)
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    for side, frame in zip(("left", "right"), frames, strict=True):
        (tmp_path / "images" / side).mkdir()
        (tmp_path / frame["file_path"]).rename(tmp_path / "images" / side / "a.png")
        frame["file_path"] = f"images/{side}/a.png"
    change_json(tmp_path / "transforms.json", frames=frames)
    assert [view.camera.name for view in load_scene(tmp_path, test_every=0).train] == [
        "left/a.png",
        "right/a.png",
    ]


def test_missing_photos_are_left_out_with_one_warning(tmp_path):
    scenes.write_transforms(tmp_path, views=30)
    for i in range(1, 25):
        (tmp_path / "images" / f"{i:04d}.png").unlink()
    with pytest.warns(UserWarning, match="24 of 30 photos are not in") as caught:
        scene = load_scene(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert "0001.png, 0002.png" in message
    assert message.endswith("0020.png and 4 more")
    assert [view.camera.name for view in scene.test] == ["0000.png"]  # every 8th of those that are there
    assert len(scene.train) == 5


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-3, 1e3),
    digits=st.sampled_from([6, 17]),
)
def test_any_pose_and_scale_is_read_as_its_world_to_camera_matrix(tmp_path_factory, seed, scale, digits):
    random = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=random).as_matrix()  # camera to world, OpenCV axes
    position = 10 * random.normal(size=3)
    c2w = np.eye(4)
    c2w[:3, :3] = scale * rotation * [1, -1, -1]  # columns in OpenGL axes
    c2w[:3, 3] = position
    path = tmp_path_factory.mktemp("scene") / "transforms.json"
    matrix = [[float(f"{value:.{digits}g}") for value in row] for row in c2w]
    frame = {"file_path": "a.png", "transform_matrix": matrix}
    path.write_text(json.dumps({"fl_x": 30, "w": 32, "h": 24, "frames": [frame]}))
    (photo,), _ = read_transforms(path)
    tolerance = 10.0 ** (2 - digits) if digits < 17 else 1e-9
    np.testing.assert_allclose(photo.viewmat[:3, :3], rotation.T, atol=tolerance)
    np.testing.assert_allclose(-photo.viewmat[:3, :3].T @ photo.viewmat[:3, 3], position, atol=20 * tolerance)


# points


@pytest.mark.parametrize("name", ["points3d.ply", "sparse_pc.ply"])
def test_points_are_those_of_ply_file_path_or_points3d_ply(tmp_path, name):
    scenes.write_transforms(tmp_path)
    scenes.write_points(tmp_path / name, *scenes.ball_points(9))
    if name != "points3d.ply":
        change_json(tmp_path / "transforms.json", ply_file_path=name)
    np.testing.assert_array_equal(load_scene(tmp_path).points.xyz, scenes.ball_points(9)[0])


def test_random_points_fill_the_silhouettes_hull(tmp_path):
    scenes.write_nerf_synthetic(tmp_path, train=12, size=48, points=None)
    points = load_scene(tmp_path).points
    radius = points.xyz.norm(dim=1)
    assert points.xyz.shape == points.rgb.shape == (1000, 3)
    assert points.xyz.dtype == points.rgb.dtype == torch.float32
    assert radius.max() < 1.4  # the ball has radius 1; nothing carves above and below the cameras
    assert (radius < 1.1).float().mean() > 0.8
    assert points.xyz.std(dim=0).min() > 0.35
    assert points.rgb.std(dim=0).min() > 0.02  # seen colours, not one grey


def test_random_points_lie_where_cameras_look_together(tmp_path):
    scene = load_scene(scenes.write_transforms(tmp_path, views=12), test_every=0)
    assert len(scene.points.xyz) == 1000
    seen = torch.zeros(1000)
    for camera in (view.camera for view in scene.train):
        local = scene.points.xyz @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        pixels = local @ camera.K.T
        x, y = (pixels[:, :2] / pixels[:, 2:]).T
        seen += (local[:, 2] > 0) & (x >= 0) & (x < W) & (y >= 0) & (y < H)
    assert seen.min() >= 4  # a third of the 12


def test_random_points_depend_on_the_seed_only(tmp_path):
    scenes.write_transforms(tmp_path)
    first, again, other = (load_scene(tmp_path, seed=seed).points for seed in (0, 0, 1))
    assert torch.equal(first.xyz, again.xyz)
    assert torch.equal(first.rgb, again.rgb)
    assert not torch.equal(first.xyz, other.xyz)


def test_silhouettes_that_contradict_each_other_carve_nothing(tmp_path):
    scenes.write_nerf_synthetic(tmp_path, points=None)
    content = (tmp_path / "transforms_train.json").read_text()
    empty = np.zeros((24, 24, 4), np.uint8)
    empty[0, 0] = 255  # one opaque corner, each photo's ray another
    for name in re.findall(r"train/r_\d", content):
        scenes.Image.fromarray(empty).save(tmp_path / f"{name}.png")
    assert len(load_scene(tmp_path).points.xyz) == 1000
