"""What is cut from a trained splat and what is locked in it, step by step and back; and saving it.

edits = Edits(read(path))
edits.crop("box:-1,-1,-1,1,1,1")
edits.save(Path("small.ply"))
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsopt.datasets.ply import replace_file
from gsopt.editing import select
from gsopt.errors import InputError
from gsopt.formats import Splat, write
from gsopt.regions import OUTSIDE, parse_region

SAVED = (".ply", ".splat", ".spz")  # endings of files to save
FLAG = "the box:"  # begins messages on regions, in place of a flag
LOCKED = ".locked.npy"  # what the name of a splat gets for the rows that are locked in it


class Edits:
    """A splat and what has been done to it. Nothing is written but by `save`.

    `rows` says which Gaussians of the file are left, `locked` which of these are locked; both bool, a row
    for each Gaussian of the file.
    """

    def __init__(self, splat: Splat) -> None:
        self.whole = splat
        self.rows = torch.ones(splat.count, dtype=torch.bool)
        self.locked = torch.zeros(splat.count, dtype=torch.bool)
        self._kept = self.rows, self.locked  # that are in a file
        self._before: list[tuple[Tensor, Tensor]] = []
        self._splat: Splat | None = splat

    @property
    def splat(self) -> Splat:
        """What is left."""
        if self._splat is None:
            self._splat = self.whole if self.rows.all() else select(self.whole, self.rows)
        return self._splat

    @property
    def count(self) -> int:
        """The number of Gaussians left."""
        return int(self.rows.sum())

    @property
    def saved(self) -> bool:
        """Whether all that was done is in a file."""
        return self.rows is self._kept[0] and self.locked is self._kept[1]

    def crop(self, region: str) -> str:
        """Keep what is in a region; what was done, in words. Raises InputError where nothing is there."""
        return self._keep(self._inside(region))

    def delete(self, region: str) -> str:
        """Delete what is in a region; what was done, in words. Raises InputError for nothing, and for all."""
        return self._keep(~self._inside(region))

    def lock(self, region: str) -> str:
        """Count what is in a region among the locked Gaussians. Raises InputError where nothing is there."""
        inside = self._inside(region) & self.rows
        self._remember()
        self.locked = self.locked | inside
        return f"{int(self.locked.sum()):,} of {self.count:,} Gaussians are locked"

    def unlock(self) -> str:
        """No Gaussian is locked any more."""
        self._remember()
        self.locked = torch.zeros_like(self.locked)
        return "no Gaussian is locked"

    def undo(self) -> str:
        """Take the last of these back. Raises InputError where there is none."""
        if not self._before:
            raise InputError("undo: nothing has been done; there is nothing to take back")
        self.rows, self.locked = self._before.pop()
        self._splat = None
        return f"undone: {self.count:,} Gaussians, {int(self.locked.sum()):,} locked"

    def save(self, path: Path, *, replace: bool = False) -> str:
        """Write what is left, and beside it the rows that are locked, if any; what was written, in words.

        The result also says what the format has no room for. Raises InputError where a file is there already,
        unless `replace`, or for an ending that is none of `SAVED`.
        """
        name = path.name.lower()
        if not name.endswith(SAVED):
            raise InputError(f"{path}: expected a name that ends in one of {', '.join(SAVED)}")
        if name.endswith(".compressed.ply") and self.locked.any():
            raise InputError(
                f"{path}: would have the Gaussians in another order than {LOCKED}; give a plain .ply"
            )
        rows = path.with_name(path.name + LOCKED)
        for file in (path, rows):
            if file.exists() and not replace:
                raise InputError(f"{file}: there is something here already; give another name, or replace it")
        lost = write(path, self.splat)
        locked = self.locked[self.rows].numpy()
        if locked.any():
            replace_file(rows, lambda stream: np.save(stream, locked))
        elif rows.exists():
            rows.unlink()  # of what was replaced
        self._kept = self.rows, self.locked
        also = f"; train on with: gsopt train --init {path} --lock {rows}" if locked.any() else ""
        return "; ".join([f"wrote {self.count:,} Gaussians to {path}", *lost]) + also

    def _inside(self, region: str) -> Tensor:
        """Which Gaussians that are left are in a region. [N of the file]"""
        inside = torch.zeros_like(self.rows)
        inside[self.rows] = parse_region(region, FLAG).rows(self.splat.tensors["xyz"])
        return inside

    def _keep(self, rows: Tensor) -> str:
        left = self.rows & rows
        if not left.any():
            raise InputError(f"{FLAG} all Gaussians are in it, so none would be left; make it smaller")
        gone = self.count - int(left.sum())
        self._remember()
        self.rows, self.locked = left, self.locked & left
        self._splat = None
        return f"deleted {gone:,} Gaussians, {self.count:,} are left"

    def _remember(self) -> None:
        self._before.append((self.rows, self.locked))


def inside_out(region: str) -> str:
    """The region that is all that another is not."""
    return region.removeprefix(OUTSIDE) if region.startswith(OUTSIDE) else OUTSIDE + region
