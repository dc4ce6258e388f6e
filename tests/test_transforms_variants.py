"""transforms.json as nerfstudio, instant-ngp and Blender's exporters write it, with all that varies."""

import json

import numpy as np
import pytest
import scenes
import torch

from gsopt.datasets import load_scene

NAMES = [f"{i:04d}.png" for i in range(6)]
AXES_SWAPPED = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]  # what ns-process-data applies to COLMAP's world


def rewrite(folder, change, **keys):
    """Passes each frame of transforms.json through `change`, sets keys at the top; None removes one."""
    path = folder / "transforms.json"
    content = json.loads(path.read_text()) | keys
    content["frames"] = [change(frame) for frame in content["frames"]]
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def same(frame):
    return frame


def names(views) -> list[str]:
    return [view.camera.name for view in views]


def listed(*numbers: int) -> list[str]:
    return [f"images/{NAMES[number]}" for number in numbers]


SPLITS = {  # keys of the file -> train views, test views
    "all three": (
        {"train_filenames": listed(0, 2), "val_filenames": listed(1), "test_filenames": listed(3, 4)},
        ([0, 2], [3, 4]),
    ),
    "train and val": (
        {"train_filenames": listed(0, 2, 5), "val_filenames": listed(1, 3)},
        ([0, 2, 5], [1, 3]),
    ),
    "an empty test list": (
        {"train_filenames": listed(0, 4), "val_filenames": listed(1), "test_filenames": []},
        ([0, 4], [1]),
    ),
    "only test": ({"test_filenames": listed(3)}, ([0, 1, 2, 4, 5], [3])),
    "test and val": ({"test_filenames": listed(3), "val_filenames": listed(4)}, ([0, 1, 2, 5], [3])),
    "only train": ({"train_filenames": listed(4, 1)}, ([1, 4], [])),
    "in both": ({"train_filenames": listed(0, 1), "test_filenames": listed(1)}, ([0, 1], [1])),
    "written in other ways": (
        {"train_filenames": ["./images/0001.png", "images\\\\0002.png"], "test_filenames": ["images/0003"]},
        ([1, 2], [3]),
    ),
    "null": ({"train_filenames": None, "test_filenames": None}, ([1, 2, 3, 4, 5], [0])),
}


@pytest.mark.parametrize(("keys", "expected"), SPLITS.values(), ids=SPLITS)
def test_lists_of_train_and_test_photos(tmp_path, keys, expected):
    scenes.write_transforms(tmp_path)
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    scene = load_scene(tmp_path)  # --test-every is for files without lists
    assert (names(scene.train), names(scene.test)) == tuple([NAMES[i] for i in part] for part in expected)


def test_listed_photos_that_are_no_frames_are_named_once(tmp_path):
    scenes.write_transforms(tmp_path)
    rewrite(
        tmp_path, same, train_filenames=[*listed(1, 3), "images/9.png"], test_filenames=["a.png", *listed(2)]
    )
    with pytest.warns(UserWarning, match="2 names in its lists .* are no frames .*: 9.png, a.png") as caught:
        scene = load_scene(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (names(scene.train), names(scene.test)) == ([NAMES[1], NAMES[3]], [NAMES[2]])


IGNORED = {
    "aabb_scale, scale and offset of instant-ngp": {
        "aabb_scale": 16,
        "scale": 0.33,
        "offset": [0.5, 0.5, 0.5],
    },
    "more of instant-ngp": {"up": [0, 0, 1], "n_extra_learnable_dims": 16, "render_aabb": [[0] * 3, [1] * 3]},
    "rotation of Blender": {"rotation": 0.012566},
    "applied_transform of nerfstudio": {"applied_transform": AXES_SWAPPED, "applied_scale": 0.5},
    "orientation_override of nerfstudio": {"orientation_override": "none"},
    "lenses that are off": {"is_fisheye": False, "ortho": False},
}


@pytest.mark.parametrize("keys", IGNORED.values(), ids=IGNORED)
def test_what_changes_nothing_that_is_seen(tmp_path, keys):
    plain = load_scene(scenes.write_transforms(tmp_path, points=9))
    rewrite(tmp_path, lambda frame: frame | {"sharpness": 30.0, "colmap_im_id": 3}, **keys)
    scene = load_scene(tmp_path)
    for view, expected in zip(scene.train, plain.train, strict=True):
        assert torch.equal(view.camera.viewmat, expected.camera.viewmat)
        assert torch.equal(view.camera.K, expected.camera.K)
    assert torch.equal(scene.points.xyz, plain.points.xyz)


def test_points_of_nerfstudio_lie_where_its_cameras_see_them(tmp_path):
    """As ns-process-data writes them: applied_transform is in the frames and in the points already."""
    scenes.write_transforms(tmp_path)
    swap = np.array(AXES_SWAPPED, np.float64)
    turned = np.vstack([swap, [0, 0, 0, 1]])
    xyz, rgb = scenes.ball_points(400)
    scenes.write_points(tmp_path / "sparse_pc.ply", (xyz @ swap[:, :3].T).astype(np.float32), rgb)
    rewrite(
        tmp_path,
        lambda frame: frame | {"transform_matrix": (turned @ frame["transform_matrix"]).tolist()},
        applied_transform=AXES_SWAPPED,
        ply_file_path="sparse_pc.ply",
    )
    scene = load_scene(tmp_path)
    errors = []
    for camera, image in ((view.camera, view.image) for view in scene.train):
        local = scene.points.xyz @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        front = local[:, 2] < 3.3  # the near half of the ball
        pixels = local[front] @ camera.K.T
        x, y = (pixels[:, :2] / pixels[:, 2:]).long().T
        errors.append((image[y, x] / 255.0 - scene.points.rgb[front]).abs().mean())
    assert torch.stack(errors).max() < 0.1


VARIANTS = {
    "three rows of a matrix": lambda frame: frame | {"transform_matrix": frame["transform_matrix"][:3]},
    "a name without ending": lambda frame: frame | {"file_path": frame["file_path"].removesuffix(".png")},
    "a name with a dot in front": lambda frame: frame | {"file_path": "./" + frame["file_path"]},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_frames_written_in_other_ways(tmp_path, change):
    plain = load_scene(scenes.write_transforms(tmp_path))
    rewrite(tmp_path, change)
    scene = load_scene(tmp_path)
    assert names(scene.train) == names(plain.train)
    for view, expected in zip(scene.train, plain.train, strict=True):
        assert torch.equal(view.camera.viewmat, expected.camera.viewmat)


def test_a_file_that_begins_with_a_byte_order_mark(tmp_path):
    path = scenes.write_transforms(tmp_path) / "transforms.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_scene(tmp_path).train) == 5


@pytest.mark.parametrize("writer", ["nerfstudio", "Windows"])
def test_the_path_of_the_points(tmp_path, writer):
    scenes.write_transforms(tmp_path)
    (tmp_path / "points").mkdir()
    scenes.write_points(tmp_path / "points" / "a.ply", *scenes.ball_points(7))
    rewrite(tmp_path, same, ply_file_path="points/a.ply" if writer == "nerfstudio" else "points\\a.ply")
    assert len(load_scene(tmp_path).points.xyz) == 7
