"""Compressed PLY of PlayCanvas and SuperSplat: 16 bytes a Gaussian, bounds for each 256, harmonics in bytes.

    element chunk   float min_x .. max_z, min_scale_x .. max_scale_z, min_r .. max_b: the bounds of 256 rows
    element vertex  uint packed_position, packed_rotation, packed_scale, packed_color
    element sh      uchar f_rest_0 .. (of degree 1 to 3 only), channel-major as in a PLY

Positions and logarithms of sizes have 11, 10 and 11 bits from above, between the bounds of their chunk.
Colours (0.5 + C0 f_dc) and opacity have 8 each, the opacity between 0 and 1. Rotations have 2 for the largest
of w x y z and 10 for each of the others, ((v / 1023) - 0.5) sqrt(2). Files before 2024 have no bounds of
colours: 0 to 1. Harmonics are 8 ((v + 0.5) / 256 - 0.5), -4 for 0 and 4 for 255.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gsopt.datasets.ply import names_of
from gsopt.errors import InputError
from gsopt.formats.bits import (
    SH_C0,
    byte,
    join_largest,
    opacity_of_byte,
    sigmoid,
    split_largest,
    unit,
)

CHUNK = 256
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_REST = {0: 0, 9: 3, 24: 8, 45: 15}  # number of f_rest_i -> coefficients
_LARGEST_LOG = 20.0  # of a size, where the format's own writer cuts it off


def is_compressed(elements: dict[str, np.ndarray]) -> bool:
    """Whether the elements of a PLY are those of a compressed one."""
    return "vertex" in elements and PACKED[0] in (elements["vertex"].dtype.names or ())


def from_elements(path: Path, elements: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Raw parameters, float32; infinite where the bounds of a chunk are beyond it.

    Raises:
        InputError: an element or property missing, of another type, or numbers of rows that do not agree.
    """
    vertex = elements["vertex"]
    packed = [_column(path, "vertex", vertex, name, "uint", "u4") for name in PACKED]
    count = len(vertex)
    chunk = elements.get("chunk")
    if count == 0 or chunk is None or len(chunk) != -(-count // CHUNK):
        found = "none" if chunk is None else f"{len(chunk):,}"
        raise InputError(
            f"{path}: element chunk: expected one row for each {CHUNK} of {count:,} Gaussians, found "
            f"{found}; write or download it again"
        )
    place, three = packed[1] >> 30, np.stack([_bits(packed[1], shift, 10) for shift in (20, 10, 0)], axis=1)
    colours = np.stack([_bits(packed[3], shift, 8) for shift in (24, 16, 8)], axis=1)
    if "min_r" in names_of(chunk):
        colours = _between(path, chunk, ("r", "g", "b"), "", colours)
    splat = {
        "xyz": _between(path, chunk, "xyz", "", _11_10_11(packed[0])),
        "feature_dc": ((colours - 0.5) / SH_C0)[:, None],
        "feature_rest": _rest(path, elements.get("sh"), count),
        "scaling": _between(path, chunk, "xyz", "scale_", _11_10_11(packed[2])),
        "rotation": unit(join_largest(place.astype(np.int64), (three - 0.5) * np.sqrt(2))),
        "opacity": opacity_of_byte((packed[3] & 255)[:, None]),
    }
    with np.errstate(over="ignore"):  # of a damaged file: infinite then
        return {name: value.astype(np.float32) for name, value in splat.items()}


def to_elements(splat: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Raw parameters of degree 0 to 3 as elements of a PLY, and the order in which their rows are. [N]

    Rows are put along a Morton curve, so that the 256 of a chunk are near each other.
    """
    order = morton_order(splat["xyz"])
    rows = {name: value[order].astype(np.float64) for name, value in splat.items()}
    colours = 0.5 + SH_C0 * rows["feature_dc"][:, 0]
    sizes = rows["scaling"].clip(-_LARGEST_LOG, _LARGEST_LOG)
    bounds: dict[str, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}
    for name, values in (("", rows["xyz"]), ("scale_", sizes), ("c", colours)):
        low, high, parts[name] = _within(values)
        axes = "rgb" if name == "c" else "xyz"
        prefix = "" if name == "c" else name
        for side, limit in (("min", low), ("max", high)):
            bounds |= {f"{side}_{prefix}{axis}": limit[:, i] for i, axis in enumerate(axes)}
    place, three = split_largest(unit(rows["rotation"]))
    rotation = [_whole(three[:, i] / np.sqrt(2) + 0.5, 10) for i in range(3)]
    rgba = [_whole(parts["c"][:, i], 8) for i in range(3)] + [_whole(sigmoid(rows["opacity"])[:, 0], 8)]
    vertex = {
        "packed_position": _pack_11_10_11(parts[""]),
        "packed_rotation": place.astype(np.uint32) << 30
        | rotation[0] << 20
        | rotation[1] << 10
        | rotation[2],
        "packed_scale": _pack_11_10_11(parts["scale_"]),
        "packed_color": rgba[0] << 24 | rgba[1] << 16 | rgba[2] << 8 | rgba[3],
    }
    elements = {"chunk": _table(bounds, "<f4"), "vertex": _table(vertex, "<u4")}
    rest = rows["feature_rest"]
    if rest.shape[1]:
        flat = rest.transpose(0, 2, 1).reshape(len(rest), -1)
        stored = byte(np.floor((flat / 8 + 0.5) * 256))
        elements["sh"] = _table({f"f_rest_{i}": stored[:, i] for i in range(stored.shape[1])}, "u1")
    return elements, order


def morton_order(xyz: np.ndarray) -> np.ndarray:
    """Indices that put points along a Morton curve of 2^16 cells a side, equal ones in their order. [N]"""
    low, high = xyz.min(axis=0), xyz.max(axis=0)
    cells = (xyz - low) / np.where(high > low, high - low, 1) * 0xFFFF
    code = np.zeros(len(xyz), np.uint64)
    for axis in range(3):
        spread = cells[:, axis].astype(np.uint64)
        for shift, mask in ((16, 0xFF0000FF), (8, 0xF00F00F00F), (4, 0xC30C30C30C3), (2, 0x249249249249)):
            spread = (spread | spread << np.uint64(shift)) & np.uint64(mask)
        code |= spread << np.uint64(axis)
    return np.argsort(code, kind="stable")


def _rest(path: Path, sh: np.ndarray | None, count: int) -> np.ndarray:
    """[N, K-1, 3]"""
    if sh is None:
        return np.zeros((count, 0, 3))
    names = sh.dtype.names or ()
    if len(names) not in _REST or len(sh) != count:
        raise InputError(
            f"{path}: element sh: expected {count:,} rows of 9, 24 or 45 f_rest_i, found {len(sh):,} of "
            f"{len(names)}; write or download it again"
        )
    stored = [_column(path, "sh", sh, f"f_rest_{i}", "uchar", "u1") for i in range(len(names))]
    flat = np.stack(stored, axis=1) if stored else np.zeros((count, 0), np.uint8)
    values = np.where(flat == 0, 0.0, np.where(flat == 255, 1.0, (flat + 0.5) / 256))
    return ((values - 0.5) * 8).reshape(count, 3, _REST[len(names)]).transpose(0, 2, 1)


def _between(
    path: Path, chunk: np.ndarray, axes: Sequence[str], prefix: str, parts: np.ndarray
) -> np.ndarray:
    """Parts 0..1 of the way between the bounds of each chunk. [N, 3]"""
    low, high = (
        np.stack(
            [_column(path, "chunk", chunk, f"{side}_{prefix}{axis}", "float", "f4") for axis in axes], axis=1
        ).astype(np.float64)
        for side in ("min", "max")
    )
    bad = ~(np.isfinite(low) & np.isfinite(high)).all(axis=1)
    if bad.any():
        raise InputError(
            f"{path}: element chunk: row {int(bad.argmax())}: min_{prefix}{axes[0]} to "
            f"max_{prefix}{axes[-1]} are not all finite, expected numbers; write or download it again"
        )
    rows = np.arange(len(parts)) // CHUNK
    return low[rows] * (1 - parts) + high[rows] * parts


def _within(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds of each chunk as float32 [M, 3], twice, and where between them each value is, 0..1. [N, 3]"""
    starts = np.arange(0, len(values), CHUNK)
    low = np.minimum.reduceat(values, starts).astype(np.float32)
    high = np.maximum.reduceat(values, starts).astype(np.float32)
    rows = np.arange(len(values)) // CHUNK
    span = (high.astype(np.float64) - low)[rows]
    parts = (values - low[rows]) / np.where(span > 0, span, 1)
    return low, high, parts.clip(0, 1)


def _bits(packed: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """Some bits as 0..1."""
    most = (1 << bits) - 1
    return ((packed >> shift) & most) / most


def _whole(parts: np.ndarray, bits: int) -> np.ndarray:
    """0..1 as so many bits, uint32."""
    most = (1 << bits) - 1
    return np.floor(parts * most + 0.5).clip(0, most).astype(np.uint32)


def _11_10_11(packed: np.ndarray) -> np.ndarray:
    return np.stack([_bits(packed, 21, 11), _bits(packed, 11, 10), _bits(packed, 0, 11)], axis=1)


def _pack_11_10_11(parts: np.ndarray) -> np.ndarray:
    x, y, z = (_whole(parts[:, i], bits) for i, bits in enumerate((11, 10, 11)))
    return x << 21 | y << 11 | z


def _column(path: Path, element: str, table: np.ndarray, name: str, kind: str, code: str) -> np.ndarray:
    found = table.dtype[name] if name in names_of(table) else None
    if found is None or found.newbyteorder("=") != np.dtype(code):
        raise InputError(
            f"{path}: element {element}: expected a property {kind} {name}, found "
            f"{'none' if found is None else found}; write or download it again"
        )
    return table[name].astype(code)


def _table(columns: dict[str, np.ndarray], code: str) -> np.ndarray:
    table = np.empty(len(next(iter(columns.values()))), [(name, code) for name in columns])
    for name, values in columns.items():
        table[name] = values
    return table
