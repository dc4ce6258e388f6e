"""A partition on disk: DIR/partition.json, DIR/scenes/BLOCK, DIR/runs/BLOCK."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsopt.blocks.division import Cell, to_plane
from gsopt.errors import InputError
from gsopt.rundir import RunFolder, read_json, write_json

FILE = "partition.json"
VERSION = 1


@dataclass(frozen=True)
class Block:
    """A block: what it owns, and how much its scene has."""

    name: str
    cell: Cell
    train: int  # photos
    test: int
    points: int


@dataclass(frozen=True)
class Partition:
    """What partition.json says. `scene`: the undivided one. `axes`: of the plane of the cells, [2, 3]."""

    folder: Path
    scene: Path
    axes: np.ndarray
    blocks: Sequence[Block]

    def scene_of(self, block: Block) -> Path:
        """The folder of a block's scene."""
        return self.folder / "scenes" / block.name

    def run_of(self, block: Block) -> RunFolder:
        """Where its run is, or will be."""
        return RunFolder(self.folder / "runs" / block.name)

    def owned(self, block: Block, xyz: np.ndarray) -> np.ndarray:
        """Which points [P, 3] in world units are the block's. bool [P]; each point is one block's."""
        return block.cell.holds(to_plane(self.axes, xyz))

    def write(self) -> None:
        """Write partition.json."""
        blocks = [
            {
                "name": block.name,
                "low": [None if math.isinf(value) else value for value in block.cell.low],
                "high": [None if math.isinf(value) else value for value in block.cell.high],
                "train": block.train,
                "test": block.test,
                "points": block.points,
            }
            for block in self.blocks
        ]
        content = {"version": VERSION, "scene": str(self.scene), "axes": self.axes.tolist(), "blocks": blocks}
        write_json(self.folder / FILE, content)

    @classmethod
    def read(cls, folder: Path) -> "Partition":
        """That of a folder. Raises InputError where there is none, or one that cannot be used."""
        path = folder / FILE
        if not path.is_file():
            raise InputError(f"{folder}: no {FILE} in it, expected a folder that gsopt partition has written")
        content = read_json(path)
        try:
            if content["version"] != VERSION:
                raise InputError(
                    f"{path}: version {content['version']}, expected {VERSION}; make it anew: gsopt partition"
                )
            axes = np.array(content["axes"], np.float64).reshape(2, 3)
            blocks = [_block(entry) for entry in content["blocks"]]
            return cls(folder, Path(content["scene"]), axes, blocks)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{path}: damaged ({reason}); make it anew: gsopt partition") from None


def _block(entry: dict[str, Any]) -> Block:
    low, high = (
        tuple(outside if value is None else float(value) for value in entry[key])
        for key, outside in (("low", -math.inf), ("high", math.inf))
    )
    if len(low) != 2 or len(high) != 2:
        raise ValueError(f"{entry['name']}: expected two numbers in low and high")
    return Block(entry["name"], Cell(low, high), *(int(entry[key]) for key in ("train", "test", "points")))
