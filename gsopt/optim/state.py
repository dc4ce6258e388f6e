"""Optimizer state that is matched by parameter name instead of by order.

torch matches a saved optimizer state to parameters by their position (pytorch#1489): with the layers in
another order it either fails in the next `step()` or silently swaps moments. :func:`load_optimizer_state`
is the cure, for the optimizers of any module.
"""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt.optim.build import tensors_of
from gsopt.optim.catalog import HOW

_HOW_NOT_WHAT = {"params", "param_names", "name", "initial_lr", *HOW}
_ABSENT = "absent"
_PRIMES = (2, 3, 5, 7, 11, 13)  # sizes of a trial parameter, each axis its own
_FULL_FROM_THE_START = torch.optim.Adagrad  # cannot step without state; others make theirs in the first step
_NO_TRIAL = ("SparseAdam",)  # does not step with a dense gradient


@dataclass
class LoadReport:
    """What :func:`load_optimizer_state` did; `str()` of it is for people.

    Args:
        matched: parameters that both sides have and whose state is now the file's.
        fresh: those of `matched` for which the file has no state, as before the first step or while frozen;
            they have none now, and begin anew.
        missing: parameters of the optimizer that the file does not have; their state is as before.
        unexpected: parameters of the file that the optimizer does not have.
        shape_mismatch: name to what differs; their state is as before.
        state_mismatch: name to which entries the optimizer needs and the file lacks, as when another
            optimizer saved it; their state is as before.
        converted: name to what was done to the state of another optimizer so that it fits this one.
        unused: name to entries of the file that this optimizer has no use for.
        hyperparameters: "group.option" to (saved, requested) where they differ. The requested one stays.
            Where the file has several, the others are under "group.option of parameter".
    """

    matched: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shape_mismatch: dict[str, str] = field(default_factory=dict)
    state_mismatch: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    unused: dict[str, list[str]] = field(default_factory=dict)
    hyperparameters: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every parameter of either side found its counterpart."""
        return not (self.missing or self.unexpected or self.shape_mismatch or self.state_mismatch)

    def __str__(self) -> str:
        lines = [f"matched: {', '.join(self.matched) or 'none'}"]
        if self.fresh:
            lines.append(f"without state in the file, so they begin anew: {', '.join(self.fresh)}")
        if self.missing:
            lines.append(f"missing in the file: {', '.join(self.missing)}")
        if self.unexpected:
            lines.append(f"unexpected, not in the optimizer: {', '.join(self.unexpected)}")
        lines += [f"shape mismatch: {name}: {what}" for name, what in self.shape_mismatch.items()]
        lines += [f"state mismatch: {name}: {what}" for name, what in self.state_mismatch.items()]
        lines += [f"converted: {name}: {what}" for name, what in self.converted.items()]
        lines += [f"unused: {name}: {', '.join(keys)}" for name, keys in self.unused.items()]
        lines += [
            f"differs: {name}: {saved} in the file, {requested} requested, which stays"
            for name, (saved, requested) in self.hyperparameters.items()
        ]
        return "\n".join(lines)


def load_optimizer_state(
    optimizer: Optimizer,
    state_dict: Mapping[str, Any],
    names: Sequence[str] | Mapping[str, str] | None = None,
    strict: bool = True,
) -> LoadReport:
    """Load a torch optimizer `state_dict`, matching parameters by name whatever their order and grouping.

    The names are those torch keeps when an optimizer is built from named parameters (`param_names`, torch
    2.6 and later); failing that `names`; failing that the groups' names where each group has one
    parameter. State is copied where name and shapes agree, once: what is loaded shares no memory with
    `state_dict`. The one step count that Adam has for a parameter becomes that of each row where
    `VisibleAdam` goes on. Hyper-parameters stay as the optimizer has them, and the report says where the
    file has others.

    Args:
        optimizer: of any module.
        state_dict: from `Optimizer.state_dict()`.
        names: a list of the names of the saved parameters in the order of the saved optimizer, for a file
            without names (or, if only the optimizer is without names, of its parameters); or a dict from
            saved to present names, for parameters that were renamed.
        strict: raise unless every parameter of either side finds its counterpart.

    Returns:
        What was matched and what differs.

    Raises:
        ValueError: a side has no names, `names` does not fit, the optimizer is an LBFGS, whose one state is
            of all parameters together, or, with `strict`, anything is missing, unexpected or of another
            shape; the message is the report. Then nothing is changed.
    """
    _refuse_lbfgs(optimizer)
    own_dict = optimizer.state_dict()
    saved, own = _both_sides(state_dict, own_dict, names)
    parameters = dict(zip(own, tensors_of(optimizer.param_groups), strict=True))
    report = LoadReport(unexpected=[name for name in saved if name not in own])
    state = dict(own_dict["state"])
    for name, (index, position) in own.items():
        if name not in saved:
            report.missing.append(name)
            continue
        group = optimizer.param_groups[position]
        saved_index, saved_position = saved[name]
        _compare_options(report, name, state_dict["param_groups"][saved_position], group, position)
        part = optimizer.part_of(parameters[name]) if hasattr(optimizer, "part_of") else optimizer
        found = _adopted(report, name, part, parameters[name], state_dict["state"].get(saved_index, {}))
        expected = _expected_state(part, group, parameters[name])
        if not found and not isinstance(part, _FULL_FROM_THE_START):
            report.matched.append(name)
            report.fresh.append(name)
            state.pop(index, None)
        elif _fits(report, name, parameters[name], found, expected):
            report.matched.append(name)
            state[index] = {
                key: value if isinstance(value, Tensor) else deepcopy(value)
                for key, value in found.items()
                if expected is None or key in expected
            }
    if strict and not report.complete:
        raise ValueError(f"optimizer state does not fit the optimizer; nothing was loaded\n{report}")
    groups = optimizer.param_groups
    optimizer.load_state_dict({"state": state, "param_groups": own_dict["param_groups"]})
    optimizer.param_groups = groups  # instead of torch's copies, as others may hold these dicts
    for name in report.matched:
        _part_from(state_dict["state"].get(saved[name][0], {}), optimizer.state.get(parameters[name], {}))
    return report


def _refuse_lbfgs(optimizer: Optimizer) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS has one state for all parameters together, so none can be matched by name; "
            "use its own load_state_dict, with the parameters in the order in which they were saved"
        )


def _part_from(found: Mapping[str, Any], loaded: dict[str, Any]) -> None:
    """Copy the tensors of the file that torch took as they were, as it does unless device or type differ."""
    for key, value in loaded.items():
        own = found.get(key)
        if isinstance(own, Tensor) and value is own:
            loaded[key] = own.clone()


_Side = dict[str, tuple[int, int]]  # name -> index into "state", position of the group in "param_groups"


def _both_sides(
    saved: Mapping[str, Any], own: Mapping[str, Any], names: Sequence[str] | Mapping[str, str] | None
) -> tuple[_Side, _Side]:
    """Parameters of the file and of the optimizer by name."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        found = f"the keys {[*map(str, saved)]}" if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"optimizer state: expected a dict with state and param_groups, found {found}; "
            "give the result of Optimizer.state_dict()"
        )
    saved_names, own_names = _stored_names(saved), _stored_names(own)
    if isinstance(names, Mapping):
        unknown = [name for name in names if name not in (saved_names or [])]
        if unknown:
            raise ValueError(f"names: {', '.join(unknown)}: not in the saved state, which has {saved_names}")
        saved_names = [names.get(name, name) for name in saved_names or []]
    elif names is not None and saved_names is not None and own_names is None:
        own_names = list(names)
    elif names is not None:
        saved_names = list(names)
    if saved_names is None:
        raise ValueError(
            "the saved optimizer state has no parameter names; give names=[...] in the order in which the "
            "parameters were given to the saved optimizer"
        )
    if own_names is None:
        raise ValueError(
            "the optimizer has no parameter names; build it from model.named_parameters() or named groups"
        )
    return _by_name(saved, saved_names, "the saved state"), _by_name(own, own_names, "the optimizer")


def _stored_names(state_dict: Mapping[str, Any]) -> list[str] | None:
    """Names of all parameters in order, None if there are none."""
    groups = state_dict["param_groups"]
    if all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    if all("name" in group and len(group["params"]) <= 1 for group in groups):
        return [group["name"] for group in groups if group["params"]]
    return None


def _by_name(state_dict: Mapping[str, Any], names: list[str], side: str) -> _Side:
    groups = state_dict["param_groups"]
    places = [(index, position) for position, group in enumerate(groups) for index in group["params"]]
    if len(names) != len(places):
        raise ValueError(f"{side} has {len(places)} parameters, found {len(names)} names; give one for each")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{side} has several parameters with the name {', '.join(twice)}; rename them")
    return dict(zip(names, places, strict=True))


def _compare_options(
    report: LoadReport, name: str, saved: dict[str, Any], own: dict[str, Any], position: int
) -> None:
    """Note options that differ in the groups of a parameter; of learning rates those before the schedule.

    A second value of the same option, where parameters of several saved groups came into one, is noted under
    the parameter.
    """
    label = own.get("name", f"group {position}")
    for key in sorted({*saved, *own} - _HOW_NOT_WHAT):
        start = "initial_lr" if key == "lr" else key
        theirs, ours = (_plain(group.get(start, group.get(key, _ABSENT))) for group in (saved, own))
        if theirs != ours:
            noted = report.hyperparameters.setdefault(f"{label}.{key}", (theirs, ours))
            if noted != (theirs, ours):
                report.hyperparameters[f"{label}.{key} of {name}"] = (theirs, ours)


def _plain(value: Any) -> Any:
    """`value` so that equal settings compare equal: a tensor as a number, a list (from JSON) as a tuple."""
    if isinstance(value, Tensor):
        return value.item()
    return tuple(value) if isinstance(value, list) else value


def _fits(
    report: LoadReport,
    name: str,
    parameter: Tensor,
    found: Mapping[str, Any],
    expected: dict[str, tuple[int, ...] | None] | None,
) -> bool:
    """Whether the saved entries are those the optimizer keeps for a parameter of this shape."""
    if expected is None:
        odd = {key: value.shape for key, value in found.items() if _has_other_sizes(value, parameter)}
        for key, shape in odd.items():
            report.shape_mismatch[name] = (
                f"{key} {list(shape)} in the file, parameter {list(parameter.shape)}"
            )
        return not odd
    lacking = [key for key in expected if key not in found]
    if lacking:
        report.state_mismatch[name] = (
            f"needs {', '.join(lacking)}, found {', '.join(map(str, found)) or 'none'} in the file"
        )
        return False
    for key, shape in expected.items():
        value = found[key]
        if key == "step" and shape == () and isinstance(value, Tensor) and value.dim():
            report.state_mismatch[name] = (
                f"needs one step count, found one for each of {len(value)} rows, which is visible_adam's"
            )
            return False
        if shape is not None and isinstance(value, Tensor) and tuple(value.shape) != shape:
            report.shape_mismatch[name] = f"{key} {list(value.shape)} in the file, expected {list(shape)}"
            return False
    unused = [str(key) for key in found if key not in expected]
    if unused:
        report.unused[name] = unused
    return True


def _has_other_sizes(value: Any, parameter: Tensor) -> bool:
    """Whether an entry with as many axes as the parameter is of sizes that the parameter does not have."""
    is_like = isinstance(value, Tensor) and value.dim() == parameter.dim()
    return is_like and not set(value.shape) <= {1, *parameter.shape}


def _adopted(
    report: LoadReport, name: str, optimizer: Optimizer, parameter: Tensor, found: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The saved entries as the optimizer makes them its own, which ours may do with those of another."""
    if not found or not hasattr(optimizer, "adopt_state"):
        return found
    adopted = optimizer.adopt_state(parameter, found)
    if (step := found.get("step")) is not None and torch.as_tensor(step).dim() < adopted["step"].dim():
        report.converted[name] = f"one step count in the file, {float(step):g}, is now that of each row"
    return adopted


def _expected_state(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> dict[str, tuple[int, ...] | None] | None:
    """Entries the optimizer keeps for `parameter`, with their shapes (None: no tensor); None if unknown.

    An optimizer makes its state in its first step. So if it has none yet, one of its kind takes a step on
    a tiny parameter of other sizes, each axis of its own, from which the shapes follow. An optimizer from
    outside torch may need more for a step than that; what the file has for it is taken if its sizes can be
    the parameter's.
    """
    if optimizer.state.get(parameter):
        made, sizes = optimizer.state[parameter], {}
    elif _can_try(optimizer, parameter):
        primes = _PRIMES[: parameter.dim()]
        sizes = dict(zip(primes, parameter.shape, strict=True))
        trial = torch.zeros(primes, dtype=parameter.dtype, device=parameter.device)
        trial.grad = torch.zeros_like(trial)
        known = inspect.signature(type(optimizer)).parameters
        options = {key: value for key, value in group.items() if key in known and key not in _HOW_NOT_WHAT}
        if "fused" in known:
            options["fused"] = False
        twin = type(optimizer)([trial], **options)
        twin.step()
        made = twin.state[trial]
    else:
        return None
    return {
        key: tuple(sizes.get(size, size) for size in value.shape) if isinstance(value, Tensor) else None
        for key, value in made.items()
    }


def _can_try(optimizer: Optimizer, parameter: Tensor) -> bool:
    kind = type(optimizer)
    is_known = kind.__module__.startswith(("torch.optim.", "gsopt.optim.")) and kind.__name__ not in _NO_TRIAL
    return is_known and parameter.dim() <= len(_PRIMES)
