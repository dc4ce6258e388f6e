"""What the quantised formats share: bytes as numbers, quaternions, opacities.

Arrays here are NumPy's, with one row per Gaussian, names and shapes of `gsopt.datasets.ply.read_splat`.
"""

import math
from pathlib import Path

import numpy as np

from gsopt.errors import InputError

ROOT_HALF = math.sqrt(0.5)  # no component of a unit quaternion but the largest is larger
SH_C0 = 0.5 / math.sqrt(math.pi)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def byte(values: np.ndarray) -> np.ndarray:
    """Numbers rounded to 0..255, uint8."""
    return np.floor(values + 0.5).clip(0, 255).astype(np.uint8)


def opacity_of_byte(stored: np.ndarray) -> np.ndarray:
    """Logits float32 of opacities in 255ths.

    0 and 255 stand for all that rounds to them, so their logits are finite: a quarter of a step from the end.
    """
    return logit((stored / 255.0).clip(1 / 1020, 1 - 1 / 1020)).astype(np.float32)


def logit(probability: np.ndarray) -> np.ndarray:
    """The inverse of :func:`sigmoid`."""
    return np.log(probability) - np.log1p(-probability)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In double precision."""
    return 1 / (1 + np.exp(-logits.astype(np.float64).clip(-700, 700)))


def unit(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions of length 1, float64; the identity for those of length 0. [N, 4]"""
    wide = quaternions.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.where(length > 0, wide / np.where(length > 0, length, 1), (1.0, 0.0, 0.0, 0.0))


def split_largest(quaternions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the largest component and the other three in order, signed so that the largest is positive.

    Args:
        quaternions: of length 1, components in any order. [N, 4]

    Returns:
        Places [N] and components [N, 3], each within ±`ROOT_HALF`.
    """
    rows = np.arange(len(quaternions))
    place = np.abs(quaternions).argmax(axis=1)
    signed = quaternions * np.where(quaternions[rows, place] < 0, -1.0, 1.0)[:, None]
    others = np.arange(3) + (np.arange(3) >= place[:, None])  # [N, 3]
    return place, np.take_along_axis(signed, others, axis=1)


def join_largest(place: np.ndarray, three: np.ndarray) -> np.ndarray:
    """Quaternions from what :func:`split_largest` gives. [N, 4]"""
    quaternions = np.empty((len(three), 4))
    others = np.arange(3) + (np.arange(3) >= place[:, None])
    np.put_along_axis(quaternions, others, three, axis=1)
    largest = np.sqrt(np.maximum(0.0, 1.0 - (three * three).sum(axis=1)))
    quaternions[np.arange(len(three)), place] = largest
    return quaternions
