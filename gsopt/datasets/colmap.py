"""COLMAP models, binary or text, read by pycolmap.

pycolmap trusts the sizes that a binary file states: on a truncated one it takes what is in memory for data,
allocates any amount or never ends. So the layout is walked through first (the formats are in COLMAP's
documentation, "Output Format", and for rigs.bin and frames.bin in its `reconstruction_io_binary.cc`).
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gsopt.datasets.images import Lens, Photo
from gsopt.datasets.scene import PointCloud
from gsopt.errors import InputError
from gsopt.text import shortened

if TYPE_CHECKING:
    import pycolmap

_REQUIRED = ("cameras", "images", "points3D")
TEST_NAMES = "test.txt"  # in the folder of a model: names of test photos, one a line, as in the original 3DGS
_OPTIONAL = ("rigs", "frames")  # COLMAP 3.12 and later


def find_model(root: Path) -> Path | None:
    """The folder that holds a COLMAP model, `root`/sparse/0 or `root`/sparse; None where there is none."""
    for folder in (root / "sparse" / "0", root / "sparse"):
        if any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder
    return None


def read_model(model: Path, images: Path) -> tuple[list[Photo], Callable[[], PointCloud]]:
    """Photos (expected in the folder `images`) and a function that gives the points of a COLMAP model.

    Raises InputError: files missing, truncated or contradicting each other; no images; two images of one
    name; the function for a model without points or with points that are not finite.
    """
    import pycolmap

    suffix = _check_files(model)
    try:
        reconstruction = pycolmap.Reconstruction(model)
        photos = [
            Photo(
                name=image.name,
                path=images / image.name,
                lens=_lens(model / f"cameras{suffix}", image.camera),
                viewmat=np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]]),
            )
            for image in reconstruction.images.values()
            if image.has_pose
        ]
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"{model}: COLMAP cannot read this model ({' '.join(str(error).split())}); export it again"
        ) from None
    _check_photos(model / f"images{suffix}", photos)
    return photos, lambda: _points(model / f"points3D{suffix}", reconstruction)


def with_splits(model: Path, photos: list[Photo]) -> list[Photo]:
    """The photos with the test views that the model's `test.txt` names, if there is one.

    Raises InputError: it names a photo that the model does not have.
    """
    path = model / TEST_NAMES
    if not path.is_file():
        return photos
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); write one name a line") from None
    known, test = {photo.name for photo in photos}, set()
    for number, line in enumerate(lines, 1):
        if (name := line.strip()) and name not in known:
            raise InputError(
                f"{path}: line {number}: {shortened(repr(name), 80)}, expected the name of an image of this "
                "model; correct it, or remove the file to let --test-every choose"
            )
        test.add(name)
    return [replace(photo, split="test" if photo.name in test else "train") for photo in photos]


def _lens(source: Path, camera: "pycolmap.Camera") -> Lens:
    if camera.is_spherical():
        raise InputError(
            f"{source}: camera {camera.camera_id} is {camera.model_name}, expected a lens; "
            "cut the panoramas into perspective views first"
        )
    return Lens(
        model=camera.model_name,
        width=camera.width,
        height=camera.height,
        params=tuple(camera.params.tolist()),
        source=f"{source} camera {camera.camera_id}",
    )


def _check_photos(source: Path, photos: list[Photo]) -> None:
    if not photos:
        raise InputError(f"{source}: no registered images, expected at least one; run COLMAP's mapper again")
    seen = set()
    for photo in photos:
        if photo.name in seen:
            raise InputError(
                f"{source}: image {photo.name} is there twice, expected unique names; remove one"
            )
        if not np.isfinite(photo.viewmat).all():
            raise InputError(f"{source}: image {photo.name} has a pose that is not finite; remove the image")
        seen.add(photo.name)


def _points(source: Path, reconstruction: "pycolmap.Reconstruction") -> PointCloud:
    """The points in the order of their ids."""
    points = [reconstruction.points3D[i] for i in sorted(reconstruction.point3D_ids())]
    if not points:
        raise InputError(
            f"{source}: no points, expected at least one; triangulate, or give a PLY with --init"
        )
    xyz = np.array([point.xyz for point in points], np.float32)  # [P, 3]
    rgb = np.array([point.color for point in points], np.float32) / 255.0  # [P, 3]
    bad = ~np.isfinite(xyz).all(axis=1)  # [P]
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{source}: point {row} in the order of ids is {xyz[row].tolist()}, expected finite coordinates "
            f"({int(bad.sum())} of {len(points)} points are so); remove them, or give a PLY with --init"
        )
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb))


def _check_files(model: Path) -> str:
    """The suffix of the model's files, which are there and, if binary, as long as they say."""
    files = {end: [model / f"{name}{end}" for name in _REQUIRED] for end in (".bin", ".txt")}
    suffix = max(files, key=lambda end: sum(path.is_file() for path in files[end]))
    missing = [path.name for path in files[suffix] if not path.is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in model.iterdir()))
        raise InputError(
            f"{model}: no {' and no '.join(missing)}, expected {', '.join(_REQUIRED)}, all .bin or all .txt "
            f"(found: {there}); export the model again"
        )
    if suffix == ".bin":
        for name in (*_REQUIRED, *_OPTIONAL):
            path = model / f"{name}.bin"
            if path.is_file():
                _check_layout(path, _LAYOUTS[name])
    return suffix


class _Cursor:
    """A position in a file's bytes that moves by fields; `IndexError` past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise IndexError

    def number(self, kind: str) -> int:
        """The number here (kind as in `struct`, little endian), moving past it."""
        start = self.at
        self.skip(struct.calcsize(kind))
        return struct.unpack_from(f"<{kind}", self.data, start)[0]

    def skip_text(self) -> None:
        """Past a string that a zero byte ends."""
        end = self.data.find(b"\0", self.at)
        self.skip(end + 1 - self.at if end >= 0 else len(self.data))


def _check_layout(path: Path, skip_record: Callable[[_Cursor], None]) -> None:
    """Walk over the number of records that the file's first 8 bytes state; InputError if it ends before."""
    size, record = path.stat().st_size, 0
    if size < 8:
        raise InputError(
            f"{path}: {size} bytes, not even the number of records; copy or export the model again"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        count = cursor.number("Q")
        try:
            for record in range(count):  # noqa: B007
                skip_record(cursor)
        except IndexError:
            raise InputError(
                f"{path}: truncated: its {size} bytes end in record {record} of {count}; "
                "copy or export the model again"
            ) from None


def _skip_camera(cursor: _Cursor) -> None:
    import pycolmap

    cursor.skip(4)  # id
    model = cursor.number("i")
    cursor.skip(16)  # width, height
    try:
        camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), 1.0, 1, 1)
    except ValueError:
        raise InputError(
            f"{cursor.path}: camera model {model}, which pycolmap does not know; export the model again"
        ) from None
    cursor.skip(8 * len(camera.params))


def _skip_image(cursor: _Cursor) -> None:
    cursor.skip(4 + 8 * 7 + 4)  # id, quaternion and translation, camera id
    cursor.skip_text()  # name
    cursor.skip(24 * cursor.number("Q"))  # 2D points: x, y, id of the 3D point


def _skip_point(cursor: _Cursor) -> None:
    cursor.skip(8 + 24 + 3 + 8)  # id, xyz, rgb, error
    cursor.skip(8 * cursor.number("Q"))  # track: image id, index of its 2D point


def _skip_rig(cursor: _Cursor) -> None:
    cursor.skip(4)  # id
    sensors = cursor.number("I")
    if sensors:
        cursor.skip(8)  # the reference sensor: type, id
    for _ in range(sensors - 1):
        cursor.skip(8)
        if cursor.number("B"):
            cursor.skip(8 * 7)  # pose in the rig


def _skip_frame(cursor: _Cursor) -> None:
    cursor.skip(4 + 4 + 8 * 7)  # id, rig id, pose
    cursor.skip(16 * cursor.number("I"))  # data: sensor type and id, image id


_LAYOUTS = {
    "cameras": _skip_camera,
    "images": _skip_image,
    "points3D": _skip_point,
    "rigs": _skip_rig,
    "frames": _skip_frame,
}
