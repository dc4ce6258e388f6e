"""Cameras from files of the original 3DGS, of our runs, and of nerfstudio."""

import json
import math

import pytest
import torch
from scenes import orbit

from gsopt.camera_files import read_cameras
from gsopt.cameras import camera_to_json
from gsopt.errors import InputError

ENTRY = {
    "id": 0,
    "img_name": "a",
    "width": 64,
    "height": 48,
    "position": [1.0, 2.0, 3.0],
    "rotation": [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
    "fy": 50.0,
    "fx": 60,
}
STUDIO = {"camera_to_world": [1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1], "fov": 90, "aspect": 1}


def test_what_a_run_writes_is_read_back(tmp_path):
    cameras = orbit(5)
    entries = [camera_to_json(each, number) for number, each in enumerate(cameras)]
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    found = read_cameras(tmp_path / "cameras.json")
    assert [each.name for each in found] == [f"{i:04d}.png" for i in range(5)]
    for mine, other in zip(found, cameras, strict=True):
        assert (mine.width, mine.height) == (other.width, other.height)
        torch.testing.assert_close(mine.K, other.K)
        torch.testing.assert_close(mine.viewmat, other.viewmat, atol=1e-5, rtol=1e-5)


def test_an_entry_of_3dgs_by_hand(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ENTRY]))
    (found,) = read_cameras(tmp_path / "a.json")
    assert found.center.tolist() == [1, 2, 3]
    assert found.viewmat[2, :3].tolist() == [-1, 0, 0]  # forward: the third column of its rotation
    assert found.K.tolist() == [[60, 0, 32], [0, 50, 24], [0, 0, 1]]


@pytest.mark.parametrize("rows", [False, True])
def test_a_path_of_nerfstudio(tmp_path, rows):
    entry = dict(STUDIO)
    if rows:
        entry["camera_to_world"] = torch.tensor(entry["camera_to_world"]).reshape(4, 4).tolist()
    content = {"render_width": 80, "render_height": 60, "fps": 24, "camera_path": [entry, entry]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = read_cameras(tmp_path / "a.json")
    assert [each.name for each in found] == ["0000.png", "0001.png"]
    assert found[0].center.tolist() == [1, 2, 3]
    assert found[0].viewmat[2, :3].tolist() == [0, 0, -1]  # OpenGL looks along -z
    assert found[0].viewmat[1, :3].tolist() == [0, -1, 0]
    assert found[0].K[0, 0].item() == pytest.approx(30 / math.tan(math.radians(45)))  # fov is vertical


def changed(**change) -> list:
    return [{key: value for key, value in (ENTRY | change).items() if value is not None}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a list of cameras"),
        ({"frames": []}, "expected a list of cameras"),
        ("text", "expected a list of cameras"),
        ([ENTRY, 5], "camera 1: expected an object, found int"),
        (changed(position=None), "camera 0: position: expected 3 finite numbers"),
        (changed(position=[1, 2]), "position: expected 3 finite numbers"),
        (changed(position=[1, 2, "x"]), "position: expected 3 finite numbers"),
        (changed(position=[1, 2, 1e999]), "position: expected 3 finite numbers"),
        (changed(rotation=[[1, 0, 0]]), "rotation: expected 3x3 finite numbers"),
        (changed(rotation=[[1, 0, 0], [0, 1, 0], [0, 0, 2]]), "axes are off a right-handed .* by 3"),
        (changed(rotation=[[1, 0, 0], [0, 1, 0], [0, 0, -1]]), "expected a rotation"),
        (changed(fx=0), "fx is 0, expected more than 0"),
        (changed(width=1.5), "width is 1.5, expected whole pixels"),
        (changed(height=1e6), "height is 1e\\+06, expected whole pixels up to 65536"),
        (
            {"camera_path": [STUDIO], "render_height": 5},
            "camera 0: render_width: expected",
        ),
        (
            {"camera_path": [STUDIO | {"fov": 180}], "render_height": 5, "render_width": 5},
            "fov is 180, expected degrees below 180",
        ),
        (
            {"camera_path": [STUDIO | {"camera_to_world": 5}], "render_height": 5, "render_width": 5},
            "camera_to_world: expected 16 finite numbers",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"a\.json.*{message}") as caught:
        read_cameras(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_not_json(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(No such file"):
        read_cameras(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json: not JSON"):
        read_cameras(tmp_path / "a.json")
