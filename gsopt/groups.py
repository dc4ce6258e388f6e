"""Named parameter groups: what a group is, the table of the Gaussians' groups, and building them for torch.

The groups are plain torch parameter-group dicts, so any `torch.optim` optimizer takes them. Their
parameters are given by name; torch keeps the names (`param_names`) and writes them into its `state_dict`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gsopt.errors import InputError
from gsopt.freeze_windows import FreezeWindow, check_apart
from gsopt.schedules import LogLinear, Schedule

_OWN_KEYS = frozenset({"params", "param_names", "lr", "weight_decay", "name", "frozen", "optimizer"})


@dataclass(frozen=True)
class GroupSpec:
    """What is to happen to the parameters of one group; nothing is inherited from another group.

    Args:
        lr: learning rate, before the schedule's factor; 0 or more.
        schedule: function from the number of optimizer steps done to a factor on `lr`; None leaves the
            learning rate alone, for a scheduler of torch to drive it, for example.
        weight_decay: 0 or more. How it acts is the optimizer's affair.
        frozen: the group starts frozen, see :func:`freeze`.
        freeze: windows of steps in which it is frozen, see :func:`apply_freezes`; a pair (start, end) will do
            for a :class:`FreezeWindow`.
        optimize: False keeps the parameters out of the optimizer altogether; they then do not require grad.
        options: further options of the optimizer for this group, such as `betas` or `momentum`.
        optimizer: name of the optimizer that updates this group, such as "sgd", in an optimizer made by
            `gsopt.build_optimizer`; None is the one of all groups. A class of torch called directly does not
            look at it.

    Raises:
        ValueError: a value is out of range, an option has a field of its own here, windows overlap, or there
            are windows where the group is frozen anyway or not in the optimizer.
    """

    lr: float
    schedule: Schedule | None = None
    weight_decay: float = 0.0
    frozen: bool = False
    optimize: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    freeze: tuple[FreezeWindow, ...] = ()
    optimizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"GroupSpec: {name}: expected a number of 0 or more, found {value!r}")
        taken = sorted(_OWN_KEYS.intersection(self.options))
        if taken:
            raise ValueError(f"GroupSpec: options: {', '.join(taken)} cannot be an option; use the field")
        self._check_windows()

    def _check_windows(self) -> None:
        windows = tuple(w if isinstance(w, FreezeWindow) else FreezeWindow(*w) for w in self.freeze)
        object.__setattr__(self, "freeze", windows)
        check_apart(windows)
        if windows and (self.frozen or not self.optimize):
            reason = "frozen=True" if self.frozen else "optimize=False"
            raise ValueError(f"GroupSpec: freeze: windows have no effect with {reason}; leave one out")

    def frozen_at(self, step: int) -> bool:
        """Whether the update after `step` optimizer steps leaves the group alone."""
        return self.frozen or any(step in window for window in self.freeze)


def gaussian_specs(
    extent: float, iterations: int, *, delay_steps: int = 0, delay_factor: float = 0.01
) -> dict[str, GroupSpec]:
    """The groups of a `GaussianModel` with the rates of the original 3DGS (Kerbl et al. 2023).

    Args:
        extent: size of the scene, world units: 1.1 x the largest distance of a camera from their mean.
        iterations: length of the run in optimizer steps; the positions' rate falls to 1/100 over it.
        delay_steps: slow start of the positions' rate, in steps; 0 is none.
        delay_factor: factor on the positions' rate at step 0 of a slow start.

    Raises:
        InputError: `extent` is not a positive number.
        ValueError: `iterations` or the delay is out of range.
    """
    if not (math.isfinite(extent) and extent > 0):
        raise InputError(
            f"extent of the scene: expected a positive length, found {extent!r}; "
            "the cameras must not all stand in one place"
        )
    decay = LogLinear(0.01, iterations, delay_steps, delay_factor)
    # fmt: off
    return {
        "xyz":          GroupSpec(lr=1.6e-4 * extent, schedule=decay),
        "feature_dc":   GroupSpec(lr=2.5e-3),
        "feature_rest": GroupSpec(lr=2.5e-3 / 20),
        "scaling":      GroupSpec(lr=5e-3),
        "rotation":     GroupSpec(lr=1e-3),
        "opacity":      GroupSpec(lr=2.5e-2),
    }
    # fmt: on


def build_groups(
    models: nn.Module | Mapping[str, nn.Module | nn.Parameter] | Iterable[tuple[str, nn.Parameter]],
    specs: Mapping[str, GroupSpec],
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: each trainable parameter in exactly one, as `specs` say.

    A parameter's full name is its name in its module, after the module's key and a dot if `models` is a
    dict; the key "" adds nothing. The spec it gets is the first that there is of: its full name; the start of
    it ("poses" for "poses.weight"), the longest first; the end of it ("xyz" for "coarse.xyz"), the longest
    first. So "coarse.xyz" beats "xyz". Parameters with one spec make one group of its name; in a dict of
    modules a spec for the end of the name makes one group a module, "coarse.xyz" and "fine.xyz".

    A parameter that does not require grad stays so: its group begins frozen. It needs no spec. A group with
    a window that begins at step 0 begins frozen, too; :func:`apply_freezes` does the rest.

    Args:
        models: a module, a dict of modules and parameters, or a list of named parameters.
        specs: group name to :class:`GroupSpec`.

    Returns:
        Dicts with the keys "name", "params" (pairs of name and parameter), "lr", "weight_decay", "frozen",
        the spec's options and, where it has one, its "optimizer", in the order of the parameters.

    Raises:
        TypeError: `models` is none of the above.
        ValueError: a trainable parameter without spec, a spec without parameter (the message lists both), a
            parameter under two names, or nothing left to optimize.
    """
    found = list(_named_parameters(models))
    _check_names(found)
    _check_coverage([name for _, name, _ in found], [name for _, name, p in found if p.requires_grad], specs)
    groups: dict[str, dict[str, Any]] = {}
    made_by: dict[str, str] = {}
    for owner, name, parameter in found:
        key = _match(name, specs)
        if key is None:
            continue
        spec = specs[key]
        if spec.frozen_at(0) or not spec.optimize:
            _stop_gradient(parameter)
        if not spec.optimize:
            continue
        is_start = name == key or name.startswith(key + ".")
        group_name = key if is_start or not owner else f"{owner}.{key}"
        if made_by.setdefault(group_name, key) != key:
            raise ValueError(
                f'groups: the specs "{made_by[group_name]}" and "{key}" both make a group "{group_name}"; '
                "name one of them by the full name of its parameters"
            )
        options = {"lr": spec.lr, "weight_decay": spec.weight_decay, "frozen": True, **spec.options}
        if spec.optimizer is not None:
            options["optimizer"] = spec.optimizer
        group = groups.setdefault(group_name, {"name": group_name, "params": [], **options})
        group["params"].append((name, parameter))
        group["frozen"] &= not parameter.requires_grad
    if not groups:
        raise ValueError("groups: nothing is left to optimize; let at least one spec have optimize=True")
    return list(groups.values())


def freeze(optimizer: Optimizer, names: str | Iterable[str]) -> None:
    """Freeze groups: from now on their values and moments keep their bits, in every optimizer.

    Their parameters stop requiring grad and lose a gradient they may have, and torch's optimizers leave a
    parameter without gradient alone, momentum and weight decay included. The groups stay in the optimizer.

    Raises:
        InputError: a name is not a group's; the message lists the choices. Then nothing is frozen.
    """
    _set_frozen(optimizer, names, True)


def unfreeze(optimizer: Optimizer, names: str | Iterable[str]) -> None:
    """Undo :func:`freeze`: the groups train on with the moments they had.

    Raises:
        InputError: a name is not a group's; the message lists the choices. Then nothing is thawed.
    """
    _set_frozen(optimizer, names, False)


def apply_freezes(optimizer: Optimizer, specs: Mapping[str, GroupSpec], step: int) -> None:
    """Freeze and unfreeze the groups whose spec has windows as the next update wants it.

    Call it before each step, ahead of the forward pass. What it does depends on `specs` and `step` alone, so
    it can go on from any step with any windows. Of groups with windows it undoes what :func:`freeze` and
    :func:`unfreeze` did; all others it leaves alone.

    Args:
        optimizer: with groups from :func:`build_groups`, or any groups with a "name".
        specs: as for :func:`build_groups`; a group's spec is found by its name as a parameter's is.
        step: number of optimizer steps done: 0 before the first update, as a schedule counts them.

    Raises:
        ValueError: a spec with windows is no group's; the message lists the groups.
    """
    windowed = {name for name, spec in specs.items() if spec.freeze}
    if not windowed:
        return
    of_group = _keys_of_groups(optimizer, specs, windowed, "freeze windows")
    for frozen in (True, False):
        names = [n for n, k in of_group.items() if k in windowed and specs[k].frozen_at(step) == frozen]
        _set_frozen(optimizer, names, frozen)


class GroupScheduler(LRScheduler):
    """Sets the learning rate of each group that has a schedule to ``lr * schedule(step)``, and no other.

    A torch `LRScheduler` like any other: call `step()` once after each `optimizer.step()`; what it counts
    is those calls, so a schedule's steps are optimizer steps and not epochs. The rate is computed anew from
    the step, so the step is all of its state. If a second scheduler drives a group that has a schedule,
    this one overwrites what that one set; groups without schedule are left to the other.

    Args:
        optimizer: with named groups.
        specs: group name to spec, for each group that this scheduler is to drive.
    """

    def __init__(self, optimizer: Optimizer, specs: Mapping[str, GroupSpec]) -> None:
        self._specs = dict(specs)
        self._factors: dict[str, float] = {}
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of all groups at the present step, in the order of the groups."""
        return [
            self._factors.get(name, 1.0) * spec.lr * spec.schedule(self.last_epoch)
            if spec is not None
            else _copied(group["lr"])
            for group in self.optimizer.param_groups
            for name in (group.get("name"),)
            for spec in (self._specs.get(name),)
        ]

    def scale(self, name: str, factor: float) -> None:
        """From now on the rate of a group is `factor` x its schedule, or, without one, x what it began as."""
        group = next(group for group in self.optimizer.param_groups if group.get("name") == name)
        self._factors[name] = factor
        if name not in self._specs:
            group["lr"] = factor * group["initial_lr"]
        self._go_to(self.last_epoch)

    def step(self, epoch: int | None = None) -> None:
        """To the rates of the next step. The first goes through torch, which warns of a wrong order."""
        if epoch is not None or self._step_count < 2:
            super().step(epoch)
        else:
            self._go_to(self.last_epoch + 1)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go to a saved step and set the learning rates of that step."""
        self._go_to(state_dict["step"])

    def _go_to(self, step: int) -> None:
        self.last_epoch, self._step_count = step, step + 1
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)  # a captured graph reads this very tensor
            else:
                group["lr"] = lr


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def build_scheduler(optimizer: Optimizer, specs: Mapping[str, GroupSpec]) -> GroupScheduler:
    """The scheduler that drives the groups of `optimizer` whose spec has a schedule.

    Args:
        optimizer: with groups from :func:`build_groups`, or any groups with a "name".
        specs: as for :func:`build_groups`; a group's spec is found by its name as a parameter's is.

    Raises:
        ValueError: a spec with a schedule is no group's; the message lists the groups.
    """
    scheduled = {name for name, spec in specs.items() if spec.schedule is not None and spec.optimize}
    of_group = _keys_of_groups(optimizer, specs, scheduled, "schedule")
    return GroupScheduler(optimizer, {name: specs[key] for name, key in of_group.items() if key in scheduled})


def _named_parameters(models: Any) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Owner (the key of a module in a dict, else ""), full name and parameter."""
    if isinstance(models, nn.Module):
        yield from (("", name, parameter) for name, parameter in models.named_parameters())
    elif isinstance(models, Mapping):
        for key, value in models.items():
            if isinstance(value, nn.Module):
                prefix = f"{key}." if key else ""
                yield from ((key, prefix + name, parameter) for name, parameter in value.named_parameters())
            elif isinstance(value, nn.Parameter):
                yield "", key, value
            else:
                raise TypeError(f'groups: "{key}": expected a module or nn.Parameter, found {_type(value)}')
    elif isinstance(models, Iterable) and not isinstance(models, Tensor):
        for entry in models:
            named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
            if not named or not isinstance(entry[1], nn.Parameter):
                raise TypeError(
                    f"groups: expected pairs of name and nn.Parameter, found {_type(entry)}; "
                    "give named_parameters() instead of parameters()"
                )
            yield "", *entry
    else:
        raise TypeError(
            "groups: expected a module, a dict of modules or parameters, or a list of named parameters, "
            f"found {_type(models)}"
        )


def _check_names(found: list[tuple[str, str, nn.Parameter]]) -> None:
    names: dict[int, str] = {}
    seen: set[str] = set()
    for _, name, parameter in found:
        if name in seen:
            raise ValueError(f'groups: two parameters have the name "{name}"; rename one')
        if id(parameter) in names:
            raise ValueError(f'groups: "{names[id(parameter)]}" and "{name}" are one parameter; give it once')
        seen.add(name)
        names[id(parameter)] = name


def _check_coverage(names: list[str], trainable: list[str], specs: Mapping[str, GroupSpec]) -> None:
    lost = [name for name in trainable if _match(name, specs) is None]
    # A spec that a more exact one beats everywhere still matches.
    useful = {candidate for name in names for candidate in _candidates(name)}
    idle = [name for name in specs if name not in useful]
    if lost or idle:
        raise ValueError(
            f"groups: parameters without spec: {_quoted(lost)}; specs without parameter: {_quoted(idle)}; "
            f"all parameters: {_quoted(names)}; all specs: {_quoted(specs)}"
        )


def _candidates(name: str) -> Iterator[str]:
    """Names a spec for `name` may have, the strongest first: all of it, its starts, its ends."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])
    for first in range(1, len(parts)):
        yield ".".join(parts[first:])


def _match(name: str, specs: Mapping[str, GroupSpec]) -> str | None:
    return next((candidate for candidate in _candidates(name) if candidate in specs), None)


def _keys_of_groups(
    optimizer: Optimizer, specs: Mapping[str, GroupSpec], needed: Iterable[str], what: str
) -> dict[str, str]:
    """Group name to the key of its spec, for the groups that have one; each of `needed` must be useful."""
    names = [group["name"] for group in optimizer.param_groups if "name" in group]
    useful = {candidate for name in names for candidate in _candidates(name)}
    idle = [name for name in needed if name not in useful]
    if idle:
        raise ValueError(f"no group for the {what} of {_quoted(sorted(idle))}; choose from {_quoted(names)}")
    return {name: key for name in names if (key := _match(name, specs)) is not None}


def _set_frozen(optimizer: Optimizer, names: str | Iterable[str], frozen: bool) -> None:
    names = [names] if isinstance(names, str) else list(names)
    groups = {group["name"]: group for group in optimizer.param_groups if "name" in group}
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise InputError(f"no group has the name {_quoted(unknown)}; choose from {_quoted(groups)}")
    for name in names:
        group = groups[name]
        group["frozen"] = frozen
        for parameter in group["params"]:
            if frozen:
                _stop_gradient(parameter)
            else:
                parameter.requires_grad_(True)


def _stop_gradient(parameter: nn.Parameter) -> None:
    parameter.requires_grad_(False)
    parameter.grad = None  # torch's optimizers skip a parameter without gradient, moments and decay included


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"


def _type(value: object) -> str:
    return type(value).__name__
