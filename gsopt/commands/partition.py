"""`gsopt partition`: a COLMAP scene in overlapping blocks, each a scene of its own; see docs/scale.md."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gsopt.blocks.division import parse_blocks
from gsopt.blocks.partition import Partition
from gsopt.blocks.scenes import partition
from gsopt.commands.flags import parse
from gsopt.datasets import colmap_scene
from gsopt.errors import InputError
from gsopt.settings import LATER, Needed

ABOUT = (
    "Divide a COLMAP scene into blocks: gsopt partition --scene DIR --blocks 3x2 --output DIR. Then "
    "gsopt train-blocks DIR and gsopt merge DIR --output FILE.ply."
)


@dataclass
class PartitionConfig:
    """Settings of `gsopt partition`."""

    scene: Needed[Path] = LATER
    """Folder of a COLMAP scene."""
    output: Needed[Path] = LATER
    """Folder for the blocks, which must not be there."""
    blocks: Needed[str] = LATER
    """How many: 6, or 3x2 along the two axes of the ground; as many photos in each."""
    overlap: float = 0.2
    """A block has photos and points of its neighbours, as far as this share of its own size."""
    min_seen: float = 0.1
    """It also has photos from elsewhere that have at least this share of their points in it."""
    test_every: int = 8
    """Every Nth photo by name is for testing, in no block for training; 0 for none."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        for name, what in (("scene", "that of a scene"), ("output", "a new one"), ("blocks", "3x2, or 6")):
            if getattr(self, name) is None:
                raise InputError(f"--{name}: expected a value, found none; give {what}")
        if not (math.isfinite(self.overlap) and self.overlap >= 0):
            raise InputError(f"--overlap {self.overlap:g}: expected 0 or more")
        if not 0 < self.min_seen <= 1:
            raise InputError(f"--min-seen {self.min_seen:g}: expected a share above 0, at most 1")
        if self.test_every < 0:
            raise InputError(f"--test-every {self.test_every}: expected 0 or more")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise InputError(f"--output {self.output}: there is something here already; give a new folder")


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(PartitionConfig, argv, "gsopt partition", ABOUT))


def run(config: PartitionConfig) -> Partition:
    """Divide, write, report."""
    config.check()
    blocks = parse_blocks(config.blocks)
    scene = colmap_scene(config.scene, config.test_every)
    made = partition(scene, config.output, blocks, config.overlap, config.min_seen)
    print(f"scene     {config.scene}: {len(scene.train)} training, {len(scene.test)} test views")
    for block in made.blocks:
        print(f"{block.name:<9} {block.train:,} training, {block.test:,} test views, {block.points:,} points")
    print(f"next      gsopt train-blocks {config.output}")
    return made
