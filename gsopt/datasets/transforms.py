"""Cameras from JSON: NeRF-synthetic (transforms_train/test.json) or one file (nerfstudio, instant-ngp).

Both list frames with a camera-to-world matrix in OpenGL axes (x right, y up, z backward). Intrinsics stand in
the frame or, for all frames, at the top: fl_x, fl_y, cx, cy, w, h in pixels, camera_angle_x, camera_angle_y
in radians, or x_fov, y_fov in degrees, and distortion as OpenCV's k1, k2, p1, p2, k3, ... or, with
camera_model OPENCV_FISHEYE or is_fisheye, k1 to k4 of its fisheye model. The lists train_filenames,
val_filenames and test_filenames (nerfstudio) say which frame is for what.

What else there is does not change what is seen: aabb_scale, scale and offset (instant-ngp) place a scene in
that program's unit cube, applied_transform and applied_scale (nerfstudio) tell of the world before.
"""

import json
import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gsopt.datasets.images import DepthFile, Lens, Photo, image_size
from gsopt.datasets.point_files import read_points
from gsopt.datasets.scene import PointCloud
from gsopt.errors import InputError
from gsopt.text import listed, shortened

_SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp")  # of a file_path without one
_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")
_DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # the order of OpenCV and of FULL_OPENCV
_FOCAL = tuple(form.format(axis) for form in ("fl_{}", "camera_angle_{}", "{}_fov") for axis in "xy")
_OTHER_LENSES = ("ortho", "equirectangular", "latlong", "ftheta_p0")  # of instant-ngp
_DEPTH_UNIT = 0.001  # world units: nerfstudio's default, for millimetres in a world of metres
_RIGID = 1e-2  # largest deviation of a rotation's products from the identity: files are rounded


def read_nerf_synthetic(root: Path) -> tuple[list[Photo], Path]:
    """Photos of transforms_train.json (split "train") and transforms_test.json (split "test").

    Without the latter, transforms_val.json gives the test views; without both there are none. Returns the
    photos and the folder that their names are relative to.
    """
    files = [(root / "transforms_train.json", "train")]
    tests = (root / f"transforms_{name}.json" for name in ("test", "val"))
    files += [(path, "test") for path in tests if path.is_file()][:1]
    listed = [(path, split, read_json(path)) for path, split in files]
    paths = [_photo_paths(path, content) for path, _, content in listed]
    folder = _common_folder([path for part in paths for path in part])
    if folder.is_relative_to(root):
        folder = root
    photos = [
        photo
        for (path, split, content), part in zip(listed, paths, strict=True)
        for photo in _photos(path, content, part, folder, [(split,)] * len(part))
    ]
    return photos, folder


def read_transforms(path: Path) -> tuple[list[Photo], Path]:
    """Photos of one transforms.json and the deepest common folder, which their names are relative to."""
    content = read_json(path)
    paths = _photo_paths(path, content)
    folder = _common_folder(paths)
    return _photos(path, content, paths, folder, _splits(path, content, paths)), folder


def find_points(source: Path) -> Callable[[int | None], PointCloud] | None:
    """A function that gives the points of a transforms file (ply_file_path, else points3d.ply), or None.

    Its argument is the number of points they are thinned to, None for all. The points are in the world of the
    frames. nerfstudio's applied_transform leads to that from an older world, and ns-process-data has applied
    it to both when it wrote them (`create_ply_from_colmap` in its code), so it is not applied again.
    """
    named = read_json(source).get("ply_file_path")
    _check_name(source, "ply_file_path", named)
    path = source.parent / (named.replace("\\", "/") if isinstance(named, str) else "points3d.ply")
    return (lambda most: read_points(path, most=most)) if named or path.is_file() else None


def read_json(path: Path) -> dict:
    """A transforms file: an object with a list of at least one frame; InputError if it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path}: not JSON ({error}); write or download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise InputError(f"{path}: no list of 'frames', expected an object with one; give a transforms file")
    if not content["frames"]:
        raise InputError(f"{path}: 'frames' is empty, expected at least one; give a file with cameras")
    for index, frame in enumerate(content["frames"]):
        for key, kind in (("file_path", str), ("transform_matrix", list)):
            if not isinstance(frame, dict) or not isinstance(frame.get(key), kind):
                what = "a text" if kind is str else "a 4x4 matrix"
                raise InputError(
                    f"{path}: frames[{index}] has no {key}, expected {what}; add it or remove the frame"
                )
        _check_name(path, f"frames[{index}]: file_path", frame["file_path"])
    return content


def _check_name(path: Path, where: str, name: object) -> None:
    """InputError where a name of a file has line ends and the like: no file system has good use for them."""
    if isinstance(name, str) and not name.isprintable():
        found = shortened(repr(name), 80)
        raise InputError(f"{path}: {where} is {found}, expected printable characters; correct it")


def _photo_paths(path: Path, content: dict) -> list[Path]:
    """The file of each frame."""
    return [_photo_path(path.parent, frame["file_path"]) for frame in content["frames"]]


def _photo_path(folder: Path, name: str) -> Path:
    """The file of a name; a suffix is tried out where it has none."""
    photo = Path(os.path.normpath(folder / name.replace("\\", "/")))
    if photo.is_file():
        return photo
    tries = [photo.with_name(photo.name + suffix) for suffix in _SUFFIXES]
    bare = tries[0] if photo.suffix.lower() not in _SUFFIXES else photo
    return next((candidate for candidate in tries if candidate.is_file()), bare)


def _splits(source: Path, content: dict, paths: list[Path]) -> list[tuple[str | None, ...]]:
    """What each frame is for: ("train",), ("test",), both, nothing, or (None,) where the file has no lists.

    Test views are those of test_filenames, without any those of val_filenames; train views those of
    train_filenames or, where the file has no such list, of no other list. One warning has the names that no
    frame has.
    """
    keys = {split: f"{split}_filenames" for split in ("train", "val", "test")}
    lists = {split: content[key] for split, key in keys.items() if content.get(key) is not None}
    if not lists:
        return [(None,)] * len(paths)
    found: dict[str, set[Path]] = {}
    for split, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{source}: {keys[split]} is {shortened(repr(names), 80)}, expected a list of names; "
                "correct it"
            )
        for name in names:
            _check_name(source, keys[split], name)
        found[split] = {_photo_path(source.parent, name) for name in names}
    if strange := sorted({path.name for files in found.values() for path in files - set(paths)}):
        warnings.warn(
            f"{source}: {len(strange)} names in its lists of train, val and test photos are no frames and "
            f"are left out: {listed(strange)}",
            stacklevel=5,  # the caller of load_scene
        )
    test = found.get("test") or found.get("val", set())
    others = found.get("test", set()) | found.get("val", set())
    train = found.get("train", set(paths) - others)
    if not train.intersection(paths):
        raise InputError(
            f"{source}: none of the {len(paths)} frames is for training, expected one or more in "
            "train_filenames; correct that list, or remove all lists and give --test-every N"
        )
    return [
        tuple(split for split, files in (("train", train), ("test", test)) if path in files) for path in paths
    ]


def _common_folder(paths: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _photos(
    source: Path, content: dict, paths: list[Path], folder: Path, splits: list[tuple[str | None, ...]]
) -> list[Photo]:
    photos: list[Photo] = []
    first: dict[Path, int] = {}
    for index, (frame, path, of_frame) in enumerate(zip(content["frames"], paths, splits, strict=True)):
        where = f"{source}: frames[{index}]"
        if path in first:
            raise InputError(
                f"{where} is {path.name} again, already frames[{first[path]}]; remove one of them"
            )
        first[path] = index
        lens = _lens(where, [frame, content], path)
        viewmat = _viewmat(where, frame["transform_matrix"])
        name = path.relative_to(folder).as_posix()
        maps = _map_paths(where, source, frame, content)
        photos += [Photo(name, path, lens, viewmat, split, *maps) for split in of_frame]
    return photos


def _map_paths(where: str, source: Path, frame: dict, content: dict) -> tuple[Path | None, DepthFile | None]:
    """Files of a frame's mask (mask_path) and depth map (depth_file_path), as nerfstudio names them.

    Depths are in units of depth_unit_scale_factor, of the frame or else the file, by default thousandths.
    """
    found = {}
    for key in ("mask_path", "depth_file_path"):
        name = frame.get(key)
        if name is not None and not isinstance(name, str):
            raise InputError(
                f"{where}: {key} is {shortened(repr(name), 80)}, expected the path of a file; correct it"
            )
        _check_name(source, f"{where.rpartition(': ')[2]}: {key}", name)
        found[key] = source.parent / name.replace("\\", "/") if name else None
    if found["depth_file_path"] is None:
        return found["mask_path"], None
    unit = _number(where, [frame, content], "depth_unit_scale_factor", _DEPTH_UNIT)
    if unit <= 0:
        raise InputError(f"{where}: depth_unit_scale_factor is {unit:g}, expected more than 0; correct it")
    return found["mask_path"], DepthFile(found["depth_file_path"], scale=unit)


def _viewmat(where: str, matrix: list) -> np.ndarray:
    """[4, 4] world-to-camera with OpenCV axes, of camera-to-world with OpenGL axes and any scale."""
    try:
        c2w = np.array(matrix, np.float64)
    except (ValueError, TypeError):
        c2w = np.empty(0)
    if c2w.shape == (3, 4):
        c2w = np.vstack([c2w, [0.0, 0.0, 0.0, 1.0]])
    if c2w.shape != (4, 4) or not np.isfinite(c2w).all():
        raise InputError(
            f"{where}: transform_matrix is not a 4x4 matrix of finite numbers; correct or remove it"
        )
    determinant = np.linalg.det(c2w[:3, :3])
    if determinant <= 0 or np.abs(c2w[3] - [0, 0, 0, 1]).max() > _RIGID:
        raise InputError(
            f"{where}: transform_matrix has determinant {determinant:.3g} and last row {c2w[3].tolist()}, "
            "expected a rotation (right-handed OpenGL axes), a position and 0 0 0 1; correct it"
        )
    rotation = c2w[:3, :3] / np.cbrt(determinant)
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > _RIGID:
        raise InputError(
            f"{where}: transform_matrix is not rigid: its axes are off orthonormal by {error:.3g}, "
            "expected a rotation times one scale; correct it"
        )
    left, _, right = np.linalg.svd(rotation)
    rotation = left @ right * [1.0, -1.0, -1.0]  # the nearest rotation; y and z turned to OpenCV
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ c2w[:3, 3]
    return viewmat


def _lens(where: str, levels: list[dict], path: Path) -> Lens | None:
    """Intrinsics, the frame's before the file's (levels); None if only the missing photo has the size."""
    levels = [{key: value for key, value in level.items() if value is not None} for level in levels]

    number = partial(_number, where, levels)
    size = number("w"), number("h")
    if None in size:
        if not path.is_file():
            return None
        size = image_size(path)
    width, height = (round(side) for side in size)
    focal = next((level for level in levels if any(key in level for key in _FOCAL)), None)
    if focal is None:
        raise InputError(
            f"{where}: no focal length, expected fl_x (pixels) or camera_angle_x (radians); add one"
        )
    found = [_focal_length(number, focal, axis, side) for axis, side in (("x", width), ("y", height))]
    fx, fy = (value if value is not None else other for value, other in (found, found[::-1]))
    assert fx is not None  # one of both has a length, or there is no focal length
    assert fy is not None
    params = (fx, fy, number("cx", width / 2), number("cy", height / 2))
    model, distortion = _distortion(where, levels, number)
    return Lens(model, width, height, (*params, *distortion), where)


def _focal_length(number: Callable[..., Any], level: dict, axis: str, pixels: int) -> float | None:
    """In pixels, along one axis, from a level of the file: a length before an angle; None if it has none."""
    if f"fl_{axis}" in level:
        return number(f"fl_{axis}")
    if f"camera_angle_{axis}" in level:
        return _focal_of_angle(number(f"camera_angle_{axis}"), pixels)
    if f"{axis}_fov" in level:
        return _focal_of_angle(math.radians(number(f"{axis}_fov")), pixels)
    return None


def _number(where: str, levels: list[dict], key: str, default: float | None = None) -> Any:
    """The number that the first level with a value for `key` has, as float; None without either."""
    value = next((level[key] for level in levels if level.get(key) is not None), default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e99 < value < 1e99:
        found = shortened(repr(value), 80)
        raise InputError(f"{where}: {key} is {found}, expected a finite number; correct it")
    return float(value)


def _focal_of_angle(angle: float, pixels: int) -> float:
    """Focal length in pixels of a field of view in radians; 0, which no lens has, if not in (0, pi)."""
    return 0.5 * pixels / math.tan(0.5 * angle) if 0 < angle < math.pi else 0.0


def _distortion(where: str, levels: list[dict], number: Callable[..., Any]) -> tuple[str, tuple[float, ...]]:
    """COLMAP's camera model and its parameters after fx, fy, cx, cy."""
    if other := [key for key in _OTHER_LENSES if any(level.get(key) for level in levels)]:
        raise InputError(f"{where}: {other[0]} is set, expected a lens; cut perspective views first")
    model = next((level["camera_model"] for level in levels if "camera_model" in level), "OPENCV")
    fisheye = model == "OPENCV_FISHEYE" or any(level.get("is_fisheye") for level in levels)
    if not fisheye and model not in _PERSPECTIVE:
        expected = f"{', '.join(_PERSPECTIVE)}, OPENCV_FISHEYE"
        raise InputError(
            f"{where}: camera_model {shortened(repr(model), 80)}, expected one of {expected}; "
            "undistort the photos first"
        )
    if fisheye:
        return "OPENCV_FISHEYE", tuple(number(key, 0.0) for key in ("k1", "k2", "k3", "k4"))
    values = tuple(number(key, 0.0) for key in _DISTORTION)
    if any(values[4:]):
        return "FULL_OPENCV", values
    return ("OPENCV", values[:4]) if any(values) else ("PINHOLE", ())
