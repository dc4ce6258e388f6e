"""What a run's settings say about the groups of the model, and the specs that come of it."""

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gsopt.errors import InputError
from gsopt.freeze_windows import ALWAYS, FreezeWindow, check_in_run, idle_steps, parse_freezes
from gsopt.groups import GroupSpec, gaussian_specs
from gsopt.model import ATTRIBUTES
from gsopt.optim.arguments import parse_arguments
from gsopt.schedule_text import parse_schedule
from gsopt.schedules import REFERENCE_ITERATIONS, settling

LARGEST_FIT = 8.0  # on learning rates, in runs of under 469 iterations


@dataclass
class GroupOptions:
    """What may be changed of a parameter group; else it has the original 3DGS's values and --fit-rates."""

    lr: float | None = None
    """Learning rate; that of xyz in units of the scene's extent, as its default 1.6e-4."""
    weight_decay: float | None = None
    """Weight decay, as the optimizer defines it; default --weight-decay."""
    optimizer: str | None = None
    """Optimizer of this group alone, by name; default: that of --optimizer."""
    optimizer_args: tuple[str, ...] = ()
    """Its options for this group, as OPTION=VALUE: momentum=0.9, betas=0.9,0.99."""
    schedule: str | None = None
    """Factor on the rate over the steps: exp:0.01, step:1000:0.1, cosine:0.01,warmup:100; docs/groups.md."""


@dataclass
class ModelGroups:
    """One entry for each attribute of a model."""

    xyz: GroupOptions = field(default_factory=GroupOptions)
    feature_dc: GroupOptions = field(default_factory=GroupOptions)
    feature_rest: GroupOptions = field(default_factory=GroupOptions)
    scaling: GroupOptions = field(default_factory=GroupOptions)
    rotation: GroupOptions = field(default_factory=GroupOptions)
    opacity: GroupOptions = field(default_factory=GroupOptions)


@dataclass
class Groups(ModelGroups):
    """One entry for each attribute of the model, and for what is trained beside it."""

    poses: GroupOptions = field(default_factory=GroupOptions)
    exposure: GroupOptions = field(default_factory=GroupOptions)
    background: ModelGroups = field(default_factory=ModelGroups)


def check_groups(groups: Groups, schedule_iterations: int) -> None:
    """Raise InputError, naming the flag, for options that cannot be used with schedules of so many steps."""
    for name, given in named_options(groups).items():
        for option in ("lr", "weight_decay"):
            value = getattr(given, option)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{_flag(name, option)} {value:g}: expected 0 or more")
        given_changes(name, given, schedule_iterations)


def check_freezes(
    freeze: Sequence[str],
    exclude: Sequence[str],
    iterations: int,
    *,
    present: Sequence[str] = ATTRIBUTES,
    still: Sequence[str] = (),
) -> None:
    """Raise InputError for values of --freeze and --exclude that cannot be used in a run of that length.

    Args:
        freeze, exclude: as on the command line.
        iterations: of the run.
        present: names of the groups that it has.
        still: those of them that are frozen anyway.
    """
    for text in exclude:
        if attribute_name(text) not in present:
            raise InputError(
                f"--exclude {text}: no attribute is called {text!r}; there are {', '.join(present)}"
            )
    excluded = [attribute_name(text) for text in exclude]
    windows = parse_freezes(freeze, present)
    check_in_run(windows, iterations)
    if both := [name for name in windows if name in excluded]:
        raise InputError(
            f"--freeze {both[0]}, --exclude {both[0]}: what is not in the optimizer needs no freeze; give one"
        )
    idle = idle_steps(windows | dict.fromkeys((*excluded, *still), (ALWAYS,)), present, iterations)
    if idle is not None:
        raise InputError(
            f"--freeze, --exclude: in iterations {idle.start + 1} to {idle.stop} that is every attribute, "
            "so there is nothing to train; leave one out"
        )


def named_options(groups: Groups) -> dict[str, GroupOptions]:
    """The options of each group by its name: "xyz", "poses", "background.xyz"."""
    own = {name: getattr(groups, name) for name in (*ATTRIBUTES, "poses", "exposure")}
    return own | {f"background.{name}": getattr(groups.background, name) for name in ATTRIBUTES}


def group_specs(
    groups: ModelGroups,
    extent: float,
    iterations: int,
    *,
    windows: Mapping[str, Sequence[FreezeWindow]] = MappingProxyType({}),
    excluded: Container[str] = (),
    weight_decay: float = 0.0,
    fit_rates: bool = True,
    prefix: str = "",
) -> dict[str, GroupSpec]:
    """The group table of a model: the original's, with what the settings change.

    Args:
        groups: changes attribute by attribute.
        extent: size of the scene, world units.
        iterations: length of the run that schedules and rates are made for, in optimizer steps.
        windows, excluded: by names of groups; those of other models do not matter.
        weight_decay: of the groups that state none of their own.
        fit_rates: raise rates in short runs, see :func:`fitted_rate`, and let those that have no schedule of
            their own fall in the last fifth, see :func:`gsopt.schedules.settling`.
        prefix: of the names of the groups, "background." for example.
    """
    specs = gaussian_specs(extent=extent, iterations=iterations)
    for attribute in ATTRIBUTES:
        given: GroupOptions = getattr(groups, attribute)
        name = prefix + attribute
        changes: dict[str, Any] = {"weight_decay": weight_decay}
        if fit_rates:
            changes["lr"] = specs[attribute].lr * fitted_rate(attribute, iterations)
            changes["schedule"] = specs[attribute].schedule or settling(iterations)
        changes |= given_changes(name, given, iterations, unit=extent if attribute == "xyz" else 1.0)
        changes |= stillness(name, windows, excluded)
        specs[attribute] = dataclasses.replace(specs[attribute], **changes)
    return {prefix + attribute: spec for attribute, spec in specs.items()}


def given_changes(name: str, given: GroupOptions, iterations: int, unit: float = 1.0) -> dict[str, Any]:
    """Fields of a `GroupSpec` that options state.

    Args:
        name: of the group.
        given: its options.
        iterations: length of the run that a schedule is made for, in optimizer steps.
        unit: of the learning rate.

    Raises:
        InputError: a schedule or an option that cannot be read; the message names the flag.
    """
    options = parse_arguments(given.optimizer_args, _flag(name, "optimizer_args"))
    changes: dict[str, Any] = {"optimizer": given.optimizer, "options": options}
    if given.lr is not None:
        changes["lr"] = given.lr * unit
    if given.weight_decay is not None:
        changes["weight_decay"] = given.weight_decay
    if given.schedule is not None:
        try:
            changes["schedule"] = parse_schedule(given.schedule, iterations)
        except InputError as error:
            raise InputError(f"{_flag(name, 'schedule')}: {error}") from None
    return changes


def stillness(
    name: str, windows: Mapping[str, Sequence[FreezeWindow]], excluded: Container[str]
) -> dict[str, Any]:
    """Fields of a `GroupSpec` that say when the group is not trained."""
    frozen = tuple(windows.get(name, ()))
    always = frozen == (ALWAYS,)
    return {"frozen": always, "freeze": () if always else frozen, "optimize": name not in excluded}


def fitted_rate(attribute: str, iterations: int) -> float:
    """Factor on the original learning rate of an attribute: √(30,000 / iterations of the run), at most 8.

    That of opacity is the root of it. The original rates are made for 30,000 steps: with them, in a short
    run, nothing gets to where it should be; docs/optimizers.md has what this brings.
    """
    factor = min(LARGEST_FIT, max(1.0, math.sqrt(REFERENCE_ITERATIONS / iterations)))
    return math.sqrt(factor) if attribute == "opacity" else factor


def attribute_name(text: str) -> str:
    """The attribute that a flag's value names: "feature-rest" is feature_rest."""
    return text.replace("-", "_")


def _flag(name: str, option: str) -> str:
    return f"--groups.{name}.{option}".replace("_", "-")
