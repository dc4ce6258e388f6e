"""The optimizers there are by name, and the options each of them takes."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gsopt.errors import InputError
from gsopt.optim.visible import VisibleAdam

_OWN = {"visible_adam": VisibleAdam}
_REFUSED = {
    "lbfgs": "it takes no parameter groups and evaluates the loss several times a step",
    "muon": "it takes only matrices, and these parameters have one to three dimensions",
    "sparseadam": "it takes only sparse gradients, and these are dense",
}
DEFAULTS = {"adam": {"eps": 1e-15}, "adamw": {"eps": 1e-15}}  # as in 3DGS: gradients there are tiny


def optimizer_class(name: str, where: str | None = None) -> type[Optimizer]:
    """The class of a name, in small letters or not; `where` names it in messages.

    Raises:
        InputError: unknown name, or an optimizer that cannot train Gaussians; the message says why.
    """
    where = where or f"optimizer {name}"
    refused = _REFUSED.get(name.lower())
    if refused:
        raise InputError(f"{where}: cannot train Gaussians: {refused}; choose another, such as adam")
    classes = _classes()
    if name.lower() not in classes:
        raise InputError(f"{where}: no such optimizer; choose from {', '.join(sorted(classes))}")
    return classes[name.lower()]


def options_of(cls: type[Optimizer]) -> dict[str, Any]:
    """Options of an optimizer with their default values."""
    parameters = inspect.signature(cls).parameters
    return {name: entry.default for name, entry in parameters.items() if name != "params"}


def check_options(where: str, cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    """Whether the optimizer has these options and their values are of the right kind.

    Raises:
        InputError: an option is unknown, or its value of another kind than the default's.
    """
    known = options_of(cls)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(f"{where}: no such option: {', '.join(unknown)}; choose from {', '.join(known)}")
    for name, value in options.items():
        expected = _kind_that_is_missed(known[name], value)
        if expected:
            raise InputError(f"{where}: {name}: expected {expected}, found {value!r}")


def check_values(where: str, cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    """Whether the optimizer accepts these values of its options, in a group too, where torch does not look.

    Raises:
        InputError: it does not; the message has its reason.
    """
    known = options_of(cls)
    chosen = {name: value for name, value in options.items() if name in known and name not in HOW}
    try:
        light(cls)([torch.zeros(1, device="cpu")], **chosen)  # type: ignore[arg-type]  # a class has a hash
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}; change the option") from error


# What a group has beside options of its optimizer.
OF_GROUPS = frozenset(
    {"params", "param_names", "name", "frozen", "optimizer", "lr", "weight_decay", "initial_lr"}
)
HOW = frozenset({"foreach", "fused", "capturable", "differentiable"})  # how a step is computed, not what


_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)  # on the steps of all optimizers


class _Light:
    """Methods of `Optimizer` without torch's wrappers, for `light`; pickled as the class without them."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, without the note to the profiler, which takes longer than the rest."""
        if not set_to_none:
            inspect.unwrap(Optimizer.zero_grad)(self, set_to_none)
            return
        for group in self.param_groups:  # type: ignore[attr-defined]  # of the Optimizer that it is mixed into
            for parameter in group["params"]:
                parameter.grad = None

    def __reduce__(self) -> tuple:
        return object.__new__, (type(self).__bases__[1],), self.__getstate__()


def _quiet(step: Callable[..., Any]) -> Callable[..., Any]:
    """What torch makes of a `step`, with its note to the profiler only where there are hooks.

    In a training the note takes 0.1 ms, as much as the arithmetic of some thousand Gaussians.
    """
    with_hooks = Optimizer.profile_hook_step(step)

    @wraps(step)
    def hooked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        hooks = (*_HOOKS, self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks)
        return (with_hooks if any(hooks) else step)(self, *args, **kwargs)

    cast(Any, hooked).hooked = True  # or torch would do the same
    return hooked


@cache
def light(cls: type[Optimizer]) -> type[Optimizer]:
    """A class of torch without the wrappers that tell `torch.compile` about it; all else is the same.

    The first call of such a wrapper loads the compiler, 800 modules that nothing here uses: that was two
    fifths of the time from the start of a run to its first step, and 80 MB.
    """
    step = inspect.unwrap(cls.step)
    if not getattr(cls, "records_nothing", False):
        step = torch.no_grad()(step)
    return type(cls.__name__, (_Light, cls), {"step": _quiet(step), "__module__": cls.__module__})


@cache
def _classes() -> dict[str, type[Optimizer]]:
    """Class of each name that can be chosen."""
    found = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    return {name: cls for name, cls in (found | _OWN).items() if name not in _REFUSED}


def _kind_that_is_missed(default: Any, value: Any) -> str | None:
    """What kind of value an option with this default takes, if `value` is of another; torch does not say."""
    if isinstance(value, Tensor) or default is None or default is inspect.Parameter.empty:
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, tuple):
        fits = isinstance(value, tuple | list) and len(value) == len(default)
        fits = fits and all(entry is None or _is_number(entry) for entry in value)
        return None if fits else f"{len(default)} numbers with a comma between"
    return None if not _is_number(default) or _is_number(value) else "a number"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
