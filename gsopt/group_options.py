"""What a run's settings say about the groups of the model, and the specs that come of it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gsopt.errors import InputError
from gsopt.groups import GroupSpec, gaussian_specs
from gsopt.model import ATTRIBUTES
from gsopt.optim.arguments import parse_arguments
from gsopt.schedules import parse_schedule

FIRST_LOOK = 7_000  # of 30,000: where the original 3DGS tests and saves for the first time
FITTED_RATES = ("xyz", "feature_dc", "feature_rest", "scaling", "rotation")  # opacity is fast enough as it is
LARGEST_FIT = 4.0


@dataclass
class GroupOptions:
    """What may be changed of a parameter group; else it has the original 3DGS's values and --fit-rates."""

    lr: float | None = None
    """Learning rate; that of xyz in units of the scene's extent, as its default 1.6e-4."""
    weight_decay: float | None = None
    """Weight decay, as the optimizer defines it."""
    optimizer: str | None = None
    """Optimizer of this group alone, by name; default: that of --optimizer."""
    optimizer_args: tuple[str, ...] = ()
    """Its options for this group, as OPTION=VALUE: momentum=0.9, betas=0.9,0.99."""
    schedule: str | None = None
    """Factor on the rate over the steps: "constant", "exp:FINAL_FACTOR", "gamma:FACTOR_OF_A_STEP"."""


@dataclass
class Groups:
    """One entry for each attribute of the model."""

    xyz: GroupOptions = field(default_factory=GroupOptions)
    feature_dc: GroupOptions = field(default_factory=GroupOptions)
    feature_rest: GroupOptions = field(default_factory=GroupOptions)
    scaling: GroupOptions = field(default_factory=GroupOptions)
    rotation: GroupOptions = field(default_factory=GroupOptions)
    opacity: GroupOptions = field(default_factory=GroupOptions)


def check_groups(groups: Groups, freeze: Sequence[str], exclude: Sequence[str]) -> None:
    """Raise InputError, naming the flag, for values that cannot be used."""
    for name in ATTRIBUTES:
        for option in ("lr", "weight_decay"):
            value = getattr(getattr(groups, name), option)
            if value is not None and not (math.isfinite(value) and value >= 0):
                flag = f"--groups.{name}.{option}".replace("_", "-")
                raise InputError(f"{flag} {value:g}: expected 0 or more")
    for flag, attributes in (("--freeze", freeze), ("--exclude", exclude)):
        for attribute in attributes:
            _check_attribute(flag, attribute)
    if {attribute_name(text) for text in (*freeze, *exclude)} >= set(ATTRIBUTES):
        raise InputError(
            "--freeze, --exclude: that is every attribute, so there is nothing to train; leave one out"
        )


def group_specs(
    groups: Groups,
    extent: float,
    iterations: int,
    *,
    freeze: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fit_rates: bool = True,
) -> dict[str, GroupSpec]:
    """The group table of a run: the original's, with what the settings change.

    Args:
        groups: changes attribute by attribute.
        extent: size of the scene, world units.
        iterations: length of the run that schedules and rates are made for, in optimizer steps.
        freeze, exclude: attributes as on the command line.
        fit_rates: raise rates in short runs, see :func:`fitted_rate`.
    """
    frozen, excluded = ({attribute_name(text) for text in texts} for texts in (freeze, exclude))
    specs = gaussian_specs(extent=extent, iterations=iterations)
    for name in ATTRIBUTES:
        given: GroupOptions = getattr(groups, name)
        changes: dict[str, Any] = {"frozen": name in frozen, "optimize": name not in excluded}
        if fit_rates:
            changes["lr"] = specs[name].lr * fitted_rate(name, iterations)
        if given.lr is not None:
            changes["lr"] = given.lr * (extent if name == "xyz" else 1.0)
        if given.weight_decay is not None:
            changes["weight_decay"] = given.weight_decay
        changes["optimizer"] = given.optimizer
        changes["options"] = parse_arguments(given.optimizer_args)
        if given.schedule is not None:
            changes["schedule"] = parse_schedule(given.schedule, iterations)
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


def _check_attribute(flag: str, text: str) -> None:
    name, window, _ = text.partition("@")
    if attribute_name(name) not in ATTRIBUTES:
        raise InputError(f"{flag} {text}: no attribute is called {name!r}; there are {', '.join(ATTRIBUTES)}")
    if window:
        raise InputError(f"{flag} {text}: a window of steps is not supported; give {name} for the whole run")
