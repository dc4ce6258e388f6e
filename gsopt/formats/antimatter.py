"""`.splat`, the format of antimatter15's viewer: 32 bytes a Gaussian, no header, no harmonics.

    0   x y z    float32, world units
    12  sizes    float32, standard deviations
    24  r g b    uint8, 0.5 + C0 * f_dc in 255ths
    27  opacity  uint8, in 255ths
    28  w x y z  uint8, 128 + 128 * component of the unit quaternion

All little endian.
"""

from pathlib import Path

import numpy as np

from gsopt.errors import InputError
from gsopt.formats.bits import SH_C0, byte, opacity_of_byte, read_bytes, sigmoid, unit

ROW = np.dtype([("xyz", "<f4", 3), ("size", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
_SMALLEST = 1e-20  # world units: stands in for sizes of zero, which have no logarithm


def read_splat_file(path: Path) -> dict[str, np.ndarray]:
    """Raw parameters of degree 0.

    Raises:
        InputError: no such file, not a whole number of rows, none, or numbers that no writer means.
    """
    content = read_bytes(path)
    if not content or len(content) % ROW.itemsize:
        raise InputError(
            f"{path}: expected {ROW.itemsize} bytes a Gaussian, found {len(content):,} bytes; "
            "download or write it again"
        )
    rows = np.frombuffer(content, ROW)
    good = np.isfinite(rows["xyz"]).all(1) & np.isfinite(rows["size"]).all(1) & (rows["size"] >= 0).all(1)
    if not good.all():
        row = int(good.argmin())
        raise InputError(
            f"{path}: row {row}: expected finite centre and sizes, found {rows['xyz'][row].tolist()} and "
            f"{rows['size'][row].tolist()} ({int((~good).sum()):,} of {len(rows):,} rows are so); "
            "is it a .splat file?"
        )
    quaternions = (rows["quat"].astype(np.float32) - 128) / 128
    return {
        "xyz": rows["xyz"].copy(),
        "feature_dc": ((rows["rgba"][:, None, :3] / 255.0 - 0.5) / SH_C0).astype(np.float32),
        "feature_rest": np.zeros((len(rows), 0, 3), np.float32),
        "scaling": np.log(rows["size"].clip(_SMALLEST)),
        "rotation": unit(quaternions).astype(np.float32),
        "opacity": opacity_of_byte(rows["rgba"][:, 3:]),
    }


def splat_file(splat: dict[str, np.ndarray]) -> bytes:
    """Raw parameters as the content of such a file; harmonics above the constant are left out."""
    rows = np.zeros(len(splat["xyz"]), ROW)
    rows["xyz"] = splat["xyz"]
    rows["size"] = np.exp(splat["scaling"])
    rows["rgba"][:, :3] = byte((0.5 + SH_C0 * splat["feature_dc"][:, 0].astype(np.float64)) * 255)
    rows["rgba"][:, 3:] = byte(sigmoid(splat["opacity"]) * 255)
    rows["quat"] = byte(unit(splat["rotation"]) * 128 + 128)
    return rows.tobytes()
