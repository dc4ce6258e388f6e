"""Cameras from files: `cameras.json` of the original 3DGS and of our runs, `camera_path.json` of nerfstudio.

cameras.json is a list of objects: `position` [3] and `rotation` [3][3] (camera to world, OpenCV axes: x
right, y down, z forward), `fx`, `fy`, `width`, `height` in pixels; the principal point is the middle.

camera_path.json is an object with `render_width`, `render_height` and the list `camera_path` of objects with
`camera_to_world` (16 numbers by rows, OpenGL axes: x right, y up, z backward) and `fov` (degrees, vertical).
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.errors import InputError

_RIGID = 1e-2  # largest deviation of a rotation's products from the identity: files are rounded
_LARGEST = 1 << 16  # pixels


def read_cameras(path: Path) -> list[Camera]:
    """The cameras in the order of the file, named 0000.png and so on. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path}: not JSON ({error}); write it again") from None
    entries: Any = content
    read: Callable[[str, str, dict, Any], Camera] = _of_3dgs
    if isinstance(content, dict):
        entries, read = content.get("camera_path"), _of_nerfstudio
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{path}: expected a list of cameras (cameras.json) or an object with the list 'camera_path' "
            "(nerfstudio), and at least one in it; give such a file"
        )
    cameras = []
    for number, entry in enumerate(entries):
        where = f"{path}: camera {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object, found {type(entry).__name__}; correct the file")
        cameras.append(read(where, f"{number:04d}.png", entry, content))
    return cameras


def _of_3dgs(where: str, name: str, entry: dict, _content: Any) -> Camera:
    width, height = (_size(where, key, entry) for key in ("width", "height"))
    fx, fy = (_positive(where, key, entry) for key in ("fx", "fy"))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = _numbers(where, "rotation", entry, (3, 3))
    pose[:3, 3] = _numbers(where, "position", entry, (3,))
    return _camera(where, name, (width, height), (fx, fy), pose)


def _of_nerfstudio(where: str, name: str, entry: dict, content: dict) -> Camera:
    width, height = (_size(where, key, content) for key in ("render_width", "render_height"))
    fov = _positive(where, "fov", entry)
    if fov >= 180:
        raise InputError(f"{where}: fov is {fov:g}, expected degrees below 180; correct it")
    focal = height / (2 * math.tan(math.radians(fov) / 2))
    given = entry.get("camera_to_world")
    shape = (4, 4) if isinstance(given, list) and len(given) == 4 else (16,)
    pose = _numbers(where, "camera_to_world", entry, shape).reshape(4, 4)
    pose[:3, 1:3] *= -1  # y and z turned to OpenCV
    return _camera(where, name, (width, height), (focal, focal), pose)


def _camera(where: str, name: str, size: tuple[int, int], focal: tuple[float, float], pose: Tensor) -> Camera:
    """pose: [4, 4] camera to world, OpenCV axes."""
    rotation = pose[:3, :3]
    off = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if off > _RIGID or torch.linalg.det(rotation) < 0:
        raise InputError(
            f"{where}: its axes are off a right-handed orthonormal system by {off:.3g}, expected a rotation; "
            "correct it"
        )
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ pose[:3, 3]
    K = torch.tensor([[focal[0], 0.0, size[0] / 2], [0.0, focal[1], size[1] / 2], [0.0, 0.0, 1.0]])
    return Camera(name, *size, K, viewmat.float())


def _numbers(where: str, key: str, entry: dict, shape: tuple[int, ...]) -> Tensor:
    try:
        found = torch.tensor(entry.get(key), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = torch.empty(0)
    if tuple(found.shape) != shape or not found.isfinite().all():
        expected = "x".join(map(str, shape))
        raise InputError(f"{where}: {key}: expected {expected} finite numbers; add or correct them")
    return found


def _positive(where: str, key: str, entry: dict) -> float:
    value = _numbers(where, key, entry, ()).item()
    if value <= 0:
        raise InputError(f"{where}: {key} is {value:g}, expected more than 0; correct it")
    return value


def _size(where: str, key: str, entry: dict) -> int:
    value = _positive(where, key, entry)
    if value != int(value) or value > _LARGEST:
        raise InputError(f"{where}: {key} is {value:g}, expected whole pixels up to {_LARGEST}; correct it")
    return int(value)
