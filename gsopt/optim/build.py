"""Optimizers by name, one for all groups or several."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gsopt.device import has_fused_optimizers
from gsopt.errors import InputError
from gsopt.optim.adam import NATIVE
from gsopt.optim.catalog import (
    DEFAULTS,
    OF_GROUPS,
    check_options,
    check_values,
    light,
    optimizer_class,
    options_of,
)
from gsopt.optim.mixed import MixedOptimizer
from gsopt.optim.visible import VisibleAdam


def build_optimizer(
    name: str, groups: Iterable[dict[str, Any]], *, native: bool = False, **args: Any
) -> Optimizer:
    """An optimizer of `torch.optim` by its name, or one of ours: "adam", "sgd", "visible_adam", ...

    Adam and AdamW get ``eps=1e-15`` unless `args` has another. A fused kernel is used where there is one for
    the devices of all parameters and `args` does not choose otherwise: it is the fastest, and on a CPU its
    results have the same bits for any number of threads.

    A group with an "optimizer" (`GroupSpec(optimizer="sgd")`) is updated by that one instead. What comes then
    is one `torch.optim.Optimizer` over all groups in their order, a :class:`gsopt.optim.MixedOptimizer`.

    Args:
        name: of the optimizer.
        groups: parameter groups, as from `gsopt.build_groups`.
        native: let the CPU kernel do the steps of Adam, AdamW and VisibleAdam, on all its threads.
        args: options for all groups of that optimizer that do not state the option themselves.

    Raises:
        InputError: unknown name, an optimizer that cannot train Gaussians (the message says why), an
            unknown option or value, of a group too, or an option that would have no effect because every
            group states its own.
    """
    groups = list(groups)
    parts = _groups_by_optimizer(name, groups)
    if args and name.lower() not in parts:
        raise InputError(
            f"optimizer {name}: {', '.join(args)}: has no effect, as each group has an optimizer of its own"
        )
    own = {part: args if part == name.lower() else {} for part in parts}
    if len(parts) == 1:
        for group in groups:
            group.pop("optimizer", None)
        (part,) = parts
        return _build_part(part, groups, native, own[part])
    built = {part: _build_part(part, theirs, native, own[part]) for part, theirs in parts.items()}
    return light(MixedOptimizer)(groups, built)


def _groups_by_optimizer(name: str, groups: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The groups of each optimizer, by its name in small letters, which is put into them."""
    optimizer_class(name)
    parts: dict[str, list[dict[str, Any]]] = {}
    for position, group in enumerate(groups):
        chosen = group.get("optimizer") or name
        optimizer_class(chosen, f"{_label(group, position)}: optimizer {chosen}")
        group["optimizer"] = chosen.lower()
        parts.setdefault(chosen.lower(), []).append(group)
    return parts


def _build_part(name: str, groups: list[dict[str, Any]], native: bool, args: Mapping[str, Any]) -> Optimizer:
    """One optimizer of torch or ours over groups that it has to itself."""
    cls = optimizer_class(name)
    if native:
        cls = NATIVE.get(cls, cls)
    where = f"optimizer {name}"
    check_options(where, cls, args)
    known = options_of(cls)
    idle = [option for option in args if all(option in group for group in groups)]
    if idle:
        raise InputError(
            f"{where}: {', '.join(idle)}: has no effect, as each group states its own; set it in the groups"
        )
    decayed = [group["name"] for group in groups if group.get("weight_decay") and "weight_decay" not in known]
    if decayed:
        raise InputError(
            f"{where}: has no weight decay, but these groups ask for it: {', '.join(decayed)}; "
            "set theirs to 0"
        )
    options: dict[str, Any] = {"lr": 0.0, **DEFAULTS.get(name, {}), **args}
    if cls is VisibleAdam:
        options = {"fused": native} | options
    elif "fused" in known and not {"fused", "foreach", "differentiable", "capturable"} & set(args):
        options["fused"] = all(_has_fused_kernel(parameter) for parameter in tensors_of(groups)) or None
    for position, group in enumerate(groups):
        own = {key: value for key, value in group.items() if key not in OF_GROUPS}
        check_options(f"{where}: {_label(group, position)}", cls, own)
    check_values(where, cls, options)
    for position, group in enumerate(groups):
        check_values(f"{where}: {_label(group, position)}", cls, options | group)
    try:
        if options.get("differentiable"):
            return cls(groups, **options)
        return light(cls)(groups, **options)  # type: ignore[arg-type]  # a class has a hash
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}: {error}; change the option") from error


def _label(group: Mapping[str, Any], position: int) -> str:
    return f"group {group.get('name', position)}"


def tensors_of(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """The parameters of groups, given with names or without, in order."""
    return [entry[1] if isinstance(entry, tuple) else entry for group in groups for entry in group["params"]]


def _has_fused_kernel(parameter: Tensor) -> bool:
    return has_fused_optimizers(parameter.device) and parameter.is_floating_point()
