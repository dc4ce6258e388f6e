"""Point clouds from files: PLY of any program, .npy and .npz.

    points = load_points("scan.ply", most=200_000)

A file is read in portions. Thinned, a cloud of any number of points takes memory for those that are left; but
that of a text PLY and of an .npz is in memory as a whole.
"""

import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gsopt.datasets.ply import SPLAT_COLORS, columns, names_of, read_vertices, require_finite
from gsopt.datasets.scene import PointCloud
from gsopt.datasets.thinning import Thinner
from gsopt.errors import InputError
from gsopt.geometry import sh_to_rgb

POINT_FILES = (".ply", ".npy", ".npz")
PORTION = 1 << 19  # points read at a time
_XYZ = ("x", "y", "z")
_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_NPZ = {"xyz": ("xyz", "points"), "rgb": ("rgb", "colors")}  # names of arrays
_BEST_DEFLATE = 1032  # bytes that one byte of a zip file can stand for, at most
_GREY = 0.5
# what numpy and zipfile raise for damaged files
_DAMAGE = (
    *(ValueError, EOFError, KeyError, TypeError, OverflowError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, RuntimeError, MemoryError),
)
_REMEDY = "remove these points from the file"


@dataclass(frozen=True)
class PointFile:
    """A file of points, opened but not read.

    count: number of points, at least 1. portion: positions [P, 3], float32 or float64, and colours float32
        [P, 3] of a slice of them, grey where `colored` is False; InputError for numbers that are not finite.
    """

    path: Path
    count: int
    colored: bool
    portion: Callable[[slice], tuple[np.ndarray, np.ndarray]]

    def portions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All, in their order."""
        for first in range(0, self.count, PORTION):
            yield self.portion(slice(first, min(first + PORTION, self.count)))


def load_points(path: str | os.PathLike, *, most: int | None = None) -> PointCloud:
    """Read a cloud of points; `read_points` says which, but all is float32."""
    cloud = read_points(path, most=most)
    return PointCloud(cloud.xyz.float(), cloud.rgb, cloud.path)


def read_points(path: str | os.PathLike, *, most: int | None = None) -> PointCloud:
    """Read a cloud of points, its positions float64 where the file has them so.

    PLY: text or binary of both byte orders, properties in any order and of any number type, other elements
    and properties ignored. Colours are red, green, blue (also r, g, b or diffuse_red, ...): unsigned integers
    over their whole range or floats in 0..1; of a splat file the colour of the constant band (f_dc_i).
    .npy: [P, 3], or [P, 6] with colours in 0..1, or with named fields as in a PLY. .npz: arrays `xyz` or
    `points` [P, 3], and `rgb` or `colors` [P, 3] if there are colours. Without colours all points are grey,
    and a warning says so.

    Args:
        path: the file.
        most: a cloud of more points is thinned to at most so many, by voxels: see `gsopt.datasets.thinning`.

    Raises InputError: no such file, not one of these, truncated, no points, values not finite.
    """
    file = open_points(path)
    if most is None or file.count <= most:
        parts = list(file.portions())
        xyz, rgb = (np.concatenate(column) for column in zip(*parts, strict=True))
    else:
        thinner = Thinner(most)
        for part in file.portions():
            thinner.add(*part)
        xyz, rgb = thinner.result()
    if not file.colored:
        warnings.warn(f"{file.path}: no colours in it; all {file.count:,} points begin as grey", stacklevel=2)
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb), file.path)


def load_positions(path: str | os.PathLike) -> np.ndarray:
    """The positions alone of a cloud of points, float32 [P, 3]. Raises InputError as `read_points`."""
    return np.concatenate([xyz.astype(np.float32) for xyz, _ in open_points(path).portions()])


def open_points(path: str | os.PathLike) -> PointFile:
    """A file of points, of which only the header is read now. Raises InputError as `read_points`."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        file = _of_array(path, _npy(path))
    elif suffix == ".npz":
        file = _of_arrays(path, _npz(path))
    else:
        file = _of_rows(path, read_vertices(path))
    if file.count == 0:
        raise InputError(f"{path}: no points, expected at least one; give another file")
    return file


def _of_rows(path: Path, rows: np.ndarray) -> PointFile:
    """A structured array [P]: the element `vertex` of a PLY, or the like."""
    names = names_of(rows)
    columns(path, rows[:0], _XYZ)  # are they there?
    wide = np.float64 if any(_is_wide(rows.dtype[name]) for name in _XYZ) else np.float32
    of_splat = all(name in names for name in SPLAT_COLORS)
    triple = next((triple for triple in _COLORS if all(name in names for name in triple)), None)

    def portion(some: slice) -> tuple[np.ndarray, np.ndarray]:
        part = rows[some]
        xyz = columns(path, part, _XYZ, wide)
        _check_positions(path, xyz, some)
        if of_splat:
            rgb = sh_to_rgb(torch.from_numpy(columns(path, part, SPLAT_COLORS))).numpy()
            require_finite(path, rgb, SPLAT_COLORS, _REMEDY, some.start)
            return xyz, rgb.clip(0.0, 1.0)
        if triple is None:
            return xyz, _grey(xyz)
        return xyz, _colors(path, columns(path, part, triple), rows.dtype[triple[0]], some)

    return PointFile(path, len(rows), of_splat or triple is not None, portion)


def _of_array(path: Path, array: np.ndarray) -> PointFile:
    """An array [P, 3], [P, 6] or with named fields."""
    if array.dtype.names is not None and array.ndim == 1:
        return _of_rows(path, array)
    if array.ndim != 2 or array.shape[1] not in (3, 6) or array.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: an array of {array.dtype} {list(array.shape)}, expected numbers [P, 3] or, with "
            "colours in 0..1, [P, 6]; save it so, or an .npz of xyz and rgb"
        )
    parts = {"xyz": array[:, :3]} | ({"rgb": array[:, 3:]} if array.shape[1] == 6 else {})
    return _of_arrays(path, parts)


def _of_arrays(path: Path, arrays: dict[str, np.ndarray]) -> PointFile:
    """Arrays xyz [P, 3] and perhaps rgb [P, 3]."""
    for name, array in arrays.items():
        shape = (len(arrays["xyz"]) if array.ndim else 0, 3)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: {name} is an array of {array.dtype} {list(array.shape)}, expected numbers "
                f"{'[P, 3]' if name == 'xyz' else list(shape)}; save it so"
            )
    xyz, rgb = arrays["xyz"], arrays.get("rgb")
    wide = np.float64 if _is_wide(xyz.dtype) else np.float32

    def portion(some: slice) -> tuple[np.ndarray, np.ndarray]:
        part = np.array(xyz[some], wide)
        _check_positions(path, part, some)
        if rgb is None:
            return part, _grey(part)
        return part, _colors(path, rgb[some].astype(np.float32), rgb.dtype, some)

    return PointFile(path, len(xyz), rgb is not None, portion)


def _npy(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped into memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise _unreadable(path, error) from None
    except _DAMAGE as error:
        raise _not_numpy(path, error) from None


def _npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays xyz and rgb, by these names, in a .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name.removesuffix(".npy"): name for name in archive.namelist()}
            found = {
                key: next((there[name] for name in names if name in there), None)
                for key, names in _NPZ.items()
            }
            if found["xyz"] is None:
                raise InputError(
                    f"{path}: no array {' or '.join(_NPZ['xyz'])}, expected one [P, 3] "
                    f"(found: {', '.join(sorted(there)) or 'none'}); save it under this name"
                )
            return {key: _member(path, archive, name) for key, name in found.items() if name}
    except InputError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    except _DAMAGE as error:
        raise _not_numpy(path, error) from None


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of a .npz file, if it can be as large as its header says."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise ValueError(f"version {version} of {name}")
        shape, _, kind = header(stream)
    needed = kind.itemsize * int(np.prod(shape, dtype=object))
    if needed > min(size, _BEST_DEFLATE * path.stat().st_size):
        raise ValueError(f"{name} is too short for its shape {list(shape)}")
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file; give the path of a cloud of points")
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check the path")


def _not_numpy(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{path}: not a complete file of numpy ({reason}); write or download it again")


def _is_wide(kind: np.dtype) -> bool:
    """Whether float32 cannot hold all numbers of a type."""
    return kind.itemsize > (4 if kind.kind == "f" else 2)


def _check_positions(path: Path, xyz: np.ndarray, some: slice) -> None:
    with np.errstate(over="ignore"):  # doubles too large for float32 become inf, which is reported as such
        require_finite(path, xyz.astype(np.float32, copy=False), _XYZ, _REMEDY, some.start)


def _grey(xyz: np.ndarray) -> np.ndarray:
    return np.full((len(xyz), 3), _GREY, np.float32)


def _colors(path: Path, rgb: np.ndarray, kind: np.dtype, some: slice) -> np.ndarray:
    """Colours as 0..1, from float32 [P, 3] that were of the type `kind` in the file."""
    if kind.kind == "u":
        return rgb / np.float32(np.iinfo(kind).max)
    outside = ~((rgb >= 0) & (rgb <= 1)).all(axis=1)  # NaN is outside, too
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            f"{path}: vertex {some.start + row}: colour {rgb[row].tolist()} of type {kind}, expected 0 to 1; "
            "store colours as uchar 0 to 255 or as float 0 to 1"
        )
    return rgb
