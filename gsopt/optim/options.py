"""Options that groups state themselves. torch takes any there and ignores them, or trips over them later."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from gsopt.errors import InputError

_OF_GROUPS = {"params", "param_names", "name", "frozen", "lr", "weight_decay", "initial_lr"}  # not options


def check_group_options(
    name: str, cls: type[Optimizer], groups: Iterable[Mapping[str, Any]], args: Mapping[str, Any]
) -> None:
    """Raise InputError where a group states an option that the optimizer has not, or a value it refuses.

    Args:
        name: of the optimizer, for messages.
        cls: its class.
        groups: parameter groups, as from `gsopt.build_groups`.
        args: options of the whole optimizer, which hold where a group states none.
    """
    defaults = {key: p.default for key, p in inspect.signature(cls).parameters.items() if key != "params"}
    for group in groups:
        own = {key: value for key, value in group.items() if key not in _OF_GROUPS}
        where = f'optimizer {name}: group "{group.get("name", "without name")}"'
        for key, value in own.items():
            if key not in defaults:
                raise InputError(f"{where}: no such option: {key}; choose from {', '.join(defaults)}")
            if expected := _mismatch(defaults[key], value):
                raise InputError(f"{where}: {key}: expected {expected}, found {value!r}")
        if own:
            _try(where, cls, {**args, **own})


def _mismatch(default: Any, value: Any) -> str:
    """What kind of value an option with this default takes, if `value` is of another; else "" ."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, tuple):
        is_fit = isinstance(value, tuple | list) and len(value) == len(default)
        return "" if is_fit else f"{len(default)} numbers with commas between them"
    if isinstance(default, int | float):
        is_fit = isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)
        return "" if is_fit else "a number"
    return ""


def _try(where: str, cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    """torch checks values for the whole optimizer only: make one of nothing that has these."""
    try:
        cls([torch.zeros(1)], **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}; change the option") from error
