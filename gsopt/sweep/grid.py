"""Which runs there are: configurations from text, and each of them with every seed."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gsopt.config import TrainConfig
from gsopt.device import cpu_count, pick_device
from gsopt.errors import InputError
from gsopt.rundir import RunFolder

NONE = "none"
EXCLUDE = "exclude:"
FREEZE = "freeze"  # the axis of --freeze
OWN = {  # settings of a run that the sweep gives itself: the flag to give instead
    "scene": "--scene",
    "output": "--output",
    "resume": "--output with the folder of the sweep",
    "seed": "--seeds",
    "iterations": "--iterations",
}


@dataclass(frozen=True)
class Configuration:
    """One point of the grid, to be run with every seed."""

    name: str
    choices: dict[str, str]  # axis ("freeze", "groups.xyz.lr") -> what was chosen on it, as written
    flags: tuple[str, ...]  # of `gsopt train`

    @property
    def folder(self) -> str:
        """Its folder's name: the name, with what file systems and shells dislike replaced."""
        return re.sub(r"[^\w.+=@,-]", "_", self.name.replace(":", "-"))


@dataclass(frozen=True)
class Run:
    """A configuration with a seed."""

    configuration: Configuration
    seed: int
    config: TrainConfig  # all settings as numbers, as its config.json has them
    folder: RunFolder

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.configuration.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """All that its process prints."""
        return self.folder.path / "train.log"


def configurations(freeze: Sequence[str], vary: Sequence[str]) -> list[Configuration]:
    """The product of all axes; the first axis changes slowest.

    Args:
        freeze: configurations of the axis "freeze", see :func:`freeze_flags`; none for no such axis.
        vary: other axes, as "FLAG=VALUE,VALUE", see :func:`axis`.

    Raises:
        InputError: text that is not of this form, an axis or a configuration given twice.
    """
    axes = [(FREEZE, [(text.replace(",", "+"), freeze_flags(text)) for text in freeze])] if freeze else []
    for text in vary:
        flag, values = axis(text)
        if flag in (known for known, _ in axes):
            raise InputError(f"--vary {text}: {flag} is varied already; give all its values at once")
        axes.append((flag, [(value, value_flags(flag, value)) for value in values]))
    if not axes:
        raise InputError("--freeze, --vary: found neither; say what to compare, such as --freeze none xyz")
    cells = [
        Configuration(
            name=",".join(
                value if flag == FREEZE else f"{flag}={value}"
                for (flag, _), (value, _) in zip(axes, chosen, strict=True)
            ),
            choices={flag: value for (flag, _), (value, _) in zip(axes, chosen, strict=True)},
            flags=tuple(word for _, words in chosen for word in words),
        )
        for chosen in itertools.product(*(values for _, values in axes))
    ]
    folders: dict[str, str] = {}
    for cell in cells:
        if cell.folder in folders:
            raise InputError(
                f"--freeze, --vary: {folders[cell.folder]} and {cell.name} would have the same folder; "
                "leave one out"
            )
        folders[cell.folder] = cell.name
    return cells


def freeze_flags(text: str) -> tuple[str, ...]:
    """Flags of train for what one configuration freezes.

    "none", or parts joined by "+" or ",": "scaling+rotation", "xyz@0:500+opacity@1000:". A part is what
    `gsopt train --freeze` takes; with "exclude:" before it, what `--exclude` takes. Whether there are such
    attributes and windows is for train to say.

    Raises:
        InputError: an empty part, or "none" joined with others.
    """
    parts = [part.strip() for part in re.split(r"[+,]", text)]
    if parts == [NONE]:
        return ()
    excluded = [part.removeprefix(EXCLUDE) for part in parts if part.startswith(EXCLUDE)]
    frozen = [part for part in parts if not part.startswith(EXCLUDE)]
    if NONE in parts or not all(excluded) or not all(frozen):
        raise InputError(
            f'--freeze {text}: expected "none", or attributes joined by "+" such as scaling+rotation, '
            "opacity@0:1000 or exclude:xyz"
        )
    return (*(["--freeze", *frozen] if frozen else []), *(["--exclude", *excluded] if excluded else []))


def axis(text: str) -> tuple[str, list[str]]:
    """The flag of train and its values in "FLAG=VALUE,VALUE", or "FLAG=VALUE;VALUE" for values with commas.

    Raises:
        InputError: text that is not of this form, or a flag that the sweep has itself.
    """
    flag, equals, rest = text.partition("=")
    flag = flag.strip().removeprefix("--").replace("_", "-")
    values = [value.strip() for value in rest.split(";" if ";" in rest else ",")]
    if not flag or not equals or not all(values):
        raise InputError(
            f"--vary {text}: expected a flag of gsopt train and its values, such as optimizer=adam,sgd; "
            "values that have commas are separated by semicolons"
        )
    if flag == FREEZE:
        raise InputError(f"--vary {text}: give --freeze {' '.join(values)} instead")
    if flag in OWN and flag != "iterations":
        raise InputError(f"--vary {text}: cannot be varied like that; give {OWN[flag]} to the sweep")
    return flag, values


def value_flags(flag: str, value: str) -> tuple[str, ...]:
    """A flag of train with its value: "true" and "false" are --FLAG and --no-FLAG."""
    if value.lower() == "true":
        return (f"--{flag}",)
    if value.lower() == "false":
        group, dot, leaf = flag.rpartition(".")
        return (f"--{group}{dot}no-{leaf}",)
    return (f"--{flag}", value)


def plan(
    cells: Sequence[Configuration],
    configs: Sequence[TrainConfig],
    seeds: Sequence[int],
    folder: Path,
    *,
    tests: int,
    jobs: int,
) -> list[Run]:
    """Every configuration with every seed; seeds change slowest, so that a first seed is soon complete.

    Args:
        cells, configs: the configurations and what their flags say.
        seeds: of the runs.
        folder: of the sweep; a run's is FOLDER/runs/CONFIGURATION/seed-N.
        tests: tests of each run, evenly over it; unless the flags say which.
        jobs: runs at once; they share the processors, unless the flags say how.

    Raises:
        InputError: settings that cannot be used, with the configuration's name.
    """
    runs = []
    for seed, (cell, config) in itertools.product(seeds, zip(cells, configs, strict=True)):
        run = RunFolder(folder / "runs" / cell.folder / f"seed-{seed}")
        whole = replace(
            config,
            seed=seed,
            output=run.path,
            threads=config.threads or max(1, cpu_count() // jobs),
            test_iterations=evenly(config.iterations, tests)
            if config.test_iterations is None
            else config.test_iterations,
        )
        try:
            whole.check()
            whole = whole.resolved(pick_device(whole.device, whole.backend).type)
        except InputError as error:
            raise InputError(f"{cell.name}: {error}") from None
        runs.append(Run(cell, seed, whole, run))
    return runs


def evenly(iterations: int, count: int) -> tuple[int, ...]:
    """`count` iterations, evenly over a run, the last included; fewer in runs shorter than that."""
    return tuple(sorted({max(1, round(iterations * k / count)) for k in range(1, count + 1)}))


def pick_baseline(cells: Sequence[Configuration], name: str | None) -> Configuration:
    """The configuration that others are compared with: by name, else "none", else the first.

    Raises:
        InputError: there is none of that name.
    """
    named = {cell.name: cell for cell in cells}
    if name is None:
        return named.get(NONE, cells[0])
    if name not in named:
        raise InputError(f"--baseline {name}: no such configuration; there are {' '.join(named)}")
    return named[name]
