"""Optimizer steps over several views: their mean gradient, and learning rates that fit it.

Views are rendered one at a time and their gradients add up in `.grad`, so a step over many views needs the
memory of one, the views may have different sizes, and each view's own gradients, which densification looks
at, are those of its own loss. `average_gradients` then makes of the sum that of the mean loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt.groups import GroupSpec
from gsopt.optim import optimizer_defaults


@torch.no_grad()
def average_gradients(optimizer: Optimizer, views: int) -> None:
    """Divide the gradients that have added up over `views` views, 1 or more, by their number, in place.

    Parameters without gradient, such as frozen ones, stay without.
    """
    if views == 1:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(views)


def mean_terms(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over views of each loss term; `terms` has one dict of scalars a view, all with the same names."""
    if len(terms) == 1:
        return dict(terms[0])
    return {name: torch.stack([of_view[name] for of_view in terms]).mean() for name in terms[0]}


def scale_for_batch(
    specs: Mapping[str, GroupSpec], views: int, optimizer: str = "adam", **args: Any
) -> dict[str, GroupSpec]:
    """The specs for steps over the mean loss of `views` views, by the square-root rule of Adam.

    Learning rates are multiplied by √views. Where the optimizer has betas, each becomes beta^views, so that
    moments forget as fast as before, counted in views, and eps is divided by √views, as the noise of the
    gradient is. After as many views as before, a parameter that noise drives has then gone as far. Source:
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (2022). They, and
    gsplat's simple_trainer, write 1 - views (1 - beta), the first-order form of beta^views, which is
    negative from 11 views on for beta = 0.9; a power stays in [0, 1). Momentum and weight decay stay.

    Args:
        specs: group name to spec, made for one view a step.
        views: in each step, 1 or more.
        optimizer: name of the optimizer, as for `build_optimizer`: whose betas and eps are meant where a
            spec has none among its options.
        args: options for all groups that the optimizer will be built with, if they are not its defaults:
            ``eps=1e-8``. The specs returned state betas and eps, so do not give these to it again.

    Returns:
        New specs; those given where `views` is 1.

    Raises:
        ValueError: `views` is not a whole number of 1 or more.
        InputError: there is no such optimizer.
    """
    if not isinstance(views, int) or isinstance(views, bool) or views < 1:
        raise ValueError(f"views: expected a whole number of 1 or more, found {views!r}")
    if views == 1:
        return dict(specs)
    defaults = optimizer_defaults(optimizer) | args
    scaled = {}
    for name, spec in specs.items():
        options = defaults | dict(spec.options)
        changed = dict(spec.options)
        if "betas" in options:
            changed["betas"] = tuple(float(beta) ** views for beta in options["betas"])
            changed["eps"] = options["eps"] / math.sqrt(views)
        scaled[name] = replace(spec, lr=spec.lr * math.sqrt(views), options=changed)
    return scaled
