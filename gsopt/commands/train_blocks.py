"""`gsopt train-blocks`: the blocks of `gsopt partition`, one run each; see docs/scale.md."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from gsopt.blocks.partition import Block, Partition
from gsopt.blocks.runs import elsewhere, plan
from gsopt.commands.flags import parse
from gsopt.config import TrainConfig
from gsopt.errors import InputError
from gsopt.rundir import owned
from gsopt.settings import LATER, Needed, differences
from gsopt.sweep import runner
from gsopt.sweep.grid import Run
from gsopt.sweep.progress import SweepProgress
from gsopt.sweep.results import read_result

PROG = "gsopt train-blocks"
ABOUT = (
    "Train the blocks of a partition, those that are not trained yet: gsopt train-blocks DIR. All flags "
    "after -- are those of gsopt train, for every block. The same command goes on after an interruption."
)
OWN = {"scene", "output", "resume", "iterations"}  # that each block has its own of


@dataclass
class BlocksConfig:
    """Settings of `gsopt train-blocks`."""

    folder: Positional[Needed[Path]] = field(default=LATER)
    """Folder that gsopt partition has written."""
    iterations: int | None = None
    """Optimizer steps of each block; default as in train."""
    iterations_per_photo: float | None = None
    """Steps for each training photo of a block, instead."""
    jobs: int = 1
    """Runs at once; they share the processors."""
    quiet: bool = False
    """No progress display."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.folder is None:
            raise InputError(f"{PROG}: expected a folder that gsopt partition has written, found none")
        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: expected 1 or more")
        if self.iterations is not None and self.iterations_per_photo is not None:
            raise InputError("--iterations-per-photo: --iterations is given, too; leave one of them away")
        per_photo = self.iterations_per_photo
        if per_photo is not None and not (math.isfinite(per_photo) and per_photo > 0):
            raise InputError(f"--iterations-per-photo {per_photo:g}: expected more than 0")

    def steps(self, block: Block) -> int:
        """Optimizer steps of a block."""
        if self.iterations_per_photo is not None:
            return max(1, round(self.iterations_per_photo * block.train))
        return TrainConfig().iterations if self.iterations is None else self.iterations


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    own, rest = argv[:split], argv[split + 1 :]
    try:
        config = parse(OmitArgPrefixes[BlocksConfig], own, PROG, ABOUT)
    except InputError as error:
        hint = "; flags of gsopt train go after --" if "Unrecognized" in str(error) else ""
        raise InputError(f"{error}{hint}") from None
    run(config, rest, shlex.join(["gsopt", "train-blocks", *argv]))


def run(config: BlocksConfig, rest: Sequence[str], command: str) -> None:
    """Train what is left to train.

    Raises:
        InputError: nothing can be trained like that; or, after all have been tried, blocks failed.
        KeyboardInterrupt: stopped by a signal, everything saved; `command` goes on with it.
    """
    config.check()
    partition = Partition.read(config.folder)
    base = parse(TrainConfig, rest, "gsopt train", ABOUT)
    for name, *_ in differences(TrainConfig(), base):
        if name in OWN:
            raise InputError(f"--{name} after --: each block has its own; leave it away")
    runs = plan(partition, base, config.steps, config.jobs)
    failures: dict[str, str] = {}
    with owned(config.folder, str(config.folder), "another train-blocks, or a run of one, is") as lock:
        mine = [
            one for one, block in zip(runs, partition.blocks, strict=True) if not elsewhere(partition, block)
        ]
        todo = [one for one in mine if not runner.is_finished(one, "command")]
        print(f"blocks    {len(runs)}, {len(runs) - len(todo)} done: {config.folder}")
        progress = SweepProgress(len(runs), len(runs) - len(todo), config.jobs, config.quiet)

        def ended(one: Run, failure: str | None) -> None:
            if failure is not None:
                failures[one.configuration.name] = f"{failure} ({one.log})"
            progress.advance(f"{one.configuration.name}: {failure or _line(one)}")

        try:
            stopped = runner.run_all(todo, config.jobs, lock, progress, ended)
        finally:
            progress.close()
    if stopped and not all(runner.is_finished(one) for one in mine):
        raise KeyboardInterrupt(f"{stopped}, all saved; go on with: {command}")
    if failures:
        each = "; ".join(f"{name}: {text}" for name, text in failures.items())
        raise InputError(f"{len(failures)} of {len(runs)} blocks failed: {each}; to try again: {command}")
    print(f"next      gsopt merge {config.folder} --output FILE.ply")


def _line(one: Run) -> str:
    result = read_result(one)
    psnr = result.values["psnr"]
    measured = "" if psnr is None else f"PSNR {psnr:.2f} dB ({result.split} views), "
    return f"{measured}{result.values['gaussians']:,} Gaussians, {result.values['train_seconds']:.1f} s"
