"""The scene that ships with the repository: layout, sizes, cameras, pictures and points agree."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

COUNTS = {"train": 60, "test": 20, "val": 10}
SIZE = 256


def frames(scene: Path, split: str) -> tuple[float, list[dict]]:
    content = json.loads((scene / f"transforms_{split}.json").read_text())
    return content["camera_angle_x"], content["frames"]


def poses(scene: Path, split: str) -> np.ndarray:
    return np.array([frame["transform_matrix"] for frame in frames(scene, split)[1]])  # [F, 4, 4]


def photo(scene: Path, split: str, index: int) -> np.ndarray:
    with Image.open(scene / split / f"r_{index}.png") as image:
        assert image.mode == "RGBA"
        return np.asarray(image)  # [H, W, 4] uint8


def points(scene: Path) -> tuple[np.ndarray, np.ndarray]:
    vertex = PlyData.read(str(scene / "points3d.ply"))["vertex"]
    xyz = np.stack([vertex[name] for name in ("x", "y", "z")], axis=1)  # [P, 3]
    rgb = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)  # [P, 3]
    return xyz, rgb


def project(xyz: np.ndarray, pose: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel positions [P, 2] (centres at +0.5) and depths [P] for an OpenGL camera-to-world matrix."""
    local = (xyz - pose[:3, 3]) @ pose[:3, :3]  # x right, y up, z backward
    focal = 0.5 * SIZE / math.tan(0.5 * angle)
    depth = -local[:, 2]
    return np.stack([local[:, 0], -local[:, 1]], axis=1) / depth[:, None] * focal + 0.5 * SIZE, depth


@pytest.mark.parametrize("split", COUNTS)
def test_layout_is_that_of_nerf_synthetic(builtin_scene, split):
    angle, listed = frames(builtin_scene, split)
    assert 0.3 < angle < 1.2
    assert len(listed) == COUNTS[split]
    assert [frame["file_path"] for frame in listed] == [f"./{split}/r_{i}" for i in range(len(listed))]
    assert {p.name for p in (builtin_scene / split).iterdir()} == {f"r_{i}.png" for i in range(len(listed))}


def test_whole_folder_is_small(builtin_scene):
    files = [path for path in builtin_scene.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10_000_000
    others = {path.name for path in files if path.suffix != ".png"}
    assert others == {"points3d.ply", *(f"transforms_{split}.json" for split in COUNTS)}


@pytest.mark.parametrize("split", COUNTS)
def test_camera_matrices_are_rigid_and_look_at_the_scene(builtin_scene, split):
    for pose in poses(builtin_scene, split):
        rotation, eye = pose[:3, :3], pose[:3, 3]
        assert np.array_equal(pose[3], [0, 0, 0, 1])
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-7)
        assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-7)
        assert 3.5 < np.linalg.norm(eye) < 5.0
        assert eye[2] > 0.3, "cameras stand above the board"
        assert rotation[2, 1] > 0, "pictures are upright"
        assert rotation[:, 2] @ eye / np.linalg.norm(eye) > 0.97, "cameras look along their -z at the scene"


def test_no_two_cameras_stand_in_one_place(builtin_scene):
    eyes = np.concatenate([poses(builtin_scene, split)[:, :3, 3] for split in COUNTS])
    distance = np.linalg.norm(eyes[:, None] - eyes[None], axis=2) + 10 * np.eye(len(eyes))
    assert distance.min() > 0.02


def test_train_cameras_surround_the_scene(builtin_scene):
    eyes = poses(builtin_scene, "train")[:, :3, 3]
    turn = np.sort(np.degrees(np.arctan2(eyes[:, 1], eyes[:, 0])))
    assert np.diff(np.append(turn, turn[0] + 360)).max() < 20
    height = np.degrees(np.arcsin(eyes[:, 2] / np.linalg.norm(eyes, axis=1)))
    assert height.min() < 20
    assert height.max() > 70


@pytest.mark.parametrize("split", COUNTS)
def test_pictures_are_rgba_with_clean_silhouettes(builtin_scene, split):
    for index in range(COUNTS[split]):
        image = photo(builtin_scene, split, index)
        assert image.shape == (SIZE, SIZE, 4)
        alpha = image[..., 3]
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any(), "the object stays inside the picture"
        assert not image[alpha == 0].any(), "nothing hides under full transparency"
        assert 0.1 < (alpha == 255).mean() < 0.6
        assert ((alpha > 0) & (alpha < 255)).mean() < 0.06, "only edges are half transparent"


def test_colour_is_straight_not_premultiplied(builtin_scene):
    """Half-transparent edge pixels are about as bright as the opaque pixels beside them."""
    edge_light = beside_light = 0.0
    for index in range(COUNTS["train"]):
        image = photo(builtin_scene, "train", index).astype(float)
        light, alpha = image[..., :3].mean(axis=2), image[..., 3]
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            pairs = (alpha > 40) & (alpha < 140) & (np.roll(alpha, shift, axis) == 255)
            edge_light += light[pairs].sum()
            beside_light += np.roll(light, shift, axis)[pairs].sum()
    assert 0.85 < edge_light / beside_light < 1.15  # premultiplied colour would give about 0.4


def test_point_cloud_is_sparse_and_lies_in_the_scene(builtin_scene):
    xyz, rgb = points(builtin_scene)
    assert 3000 <= len(xyz) <= 6000
    assert rgb.dtype == np.uint8
    assert np.isfinite(xyz).all()
    assert np.abs(xyz[:, :2]).max() < 1.3
    inside = (np.hypot(xyz[:, 0], xyz[:, 1]) < 1.12) & (xyz[:, 2] > -0.17) & (xyz[:, 2] < 1.25)
    assert inside.mean() > 0.99


def point_colour_error(scene: Path, view: int, *, mirrored: bool = False) -> tuple[float, float]:
    """Share of the points that fall on the object, and mean |RGB difference| (0..255) of those in front."""
    xyz, rgb = points(scene)
    pixels, depth = project(xyz, poses(scene, "train")[view], frames(scene, "train")[0])
    image = photo(scene, "train", view)
    if mirrored:
        image = image[:, ::-1]
    column, row = np.clip(np.floor(pixels).astype(int), 0, SIZE - 1).T
    on_object = image[row, column, 3] > 0
    order = np.argsort(depth)  # the nearest point of each cell of 8 x 8 pixels hides the others
    _, first = np.unique(((row // 8) * SIZE + column // 8)[order], return_index=True)
    front = order[first]
    front = front[on_object[front]]
    difference = image[row[front], column[front], :3].astype(float) - rgb[front]
    return on_object.mean(), np.abs(difference).mean()


@pytest.mark.parametrize("view", [0, 7, 19, 31, 44, 58])
def test_points_project_onto_the_object_in_its_colours(builtin_scene, view):
    share, error = point_colour_error(builtin_scene, view)
    _, mirrored_error = point_colour_error(builtin_scene, view, mirrored=True)
    assert share > 0.97
    assert error < 32
    assert error < 0.6 * mirrored_error
