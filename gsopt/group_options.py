"""What a run's settings say about the groups of the model, and the specs that come of it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gsopt.errors import InputError
from gsopt.freeze_windows import ALWAYS, check_in_run, idle_steps, parse_freezes
from gsopt.groups import GroupSpec, gaussian_specs
from gsopt.model import ATTRIBUTES
from gsopt.option_text import parse_options
from gsopt.schedule_text import parse_schedule
from gsopt.schedules import Schedule

FIRST_LOOK = 7_000  # of 30,000: where the original 3DGS tests and saves for the first time
FITTED_RATES = ("xyz", "feature_dc", "feature_rest", "scaling", "rotation")  # opacity is fast enough as it is
LARGEST_FIT = 4.0
OWN_FLAGS = {  # options that are set elsewhere: where
    "lr": "--groups.NAME.lr",
    "weight_decay": "--groups.NAME.weight-decay",
    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), "the whole optimizer"),
}


@dataclass
class GroupOptions:
    """What may be changed of a parameter group; else it has the original 3DGS's values and --fit-rates."""

    lr: float | None = None
    """Learning rate; that of xyz in units of the scene's extent, as its default 1.6e-4."""
    weight_decay: float | None = None
    """Weight decay, as the optimizer defines it; default --weight-decay."""
    schedule: str | None = None
    """Factor on the rate over the steps: exp:0.01, step:1000:0.1, cosine:0.01,warmup:100; docs/groups.md."""
    options: tuple[str, ...] = ()
    """Further options of the optimizer for this group: momentum=0.9 betas=0.9,0.99 nesterov=true."""


@dataclass
class Groups:
    """One entry for each attribute of the model."""

    xyz: GroupOptions = field(default_factory=GroupOptions)
    feature_dc: GroupOptions = field(default_factory=GroupOptions)
    feature_rest: GroupOptions = field(default_factory=GroupOptions)
    scaling: GroupOptions = field(default_factory=GroupOptions)
    rotation: GroupOptions = field(default_factory=GroupOptions)
    opacity: GroupOptions = field(default_factory=GroupOptions)


def check_groups(
    groups: Groups,
    freeze: Sequence[str],
    exclude: Sequence[str],
    *,
    iterations: int,
    schedule_iterations: int,
) -> None:
    """Raise InputError, naming the flag, for values that cannot be used in a run of so many iterations."""
    for name in ATTRIBUTES:
        given: GroupOptions = getattr(groups, name)
        for option in ("lr", "weight_decay"):
            value = getattr(given, option)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{_flag(name, option)} {value:g}: expected 0 or more")
        _schedule(name, given, schedule_iterations)
        parse_options(given.options, _flag(name, "options"), OWN_FLAGS)
    check_freezes(freeze, exclude, iterations)


def check_freezes(freeze: Sequence[str], exclude: Sequence[str], iterations: int) -> None:
    """Raise InputError for values of --freeze and --exclude that cannot be used in a run of that length."""
    for text in exclude:
        if attribute_name(text) not in ATTRIBUTES:
            raise InputError(
                f"--exclude {text}: no attribute is called {text!r}; there are {', '.join(ATTRIBUTES)}"
            )
    excluded = [attribute_name(text) for text in exclude]
    windows = parse_freezes(freeze, ATTRIBUTES)
    check_in_run(windows, iterations)
    if both := [name for name in windows if name in excluded]:
        raise InputError(
            f"--freeze {both[0]}, --exclude {both[0]}: what is not in the optimizer needs no freeze; give one"
        )
    idle = idle_steps(windows | dict.fromkeys(excluded, (ALWAYS,)), ATTRIBUTES, iterations)
    if idle is not None:
        raise InputError(
            f"--freeze, --exclude: in iterations {idle.start + 1} to {idle.stop} that is every attribute, "
            "so there is nothing to train; leave one out"
        )


def group_specs(
    groups: Groups,
    extent: float,
    iterations: int,
    *,
    freeze: Sequence[str] = (),
    exclude: Sequence[str] = (),
    weight_decay: float = 0.0,
    fit_rates: bool = True,
) -> dict[str, GroupSpec]:
    """The group table of a run: the original's, with what the settings change.

    Args:
        groups: changes attribute by attribute.
        extent: size of the scene, world units.
        iterations: length of the run that schedules and rates are made for, in optimizer steps.
        freeze, exclude: attributes as on the command line.
        weight_decay: of the groups that state none of their own.
        fit_rates: raise rates in short runs, see :func:`fitted_rate`.
    """
    windows, excluded = parse_freezes(freeze, ATTRIBUTES), {attribute_name(text) for text in exclude}
    specs = gaussian_specs(extent=extent, iterations=iterations)
    for name in ATTRIBUTES:
        given: GroupOptions = getattr(groups, name)
        frozen = windows.get(name, ())
        changes: dict[str, Any] = {
            "frozen": frozen == (ALWAYS,),
            "freeze": () if frozen == (ALWAYS,) else frozen,
            "optimize": name not in excluded,
            "weight_decay": weight_decay if given.weight_decay is None else given.weight_decay,
            "options": parse_options(given.options, _flag(name, "options"), OWN_FLAGS),
        }
        if fit_rates:
            changes["lr"] = specs[name].lr * fitted_rate(name, iterations)
        if given.lr is not None:
            changes["lr"] = given.lr * (extent if name == "xyz" else 1.0)
        if (schedule := _schedule(name, given, iterations)) is not None:
            changes["schedule"] = schedule
        specs[name] = dataclasses.replace(specs[name], **changes)
    return specs


def fitted_rate(attribute: str, iterations: int) -> float:
    """Factor on the original learning rate of an attribute: √(7,000 / iterations of the run).

    At most 4, and 1 from 7,000 iterations on. The original rates are made for 30,000: with them, in a short
    run, nothing but opacities gets to where it should be; docs/performance.md has what this brings.
    """
    if attribute not in FITTED_RATES:
        return 1.0
    return min(LARGEST_FIT, max(1.0, math.sqrt(FIRST_LOOK / iterations)))


def attribute_name(text: str) -> str:
    """The attribute that a flag's value names: "feature-rest" is feature_rest."""
    return text.replace("-", "_")


def _schedule(name: str, given: GroupOptions, iterations: int) -> Schedule | None:
    """The schedule given for a group; None if there is none."""
    if given.schedule is None:
        return None
    try:
        return parse_schedule(given.schedule, iterations)
    except InputError as error:
        raise InputError(f"{_flag(name, 'schedule')}: {error}") from None


def _flag(name: str, option: str) -> str:
    return f"--groups.{name}.{option}".replace("_", "-")
