"""`.spz` (Niantic, "SPZ"): columns of bytes, compressed. Read: versions 2, 3 and 4; written: 3.

Versions 2 and 3 are one gzip stream of a header of 16 bytes and the columns, one after another:

    uint32 magic 0x5053474e ("NGSP"), uint32 version, uint32 N, uint8 degree, uint8 f, uint8 flags, uint8 0
    centres    3 x int24 a row, in units of 2^-f
    opacities  uint8, in 255ths
    colours    3 x uint8: 255 (0.5 + 0.15 f_dc)
    sizes      3 x uint8: 16 (10 + log size)
    rotations  version 2: 3 x uint8, 127.5 (1 + component) of x y z, w is positive;
               version 3: uint32, from above 2 bits for the largest of x y z w, then for each of the others
               a sign and 9 bits of magnitude in units of sqrt(1/2) / 511
    harmonics  uint8, 128 + 128 c, coefficient by coefficient, channels inside

Version 4 has a header of 32 bytes in clear, in which uint8 15 is the number of columns and uint32 at 16 the
place of a table; the table has two uint64 for each column, its bytes compressed and not; then the columns
follow, each a zstd stream. Their contents are those of version 3.

The axes in the file are right, up, back; those of a PLY are right, down, front: y and z change their sign.
"""

import gzip
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from gsopt.errors import InputError, MissingExtra
from gsopt.formats.bits import (
    ROOT_HALF,
    byte,
    join_largest,
    opacity_of_byte,
    read_bytes,
    sigmoid,
    split_largest,
    unit,
)
from gsopt.geometry import num_sh_bases, sh_basis

MAGIC = b"NGSP"
_HEADER = struct.Struct("<4sIIBBBB")
_COLOR = 0.15
_MAGNITUDE = 511  # of a component, 9 bits
_BIT_24 = 1 << 23
_MOST_FRACTION = 12  # bits, as the reference writer has it
_MOST_PACKED = 1100  # times smaller than its content can a gzip or zstd stream of such data be, and more
_HAS_EXTENSIONS = 2


def read_spz(path: Path) -> dict[str, np.ndarray]:
    """Raw parameters, float32.

    Raises:
        InputError: no such file, damaged, of a version that is not read, or no Gaussians.
        MissingExtra: version 4 needs the package zstandard.
    """
    content = read_bytes(path)
    clear = content.startswith(MAGIC)
    header = content[: _HEADER.size] if clear else _gunzip(path, content, _HEADER.size)
    if len(header) < _HEADER.size:
        raise _damaged(path, f"{len(header)} bytes, less than a header")
    magic, version, count, degree, fraction, flags, _ = _HEADER.unpack(header)
    if magic != MAGIC or version not in ((4,) if clear else (2, 3)) or degree > 4 or fraction > 23:
        raise _damaged(path, f"magic {magic!r}, version {version}, degree {degree}, {fraction} fraction bits")
    if count == 0:
        raise InputError(f"{path}: no Gaussians, expected at least one; give another file")
    widths = _widths(version, degree)
    if count * sum(widths) > _MOST_PACKED * len(content):
        raise _damaged(path, f"{len(content):,} bytes for {count:,} Gaussians")
    if clear:
        columns = _columns_v4(path, content, count, widths)
    else:
        columns = _columns(path, content, count, widths, flags)
    return _unpacked(columns, count, degree, fraction, version)


def spz(splat: dict[str, np.ndarray]) -> bytes:
    """Raw parameters of degree 0 to 3 as the content of a file of version 3.

    Raises:
        InputError: a centre is farther out than the format can say.
    """
    count, rest = len(splat["xyz"]), splat["feature_rest"]
    degree = int(np.sqrt(rest.shape[1] + 1)) - 1
    flip = _flips(degree)
    xyz = splat["xyz"].astype(np.float64) * (1, -1, -1)
    fraction = _MOST_FRACTION
    while fraction >= 0 and np.abs(xyz).max(initial=0) * 2**fraction >= _BIT_24 - 1:
        fraction -= 1
    if fraction < 0:
        raise InputError(f".spz: centres up to {np.abs(xyz).max():g} away, expected less than {_BIT_24:,}")
    fixed = np.rint(xyz * 2**fraction).astype("<i4")
    parts = [
        _HEADER.pack(MAGIC, 3, count, degree, fraction, 0, 0),
        np.ascontiguousarray(fixed.reshape(-1, 1).view(np.uint8)[:, :3]).tobytes(),
        byte(sigmoid(splat["opacity"]) * 255).tobytes(),
        byte((0.5 + _COLOR * splat["feature_dc"].astype(np.float64)) * 255).tobytes(),
        byte((splat["scaling"].astype(np.float64) + 10) * 16).tobytes(),
        _packed_rotations(splat["rotation"]).tobytes(),
        byte(rest.astype(np.float64) * flip[1:, None] * 128 + 128).tobytes(),
    ]
    return gzip.compress(b"".join(parts), mtime=0)


def _unpacked(
    columns: list[np.ndarray], count: int, degree: int, fraction: int, version: int
) -> dict[str, np.ndarray]:
    centres, opacities, colours, sizes, rotations, harmonics = columns
    low = centres.reshape(count, 3, 3).astype(np.int32)
    fixed = low[..., 0] | low[..., 1] << 8 | low[..., 2] << 16
    fixed -= (fixed >= _BIT_24).astype(np.int32) << 24
    quaternions = _smallest_three(rotations) if version > 2 else _first_three(rotations)
    rest = harmonics.reshape(count, num_sh_bases(degree) - 1, 3)
    return {
        "xyz": (fixed * (1, -1, -1) / 2**fraction).astype(np.float32),
        "feature_dc": ((colours.reshape(count, 1, 3) / 255.0 - 0.5) / _COLOR).astype(np.float32),
        "feature_rest": ((rest / 128.0 - 1) * _flips(degree)[1:, None]).astype(np.float32),
        "scaling": (sizes.reshape(count, 3) / 16.0 - 10).astype(np.float32),
        "rotation": (quaternions[:, [3, 0, 1, 2]] * (1, 1, -1, -1)).astype(np.float32),
        "opacity": opacity_of_byte(opacities.reshape(count, 1)),
    }


def _smallest_three(column: np.ndarray) -> np.ndarray:
    """x y z w [N, 4] from version 3."""
    packed = column.view("<u4")
    fields = (packed[:, None] >> np.array([20, 10, 0])) & 0x3FF  # [N, 3]
    values = (fields & _MAGNITUDE) * (ROOT_HALF / _MAGNITUDE)
    return join_largest((packed >> 30).astype(np.int64), np.where(fields >> 9, -values, values))


def _first_three(column: np.ndarray) -> np.ndarray:
    """x y z w [N, 4] from version 2."""
    xyz = column.reshape(-1, 3) / 127.5 - 1
    w = np.sqrt(np.maximum(0.0, 1 - (xyz * xyz).sum(axis=1, keepdims=True)))
    return np.concatenate([xyz, w], axis=1)


def _packed_rotations(rotation: np.ndarray) -> np.ndarray:
    """[N] uint32 from w x y z [N, 4]."""
    xyzw = unit(rotation)[:, [1, 2, 3, 0]] * (1, -1, -1, 1)
    place, three = split_largest(xyzw)
    fields = np.floor(np.abs(three) / ROOT_HALF * _MAGNITUDE + 0.5).clip(0, _MAGNITUDE).astype(np.uint32)
    fields |= (three < 0).astype(np.uint32) << 9
    return (place.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]).astype(
        "<u4"
    )


def _flips(degree: int) -> np.ndarray:
    """±1 for each basis function: its sign when y and z change theirs."""
    direction = torch.nn.functional.normalize(torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64), dim=0)
    turned = direction * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    return np.sign((sh_basis(degree, turned) / sh_basis(degree, direction)).numpy())


def _widths(version: int, degree: int) -> tuple[int, ...]:
    """Bytes of a Gaussian in each column."""
    return 9, 1, 3, 3, 4 if version > 2 else 3, 3 * (num_sh_bases(degree) - 1)


def _columns(path: Path, content: bytes, count: int, widths: tuple[int, ...], flags: int) -> list[np.ndarray]:
    """Of versions 2 and 3; what extensions may follow is left alone."""
    size = _HEADER.size + count * sum(widths)
    data = _gunzip(path, content, size + 1)
    if len(data) < size or (len(data) > size and not flags & _HAS_EXTENSIONS):
        raise _damaged(path, f"{len(data):,} bytes or more for {size:,}")
    ends = np.cumsum([_HEADER.size, *(count * width for width in widths)])
    whole = np.frombuffer(data, np.uint8)
    return [whole[start:end].copy() for start, end in itertools.pairwise(ends)]


def _columns_v4(path: Path, content: bytes, count: int, widths: tuple[int, ...]) -> list[np.ndarray]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstandard", "spz", f"{path}: .spz of version 4") from None
    columns = []
    try:
        number, place = content[15], struct.unpack_from("<I", content, 16)[0]
        start = place + 16 * number
        for i, width in enumerate(widths):
            packed, size = struct.unpack_from("<QQ", content, place + 16 * i) if i < number else (0, 0)
            if size != count * width or start + packed > len(content):
                raise _damaged(path, f"column {i}: {size:,} bytes, expected {count * width:,}")
            stream = content[start : start + packed]
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            data = reader.decompress(stream) if size else b""
            if len(data) != size:
                raise _damaged(path, f"column {i}: {len(data):,} bytes, expected {size:,}")
            columns.append(np.frombuffer(data, np.uint8).copy())
            start += packed
    except (struct.error, zstandard.ZstdError, IndexError) as error:
        raise _damaged(path, str(error)) from None
    return columns


def _gunzip(path: Path, content: bytes, most: int) -> bytes:
    """At most so many bytes of the content of a gzip stream."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content, most)
    except zlib.error as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: not a complete .spz file of version 2, 3 or 4 (found {found}); download or write it again"
    )
