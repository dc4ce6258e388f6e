"""Optimizer steps over several views: their mean gradient, and learning rates that fit it.

Views are rendered one at a time and their gradients add up in `.grad`, so a step over many views needs the
memory of one, the views may have different sizes, and each view's own gradients, which densification looks
at, are those of its own loss. `average_gradients` then makes of the sum that of the mean loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt.groups import GroupSpec


def average_gradients(optimizer: Optimizer, views: int) -> None:
    """Divide the gradients that have added up over `views` views, 1 or more, by their number, in place.

    Parameters without gradient, such as frozen ones, stay without.
    """
    if views == 1:
        return
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(views)


def mean_terms(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over views of each loss term; `terms` has one dict of scalars a view, all with the same names."""
    if len(terms) == 1:
        return dict(terms[0])
    return {name: torch.stack([of_view[name] for of_view in terms]).mean() for name in terms[0]}


def scale_for_batch(optimizer: Optimizer, specs: Mapping[str, GroupSpec], views: int) -> dict[str, GroupSpec]:
    """Fit an optimizer to steps by the mean loss of `views` views: the square-root rule of Adam.

    Learning rates are multiplied by √views. In groups with betas, each becomes beta^views, so that moments
    forget as fast as before, counted in views, and eps is divided by √views, as is the gradient's noise.
    After as many views as before, a parameter that noise drives has then gone as far. Source: Malladi et al.,
    "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (2022). They, and gsplat's
    simple_trainer, write 1 - views (1 - beta), the first order of beta^views, which for beta = 0.9 is 0 at
    10 views and negative above; a power stays in [0, 1). Momentum and weight decay stay as they are.

    Call it once, after building the optimizer and before :func:`gsopt.build_scheduler`, which gets the specs
    returned:

        opt = torch.optim.Adam(gsopt.build_groups(model, specs), lr=0.0, eps=1e-15)
        sched = gsopt.build_scheduler(opt, gsopt.scale_for_batch(opt, specs, views=4))

    Args:
        optimizer: any; its groups are changed.
        specs: those that its groups were built from.
        views: in each step, 1 or more; rates are those for one.

    Returns:
        The specs with the rates scaled; those given are not changed.

    Raises:
        ValueError: `views` is not a whole number of 1 or more.
    """
    if not isinstance(views, int) or isinstance(views, bool) or views < 1:
        raise ValueError(f"views: expected a whole number of 1 or more, found {views!r}")
    root = math.sqrt(views)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * root
        if "betas" in group:
            group["betas"] = tuple(beta**views for beta in group["betas"])
            group["eps"] = group["eps"] / root
    return {name: replace(spec, lr=spec.lr * root) for name, spec in specs.items()}
