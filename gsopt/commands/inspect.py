"""`gsopt inspect`: the groups, parameters and optimizer state in a file, and what differs in two."""

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from gsopt.commands.flags import parse
from gsopt.errors import InputError
from gsopt.inspection import compare, open_snapshot, tables

ABOUT = (
    "Print what is in a checkpoint, the newest one of a run, a splat PLY, or a file of state_dicts by "
    "torch.save: every group, every parameter, and what its optimizer keeps. With --diff, what differs in "
    "two of them, by name. No code from a file is run."
)


@dataclass
class InspectConfig:
    """Settings of `gsopt inspect`."""

    files: Positional[tuple[Path, ...]] = ()
    """Checkpoints, folders of runs, splat PLYs, files of torch.save."""
    diff: bool = False
    """Compare two of them, matched by name."""
    json: bool = False
    """Print JSON."""

    def check(self) -> None:
        """Raise InputError for a number of files that does not fit."""
        if not self.files:
            raise InputError("gsopt inspect: expected a file or the folder of a run, found none; name one")
        if self.diff and len(self.files) != 2:
            raise InputError(f"--diff: expected two files or folders, found {len(self.files)}; name A and B")


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    words = sorted(argv, key=lambda word: not word.startswith("-"))  # flags may stand between the files
    run(parse(InspectConfig, words, "gsopt inspect", ABOUT))


def run(config: InspectConfig) -> None:
    """Print what the files hold, or what differs in two of them."""
    config.check()
    if config.diff:
        a, b = map(open_snapshot, config.files)
        found = compare(a, b)
        if config.json:
            _print_json({"a": str(a.path), "b": str(b.path), **tables.comparison_json(found)})
        else:
            print("\n".join(tables.comparison_lines(a, b, found)))
        return
    snapshots = map(open_snapshot, config.files)
    if config.json:
        made = [tables.snapshot_json(each) for each in snapshots]
        _print_json(made if len(made) > 1 else made[0])
        return
    for index, snapshot in enumerate(snapshots):
        print("\n".join([*(["", ""] if index else []), *tables.snapshot_lines(snapshot)]))


def _print_json(value: object) -> None:
    print(json_module.dumps(value, indent=2, allow_nan=False))
