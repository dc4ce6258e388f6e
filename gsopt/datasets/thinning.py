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
        self.sums = np.empty((0, 7))  # [V, 7] offsets from the origin, colours, number of points

    def add(self, xyz: np.ndarray, rgb: np.ndarray) -> None:
        """A portion of the points: positions [P, 3], finite, and colours [P, 3]."""
        if not len(xyz):
            return
        xyz = xyz.astype(np.float64)
        if not self.size:
            low, high = xyz.min(axis=0), xyz.max(axis=0)
            self.origin = (low + high) / 2
            self.size = float((high - low).max()) / _HALF or 1.0
        offsets = xyz - self.origin
        while np.abs(cells := self._cells(offsets)).max() >= _HALF:
            self._double()
        keys = _packed(cells.astype(np.int64))
        rows = np.concatenate([offsets, rgb, np.ones((len(xyz), 1))], axis=1)  # [P, 7]
        self.keys, self.sums = _grouped(np.concatenate([self.keys, keys]), np.concatenate([self.sums, rows]))
        while len(self.keys) > _SPARE * self.most:
            self._double()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions float64 [V, 3] and colours float32 [V, 3], V <= `most`."""
        sums = self.sums
        if len(sums) > self.most:
            _, sums = _grouped(self._keys_of(self._fitting_size()), sums)
        means = sums[:, :6] / sums[:, 6:]
        return means[:, :3] + self.origin, means[:, 3:].astype(np.float32)

    def _cells(self, offsets: np.ndarray) -> np.ndarray:
        """Numbers along the axes of the voxels that points are in, as floats. [P, 3]"""
        with np.errstate(over="ignore"):
            return np.floor(offsets / self.size + self.phase)

    def _double(self) -> None:
        """Join the voxels by twos along each axis: 2i and 2i + 1, in the next doubling 2i - 1 and 2i.

        By turns, or those on both sides of the origin would never become one.
        """
        cells = _unpacked(self.keys) + self.shift >> 1
        self.size, self.phase, self.shift = 2 * self.size, (self.phase + self.shift) / 2, 1 - self.shift
        self.keys, self.sums = _grouped(_packed(cells), self.sums)

    def _keys_of(self, size: float) -> np.ndarray:
        """The voxels of another size, not below the present one, that the means are in. [V]"""
        means = self.sums[:, :3] / self.sums[:, 6:]
        return _packed(((means - means.min(axis=0)) / size).astype(np.int64) - _HALF)

    def _fitting_size(self) -> float:
        """The smallest size, nearly, of which few enough voxels are needed."""
        high = self.size
        while len(np.unique(self._keys_of(high))) > self.most:
            high *= 2
        low = high / 2
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            if middle < self.size or len(np.unique(self._keys_of(middle))) > self.most:
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
    """One number for each voxel, int64 [V], of three along the axes, int64 [V, 3]."""
    x, y, z = (cells + _HALF).T
    return x << 2 * _BITS | y << _BITS | z


def _unpacked(keys: np.ndarray) -> np.ndarray:
    """The inverse of `_packed`."""
    mask = (1 << _BITS) - 1
    return np.stack([keys >> 2 * _BITS, keys >> _BITS & mask, keys & mask], axis=1) - _HALF


def _grouped(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different keys, ascending, and the sums of their rows, added in the order they come in."""
    unique, place = np.unique(keys, return_inverse=True)
    columns = [np.bincount(place, weights=column, minlength=len(unique)) for column in rows.T]
    return unique, np.stack(columns, axis=1)
