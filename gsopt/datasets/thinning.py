"""Thinning of point clouds of any length by voxels, in memory that depends on what is left.

Of all points in a voxel, a cube of space, there is one left: their mean, with the mean of their colours. The
voxels are as small as they can be for the number wanted: first a grid whose cells are doubled while there are
too many, so that points can come in portions of a stream; in the end a size in between.
"""

from dataclasses import replace

import numpy as np
import torch

from gsopt.datasets.scene import PointCloud

_BITS = 21  # of a voxel's number along each axis: three are one int64
_HALF = 1 << (_BITS - 1)
_SPARE = 4  # times the points wanted: voxels kept while points come
_HALVINGS = 6  # of the interval in which the last size is looked for: to within a hundredth


class Thinner:
    """Points come by `add`; `result` are the means of those in each voxel, at most `most`.

    The same points in the same portions give the same bits.

    Args:
        most: points left, at least 1.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0.0  # side of a voxel; 0 before the first point
        self.phase = 0.0  # of a voxel's side, by which the grid is off the origin
        self.shift = 0  # of the next doubling
        self.origin = np.zeros(3)
        self.keys = np.empty(0, np.int64)  # [V] of the voxels, ascending
        self.sums = np.empty((7, 0))  # [7, V] offsets from the origin, colours, number of points

    def add(self, xyz: np.ndarray, rgb: np.ndarray) -> None:
        """A portion of the points: positions [P, 3], finite, and colours [P, 3]."""
        if not len(xyz):
            return
        columns = np.empty((7, len(xyz)))
        columns[:3], columns[3:6], columns[6] = xyz.T, rgb.T, 1
        offsets = columns[:3]
        if not self.size:
            low, high = offsets.min(axis=1), offsets.max(axis=1)
            self.origin = (low + high) / 2
            self.size = float((high - low).max()) / _HALF or 1.0
        offsets -= self.origin[:, None]
        while np.abs(cells := self._cells(offsets)).max() >= _HALF:
            self._double()
        keys = np.concatenate([self.keys, _packed(cells.astype(np.int64))])
        self.keys, self.sums = _grouped(keys, np.concatenate([self.sums, columns], axis=1))
        while len(self.keys) > _SPARE * self.most:
            self._double()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions float64 [V, 3] and colours float32 [V, 3], V <= `most`."""
        sums = self.sums
        if sums.shape[1] > self.most:
            _, sums = _grouped(_cells_from(sums[:3] / sums[6], self._fitting_size()), sums)
        means = (sums[:6] / sums[6]).T
        return means[:, :3] + self.origin, means[:, 3:].astype(np.float32)

    def _cells(self, offsets: np.ndarray) -> np.ndarray:
        """Numbers along the axes of the voxels that points [3, P] are in, as floats. [3, P]"""
        with np.errstate(over="ignore"):
            return np.floor(offsets / self.size + self.phase)

    def _double(self) -> None:
        """Join the voxels by twos along each axis: 2i and 2i + 1, in the next doubling 2i - 1 and 2i.

        By turns, or those on both sides of the origin would never become one.
        """
        cells = _unpacked(self.keys) + self.shift >> 1
        self.size, self.phase, self.shift = 2 * self.size, (self.phase + self.shift) / 2, 1 - self.shift
        self.keys, self.sums = _grouped(_packed(cells), self.sums)

    def _fitting_size(self) -> float:
        """The smallest size, nearly, of which few enough voxels hold the means of the present ones."""
        means, high = self.sums[:3] / self.sums[6], self.size
        while _count(_cells_from(means, high)) > self.most:
            high *= 2
        low = high / 2
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            if middle < self.size or _count(_cells_from(means, middle)) > self.most:
                low = middle
            else:
                high = middle
        return high


def thinned(cloud: PointCloud, most: int | None) -> PointCloud:
    """A cloud of at most `most` points: itself, where it has no more or `most` is None."""
    if most is None or len(cloud.xyz) <= most:
        return cloud
    thinner = Thinner(most)
    thinner.add(cloud.xyz.numpy(), cloud.rgb.numpy())
    xyz, rgb = thinner.result()
    return replace(cloud, xyz=torch.from_numpy(xyz), rgb=torch.from_numpy(rgb))


def _packed(cells: np.ndarray) -> np.ndarray:
    """One number for each voxel, int64 [V], of three along the axes, int64 [3, V]."""
    x, y, z = cells + _HALF
    return x << 2 * _BITS | y << _BITS | z


def _unpacked(keys: np.ndarray) -> np.ndarray:
    """The inverse of `_packed`."""
    mask = (1 << _BITS) - 1
    return np.stack([keys >> 2 * _BITS, keys >> _BITS & mask, keys & mask]) - _HALF


def _cells_from(points: np.ndarray, size: float) -> np.ndarray:
    """The voxels of a size, counted from the lowest corner, that points [3, V] are in, packed. [V]"""
    low = points.min(axis=1, keepdims=True)
    return _packed(((points - low) / size).astype(np.int64) - _HALF)


def _count(keys: np.ndarray) -> int:
    """How many different keys there are; sorting is several times as fast as np.unique."""
    keys = np.sort(keys)
    return 1 + int((keys[1:] != keys[:-1]).sum())


def _grouped(keys: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different keys [V], ascending, and the sums of their columns [7, V], in the order they come in."""
    unique, place = np.unique(keys, return_inverse=True)
    sums = np.empty((len(columns), len(unique)))
    for total, column in zip(sums, columns, strict=True):
        total[:] = np.bincount(place, weights=column, minlength=len(unique))
    return unique, sums
