"""Where blocks are: cuts through the plane the cameras stand over, and which photos help which block."""

import math
import re
from dataclasses import dataclass

import numpy as np

from gsopt.errors import InputError

_ROBUST = (1.0, 99.0)  # percent: points outside say nothing of the extent of a scene


@dataclass(frozen=True)
class Cell:
    """A part of the plane: low <= coordinate < high on each axis, infinite at the outside.

    Cells that share a cut share the number, so they have no gap and no overlap.
    """

    low: tuple[float, float] = (-math.inf, -math.inf)
    high: tuple[float, float] = (math.inf, math.inf)

    def holds(self, plane: np.ndarray) -> np.ndarray:
        """Which points [P, 2] are inside. bool [P]"""
        return np.all((plane >= self.low) & (plane < self.high), axis=1)

    def grown(self, margin: np.ndarray) -> "Cell":
        """The same with `margin` [2] more on each side."""
        return Cell(tuple((self.low - margin).tolist()), tuple((self.high + margin).tolist()))

    def halves(self, axis: int, cut: float) -> tuple["Cell", "Cell"]:
        """What is below the cut on an axis, and what is not."""
        low, high = list(self.low), list(self.high)
        low[axis] = high[axis] = cut
        return Cell(self.low, (high[0], high[1])), Cell((low[0], low[1]), self.high)


def parse_blocks(text: str) -> tuple[int, ...]:
    """(N, M) of "NxM", or (K,) of "K". Raises InputError."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    numbers = tuple(int(word) for word in found.groups() if word) if found else ()
    if not numbers or min(numbers) < 1 or math.prod(numbers) < 2:
        raise InputError(f"--blocks {text}: expected 2 or more blocks, as 6, or as 3x2 along the two axes")
    return numbers


def ground_axes(viewmats: np.ndarray) -> np.ndarray:
    """The two axes along which cameras are spread most, the first one more, float64 [2, 3].

    Over a city they are level, whatever way the cameras look. `viewmats`: world-to-camera, OpenCV axes.
    [C, 4, 4]
    """
    centers = camera_centers(viewmats)
    centers = centers - centers.mean(axis=0)
    _, directions = np.linalg.eigh((centers[:, :, None] * centers[:, None, :]).sum(axis=0))  # ascending
    axes = directions[:, :0:-1].T
    return axes * np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]


def camera_centers(viewmats: np.ndarray) -> np.ndarray:
    """Where cameras stand, [C, 3]."""
    return -np.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3])


def to_plane(axes: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Coordinates of points [P, 3] on the axes, float64 [P, 2]; not by BLAS: others change no bit of one."""
    x, y, z = xyz.astype(np.float64).T
    return np.stack([a * x + b * y + c * z for a, b, c in axes], axis=1)


def divide(cameras: np.ndarray, blocks: tuple[int, ...]) -> list[Cell]:
    """Cells with equal numbers of cameras each, as far as that goes.

    Args:
        cameras: on the plane. [C, 2]
        blocks: (N, M): N strips across the first axis, each cut into M. (K,): cells are halved across their
            longer side until there are K, a third to two thirds where K is no power of two.

    Raises InputError: there are more blocks than cameras, or cameras that no cut parts.
    """
    text = "x".join(map(str, blocks))
    if math.prod(blocks) > len(cameras):
        raise InputError(
            f"--blocks {text}: more blocks than the {len(cameras)} photos to train on; give fewer blocks"
        )
    cells = [Cell()]
    if len(blocks) == 1:
        return _halved(Cell(), cameras, blocks[0], None, text)
    for axis, count in enumerate(blocks):
        cells = [part for cell in cells for part in _halved(cell, cameras, count, axis, text)]
    return cells


def _halved(cell: Cell, cameras: np.ndarray, count: int, axis: int | None, text: str) -> list[Cell]:
    if count == 1:
        return [cell]
    inside = cameras[cell.holds(cameras)]
    across = int(np.ptp(inside, axis=0).argmax()) if axis is None and len(inside) else axis or 0
    first = count // 2
    places = np.sort(inside[:, across])
    at = round(len(places) * first / count)
    if not 0 < at < len(places) or places[at - 1] == places[at]:
        raise InputError(
            f"--blocks {text}: {len(inside)} photos to train on stand where {count} blocks would be, and no "
            "cut parts them; give fewer blocks"
        )
    parts = cell.halves(across, float((places[at - 1] + places[at]) / 2))
    counts = (first, count - first)
    return [
        end for part, n in zip(parts, counts, strict=True) for end in _halved(part, cameras, n, axis, text)
    ]


def margins(cell: Cell, cameras: np.ndarray, points: np.ndarray, overlap: float) -> np.ndarray:
    """`overlap` times the size of the cell, as far as there are cameras and most of the points. [2]"""
    low, high = np.percentile(points, _ROBUST, axis=0)
    low, high = np.minimum(low, cameras.min(axis=0)), np.maximum(high, cameras.max(axis=0))
    return overlap * np.maximum(0.0, np.minimum(high, cell.high) - np.maximum(low, cell.low))
