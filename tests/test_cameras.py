import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gsopt.cameras import Camera, camera_to_json, cameras_extent, scene_up


def camera(center=(0.0, 0.0, 0.0), angle=0.0, width=40, height=30, name="a.png") -> Camera:
    """A camera at `center`, turned by `angle` about its vertical axis."""
    c, s = math.cos(angle), math.sin(angle)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    viewmat[:3, 3] = -viewmat[:3, :3] @ torch.tensor(center)
    K = torch.tensor([[50.0, 0.0, 20.0], [0.0, 48.0, 15.0], [0.0, 0.0, 1.0]])
    return Camera(name, width, height, K, viewmat)


def test_center_is_where_the_world_maps_to_zero():
    cam = camera((1.0, -2.0, 3.0), angle=0.7)
    torch.testing.assert_close(cam.center, torch.tensor([1.0, -2.0, 3.0]))
    torch.testing.assert_close(
        cam.viewmat @ torch.cat([cam.center, torch.ones(1)]), torch.tensor([0.0, 0, 0, 1])
    )


def test_resized_keeps_the_relative_position_of_a_projection():
    cam = camera()
    small = cam.resized(20, 10)
    point = torch.tensor([0.3, -0.2, 2.0])
    u, v, w = (cam.K @ point).tolist()
    us, vs, ws = (small.K @ point).tolist()
    assert (small.width, small.height, small.name) == (20, 10, cam.name)
    assert us / ws / 20 == pytest.approx(u / w / 40)
    assert vs / ws / 10 == pytest.approx(v / w / 30)
    torch.testing.assert_close(small.viewmat, cam.viewmat)


@pytest.mark.parametrize(
    ("centers", "expected"),
    [
        ([(1, 2, 3)], 0.0),
        ([(-1, 0, 0), (1, 0, 0)], 1.1),
        ([(0, 0, 0), (0, 0, 0), (0, 0, 3)], 2.2),
    ],
)
def test_extent_is_1_1_times_the_largest_distance_from_the_mean(centers, expected):
    cameras = [camera(tuple(map(float, c)), angle=i) for i, c in enumerate(centers)]
    assert cameras_extent(cameras) == pytest.approx(expected, abs=1e-6)


def test_extent_of_no_cameras_is_an_error():
    with pytest.raises(ValueError, match="no cameras"):
        cameras_extent([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "'a.png': size 0x30"),
        ({"K": torch.eye(4)}, "K is \\[4, 4\\]"),
        ({"viewmat": torch.eye(3)}, "viewmat is \\[3, 3\\]"),
    ],
)
def test_impossible_cameras_are_refused(change, message):
    good = {"name": "a.png", "width": 40, "height": 30, "K": torch.eye(3), "viewmat": torch.eye(4)}
    with pytest.raises(ValueError, match=message):
        Camera(**(good | change))


def test_json_entry_has_the_keys_of_3dgs():
    entry = camera_to_json(camera((1.0, 2.0, 3.0), angle=math.pi / 2, name="x/y.jpg"), 7)
    assert list(entry) == ["id", "img_name", "width", "height", "position", "rotation", "fy", "fx"]
    assert (entry["id"], entry["img_name"], entry["fx"], entry["fy"]) == (7, "x/y.jpg", 50.0, 48.0)
    assert entry["position"] == pytest.approx([1.0, 2.0, 3.0], abs=1e-6)
    # camera-to-world: its columns are the camera's axes in the world
    assert [row[2] for row in entry["rotation"]] == pytest.approx([-1.0, 0.0, 0.0], abs=1e-6)
    assert json.loads(json.dumps(entry)) == entry


def looking(azimuth: float, elevation: float, roll: float = 0.0) -> np.ndarray:
    """World-to-camera rotation, in a world whose z points up; degrees, elevation above the horizon."""
    level = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # looks along x: right -y, down -z
    turned = Rotation.from_euler("ZY", [azimuth, -elevation], degrees=True).as_matrix()
    return Rotation.from_euler("z", roll, degrees=True).as_matrix() @ level @ turned.T


UPS = {  # azimuth, elevation, roll of each camera; how far off the result may be, in degrees
    "a ring that looks down": ([(a, -40, 0) for a in range(0, 360, 30)], 0.01),
    "a third of a ring": ([(a, -40, 0) for a in range(0, 120, 10)], 0.01),
    "a ring that looks up": ([(a, 70, 0) for a in range(0, 360, 30)], 0.01),
    "hands that shake": ([(a, -20 + a % 7, 8 * math.sin(a)) for a in range(0, 360, 11)], 3),
    "views of a wall": ([(a, 0, 0) for a in (-2, -1, 1, 2)], 0.01),
    "one camera": ([(30, 0, 0)], 0.01),
    "a drone that looks straight down, on two headings": ([(a, -90, 0) for a in (0, 90, 180, 270)], 0.01),
}


@pytest.mark.parametrize(("shots", "degrees"), UPS.values(), ids=UPS)
def test_up_of_a_scene_however_its_world_is_turned(shots, degrees):
    for turn in Rotation.random(5, random_state=0).as_matrix():
        cameras = []
        for shot in shots:
            viewmat = np.eye(4)
            viewmat[:3, :3] = looking(*shot) @ turn.T
            cameras.append(Camera("a.png", 4, 3, torch.eye(3), torch.tensor(viewmat, dtype=torch.float32)))
        up = scene_up(cameras)
        assert up.dtype == torch.float32
        assert up.norm().item() == pytest.approx(1)
        cosine = (up @ torch.tensor(turn[:, 2], dtype=torch.float32)).clamp(-1, 1).item()
        assert math.degrees(math.acos(cosine)) < degrees + 0.05


def test_up_needs_a_camera():
    with pytest.raises(ValueError, match="no cameras, expected at least one"):
        scene_up([])
