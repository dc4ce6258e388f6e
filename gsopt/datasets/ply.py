"""PLY files of splats, in and out; `gsopt.datasets.point_files` reads points. The parsing is plyfile's.

A splat PLY holds one vertex per Gaussian with the properties of the original 3DGS (Kerbl et al. 2023, the
`save_ply` of its code): x y z nx ny nz, f_dc_0..2, f_rest_0..3(K-1)-1, opacity, scale_0..2, rot_0..3. All are
raw parameters: opacity a logit, scales logarithms, quaternions w x y z of any norm. f_rest is channel-major
(all coefficients of red, then green, then blue); in memory it is [N, K-1, 3].
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gsopt.datasets.ply_header import check_header
from gsopt.errors import InputError

MAX_LOGIT = math.log((1 - 1e-6) / 1e-6)  # stands in for the infinite logit of an opacity of exactly 1
SPLAT_COLORS = ("f_dc_0", "f_dc_1", "f_dc_2")
_SPLAT = {  # key in memory -> properties in the file; f_rest_i come between f_dc_i and opacity
    "xyz": ("x", "y", "z"),
    "feature_dc": SPLAT_COLORS,
    "opacity": ("opacity",),
    "scaling": ("scale_0", "scale_1", "scale_2"),
    "rotation": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
_REST_COUNTS = (0, 9, 24, 45, 72)  # f_rest_i of SH degree 0 to 4


def read_splat(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a splat PLY, ASCII or binary, properties in any order and of any number type, others ignored.

    Returns raw float32 parameters: xyz [N, 3], feature_dc [N, 1, 3], feature_rest [N, K-1, 3] (K = 1 without
    f_rest), opacity [N, 1], scaling [N, 3], rotation [N, 4]. Infinite opacities (as some writers store
    an opacity of exactly 1 or 0) become the logits of 1 - 1e-6 or 1e-6, with one warning.

    Raises InputError: no such file, not a PLY, truncated, compressed, properties missing, values not finite.
    """
    path = Path(path)
    return splat_of_vertices(path, read_vertices(path))


def splat_of_vertices(path: Path, vertex: np.ndarray) -> dict[str, np.ndarray]:
    """As :func:`read_splat`, from the element `vertex` of a PLY."""
    rest_names = _rest_names(path, names_of(vertex))
    splat = {key: columns(path, vertex, names) for key, names in _SPLAT.items()}
    rest = columns(path, vertex, rest_names)  # [N, 3 * (K-1)] channel-major

    infinite = np.isinf(splat["opacity"])
    if infinite.any():
        warnings.warn(
            f"{path}: {int(infinite.sum())} of {len(vertex)} opacities are infinite; "
            f"taken as logits of +-{MAX_LOGIT:.1f} (opacity 1 - 1e-6 or 1e-6)",
            stacklevel=2,
        )
        splat["opacity"] = splat["opacity"].clip(-MAX_LOGIT, MAX_LOGIT)
    values = np.concatenate([*splat.values(), rest], axis=1)
    names = (*(name for names in _SPLAT.values() for name in names), *rest_names)
    require_finite(
        path, values, names, "remove these Gaussians, for example with splat-transform --filter-nan"
    )

    splat["feature_dc"] = splat["feature_dc"].reshape(-1, 1, 3)
    splat["feature_rest"] = rest.reshape(len(vertex), 3, len(rest_names) // 3).transpose(0, 2, 1).copy()
    return splat


def write_splat(path: str | os.PathLike, splat: dict[str, np.ndarray]) -> None:
    """Write raw parameters (keys and shapes of `read_splat`) in the binary layout of the original 3DGS.

    The file appears at once or not at all; its folder is created.

    Raises KeyError for a missing key, ValueError for a wrong shape, OSError if the file cannot be written.
    """
    from plyfile import PlyData, PlyElement

    path = Path(path)
    count, bases = len(splat["xyz"]), splat["feature_rest"].shape[1]
    shapes = {
        "xyz": (count, 3),
        "feature_dc": (count, 1, 3),
        "feature_rest": (count, bases, 3),
        "opacity": (count, 1),
        "scaling": (count, 3),
        "rotation": (count, 4),
    }
    for key, shape in shapes.items():
        if tuple(splat[key].shape) != shape:
            raise ValueError(f"write_splat: {key} is {list(splat[key].shape)}, expected {list(shape)}")
    rest = splat["feature_rest"].transpose(0, 2, 1).reshape(count, 3 * bases)
    parts = [
        (_SPLAT["xyz"], splat["xyz"]),
        (("nx", "ny", "nz"), np.zeros((count, 3))),
        (_SPLAT["feature_dc"], splat["feature_dc"].reshape(count, 3)),
        ([f"f_rest_{i}" for i in range(3 * bases)], rest),
        *((_SPLAT[key], splat[key]) for key in ("opacity", "scaling", "rotation")),
    ]
    names = [name for names, _ in parts for name in names]
    values = np.concatenate([part for _, part in parts], axis=1).astype("<f4")  # [N, 14 + 3 + 3 * (K-1)]
    vertex = np.ascontiguousarray(values).view([(name, "<f4") for name in names])[:, 0]  # [N]
    ply = PlyData([PlyElement.describe(vertex, "vertex")], byte_order="<")
    replace_file(path, ply.write)


def names_of(rows: np.ndarray) -> tuple[str, ...]:
    """Names of the columns of a structured array; none of another one."""
    return rows.dtype.names or ()


def replace_file(path: Path, write: Callable[[Any], object]) -> None:
    """Let `write(stream)` fill a temporary file beside `path`, then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_elements(path: Path, elements: dict[str, np.ndarray]) -> None:
    """Write structured arrays as the elements of a binary PLY, little endian, at once or not at all."""
    from plyfile import PlyData, PlyElement

    described = [PlyElement.describe(rows, name) for name, rows in elements.items()]
    replace_file(path, PlyData(described, byte_order="<").write)


def read_elements(path: Path) -> dict[str, np.ndarray]:
    """The elements of any PLY by name, each a structured array.

    Raises InputError: no such file, not a PLY, truncated, no element `vertex`.
    """
    from plyfile import PlyData, PlyParseError

    try:
        check_header(path)
        with np.errstate(over="ignore"):  # text too large for its type becomes inf, which is reported as such
            ply = PlyData.read(path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a PLY file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except (PlyParseError, ValueError, KeyError, MemoryError, OverflowError) as error:
        raise InputError(f"{path}: not a complete PLY file ({error}); write or download it again") from None
    names = [element.name for element in ply.elements]
    if "vertex" not in names:
        raise InputError(
            f"{path}: no element 'vertex' (found: {', '.join(names) or 'none'}); give a point cloud"
        )
    return {element.name: element.data for element in ply.elements}


def read_vertices(path: Path) -> np.ndarray:
    """The element `vertex` as a structured array [N]."""
    vertex = read_elements(path)["vertex"]
    if "packed_position" in names_of(vertex):
        raise InputError(
            f"{path}: a compressed splat PLY, expected an uncompressed one; "
            f"convert it first: gsopt convert {path.name} OUT.ply"
        )
    return vertex


def columns(path: Path, vertex: np.ndarray, names: tuple[str, ...], kind: type = np.float32) -> np.ndarray:
    """Some properties of a structured array as [N, len(names)] of a floating type.

    Raises InputError where there are none of these names, or lists.
    """
    missing = [name for name in names if name not in names_of(vertex)]
    lists = [name for name in names if name not in missing and vertex.dtype[name].kind not in "fiu"]
    if missing or lists:
        problem = f"{'lacks' if missing else 'has a list as'} {', '.join(missing or lists)}"
        found = ", ".join(names_of(vertex)) or "none"
        raise InputError(
            f"{path}: element vertex {problem}, expected a number for each (found: {found}); "
            "give a file that has them"
        )
    out: np.ndarray = np.empty((len(vertex), len(names)), kind)
    with np.errstate(over="ignore"):  # doubles too large for float32 become inf, which is reported as such
        for i, name in enumerate(names):
            out[:, i] = vertex[name]
    return out


def _rest_names(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """f_rest_0, f_rest_1, ... in order, as many as the file has."""
    count = sum(name.startswith("f_rest_") for name in names)
    if count not in _REST_COUNTS:
        raise InputError(
            f"{path}: {count} properties f_rest_i, expected {', '.join(map(str, _REST_COUNTS))} "
            "(SH degree 0 to 4); export the splat again"
        )
    return tuple(f"f_rest_{i}" for i in range(count))


def require_finite(
    path: Path, values: np.ndarray, names: tuple[str, ...], remedy: str, first: int = 0
) -> None:
    """Raise InputError where values [N, len(names)], of rows from number `first` on, are not finite."""
    bad = ~np.isfinite(values)  # [N, len(names)]
    if bad.any():
        rows = bad.any(axis=1)
        row = int(rows.argmax())
        column = int(bad[row].argmax())
        raise InputError(
            f"{path}: vertex {first + row}: {names[column]} is {values[row, column]}, expected a finite "
            f"number ({int(rows.sum())} of {len(values)} vertices are so); {remedy}"
        )
