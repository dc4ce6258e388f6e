"""Options of optimizers as text on the command line: `momentum=0.9 nesterov=true betas=0.9,0.99`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gsopt.errors import InputError
from gsopt.optim.catalog import check_options, check_values, optimizer_class, options_of

_OF_GROUPS = ("lr", "weight_decay")  # each group states its own
_IN_GRAPHS = (
    "capturable",
    "differentiable",
)  # for CUDA graphs, and derivatives of the training
_WORDS = {"true": True, "false": False, "none": None}


class OptimizerFlags(Protocol):
    """What the command line may say about the optimizer of one group."""

    @property
    def optimizer(self) -> str | None: ...
    @property
    def optimizer_args(self) -> Sequence[str]: ...


def parse_arguments(texts: Sequence[str], flag: str = "--optimizer-args") -> dict[str, Any]:
    """Options by name from `OPTION=VALUE` texts.

    A value is a number, `true`, `false`, `none`, or several of these with commas between.

    Raises:
        InputError: a text is not of that form, or an option is given twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not (name and equals):
            raise InputError(f"{flag} {text}: expected OPTION=VALUE, such as momentum=0.9")
        if name in options:
            raise InputError(f"{flag} {text}: {name} is given twice; give it once")
        parts = [_value(part, f"{flag} {text}") for part in value.split(",")]
        options[name] = tuple(parts) if len(parts) > 1 else parts[0]
    return options


def check_optimizer_flags(optimizer: str, args: Sequence[str], groups: Mapping[str, OptimizerFlags]) -> None:
    """Whether the flags about optimizers can be used.

    Args:
        optimizer, args: values of `--optimizer` and `--optimizer-args`.
        groups: group name to what `--groups.NAME...` says about its optimizer.

    Raises:
        InputError: an unknown or refused optimizer, an unknown option, or a value it cannot have; the message
            names the flag.
    """
    _check("--optimizer", optimizer, "--optimizer-args", args)
    run_options = parse_arguments(args)
    for name, given in groups.items():
        flag = f"--groups.{name}".replace("_", "-")
        own = given.optimizer or optimizer
        inherited = run_options if own.lower() == optimizer.lower() else {}
        _check(f"{flag}.optimizer", own, f"{flag}.optimizer-args", given.optimizer_args, inherited)


def _check(
    flag: str, optimizer: str, args_flag: str, args: Sequence[str], inherited: Mapping[str, Any] | None = None
) -> None:
    cls = optimizer_class(optimizer, f"{flag} {optimizer}")
    options = parse_arguments(args, args_flag)
    for name in options:
        known = [option for option in options_of(cls) if option not in (*_OF_GROUPS, *_IN_GRAPHS)]
        where = f"{args_flag} {name}"
        if name in _OF_GROUPS:
            own = f"--groups.NAME.{name}".replace("_", "-")
            raise InputError(f"{where}: has no effect, as each group states its own; give {own}")
        if name not in known:
            raise InputError(f"{where}: {optimizer} has no such option; choose from {', '.join(known)}")
        check_options(args_flag, cls, {name: options[name]})
    check_values(args_flag, cls, {**(inherited or {}), **options})


def _value(text: str, where: str) -> bool | int | float | None:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise InputError(f"{where}: expected numbers, true, false or none, with commas between, found {text!r}")
