"""Optimizers by name."""

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt.errors import InputError
from gsopt.optim.adam import NATIVE

_REFUSED = {
    "lbfgs": "it takes no parameter groups and evaluates the loss several times a step",
    "muon": "it takes only matrices, and these parameters have one to three dimensions",
    "sparseadam": "it takes only sparse gradients, and these are dense",
}
_DEFAULTS = {"adam": {"eps": 1e-15}, "adamw": {"eps": 1e-15}}  # as in 3DGS: gradients there are tiny


def build_optimizer(
    name: str, groups: Iterable[dict[str, Any]], *, native: bool = False, **args: Any
) -> Optimizer:
    """An optimizer of `torch.optim` by its name, in small letters or not: "adam", "sgd", "rmsprop", ...

    Adam and AdamW get ``eps=1e-15`` unless `args` has another. A fused kernel is used where there is one for
    the devices of all parameters and `args` does not choose otherwise: it is the fastest, and on a CPU its
    results have the same bits for any number of threads.

    Args:
        name: of the optimizer.
        groups: parameter groups, as from `gsopt.build_groups`.
        native: let the CPU kernel do the steps of Adam and AdamW, on all its threads (`gsopt.optim.adam`).
        args: options for all groups that do not state the option themselves.

    Raises:
        InputError: unknown name, an optimizer that cannot train Gaussians (the message says why), an
            unknown option or value, or an option that would have no effect because every group states its
            own.
    """
    groups = list(groups)
    cls = _optimizer_class(name)
    if native:
        cls = NATIVE.get(cls, cls)
    known = [option for option in inspect.signature(cls).parameters if option != "params"]
    unknown = [option for option in args if option not in known]
    if unknown:
        raise InputError(
            f"optimizer {name}: no such option: {', '.join(unknown)}; choose from {', '.join(known)}"
        )
    idle = [option for option in args if all(option in group for group in groups)]
    if idle:
        raise InputError(
            f"optimizer {name}: {', '.join(idle)}: has no effect, as each group states its own; "
            "set it in the groups"
        )
    decayed = [group["name"] for group in groups if group.get("weight_decay") and "weight_decay" not in known]
    if decayed:
        raise InputError(
            f"optimizer {name}: has no weight decay, but these groups ask for it: {', '.join(decayed)}; "
            "set theirs to 0"
        )
    options = {"lr": 0.0} | _DEFAULTS.get(name.lower(), {}) | args
    if "fused" in known and not {"fused", "foreach", "differentiable", "capturable"} & set(args):
        options["fused"] = all(_has_fused_kernel(parameter) for parameter in tensors_of(groups)) or None
    try:
        return (cls if options.get("differentiable") else _light(cls))(groups, **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"optimizer {name}: {error}; change the option") from error


def _optimizer_class(name: str) -> type[Optimizer]:
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    refused = _REFUSED.get(name.lower())
    if refused:
        raise InputError(f"optimizer {name}: cannot train Gaussians: {refused}; choose another, such as adam")
    if name.lower() not in classes:
        choices = ", ".join(sorted(set(classes) - set(_REFUSED)))
        raise InputError(f"optimizer {name}: no such optimizer; choose from {choices}")
    return classes[name.lower()]


class _Light:
    """Methods of `Optimizer` without torch's wrappers, for `_light`; pickled as torch's own class."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def __reduce__(self) -> tuple:
        return object.__new__, (type(self).__bases__[1],), self.__getstate__()


@cache
def _light(cls: type[Optimizer]) -> type[Optimizer]:
    """A class of torch without the wrappers that tell `torch.compile` about it; all else is the same.

    The first call of such a wrapper loads the compiler, 800 modules that nothing here uses: that was two
    fifths of the time from the start of a run to its first step, and 80 MB.
    """
    step = torch.no_grad()(inspect.unwrap(cls.step))
    return type(cls.__name__, (_Light, cls), {"step": step, "__module__": cls.__module__})


def tensors_of(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """The parameters of groups, given with names or without, in order."""
    return [entry[1] if isinstance(entry, tuple) else entry for group in groups for entry in group["params"]]


def _has_fused_kernel(parameter: Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()
