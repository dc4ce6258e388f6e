"""`gsopt merge`: trained blocks into one model; see docs/scale.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from gsopt.blocks.merging import join
from gsopt.blocks.partition import Partition
from gsopt.commands.flags import parse
from gsopt.errors import InputError
from gsopt.formats import Splat, check_output, write
from gsopt.settings import LATER, Needed

ABOUT = (
    "Join the trained blocks of a partition into one model: gsopt merge DIR --output FILE.ply. Of each "
    "block, the Gaussians in its own region are taken."
)


@dataclass
class MergeConfig:
    """Settings of `gsopt merge`."""

    folder: Positional[Needed[Path]] = field(default=LATER)
    """Folder that gsopt partition has written, with its blocks trained."""
    output: Needed[Path] = LATER
    """File to write, in any format of gsopt convert."""
    overwrite: bool = False
    """Replace the file to write if it is there."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(OmitArgPrefixes[MergeConfig], argv, "gsopt merge", ABOUT))


def run(config: MergeConfig) -> Splat:
    """Join, write, report; what was written, before the losses of its format."""
    if config.folder is None:
        raise InputError("gsopt merge: expected a folder that gsopt partition has written, found none")
    if config.output is None:
        raise InputError("--output: expected a file, found none; give FILE.ply")
    check_output(config.output)
    if config.output.exists() and not config.overwrite:
        raise InputError(
            f"{config.output}: there is something here already; give another name, or --overwrite"
        )
    partition = Partition.read(config.folder)
    splat, counts = join(partition)
    for block, count, owned in counts:
        print(f"{block.name:<9} {owned:,} of {count:,} Gaussians are in its region")
    lost = write(config.output, splat)
    print(f"wrote     {config.output}: {splat.count:,} Gaussians, {config.output.stat().st_size:,} bytes")
    for note in dict.fromkeys([*splat.notes, *lost]):
        print(f"note      {note}")
    print(f"measure   gsopt evaluate {config.output} --scene {partition.scene}")
    return splat
