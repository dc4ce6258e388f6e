"""How Gaussians multiply: copies and halves of some, and who comes first where there is not room for all."""

import math
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsopt.errors import InputError
from gsopt.geometry import quat_to_rotmat
from gsopt.strategy.protocol import movable, row_names

if TYPE_CHECKING:
    from gsopt.model import GaussianModel

SPLIT_SHRINK = 1.6  # Kerbl et al. 2023, section 5.2: scales of both halves, divided by this
PIXELS_PER_GAUSSIAN = 65.0  # 195 colour values are seen for the 59 numbers of a Gaussian
MOST_BY_DEFAULT = 1_000_000  # gsplat's cap_max: more have to be asked for
Rows = dict[str, Tensor]  # new rows of each per-Gaussian parameter, by name


def children(
    model: "GaussianModel",
    clone: Tensor,
    split: Tensor,
    generator: torch.Generator,
    revised_opacity: bool = False,
) -> tuple[Tensor, Rows]:
    """A copy of each Gaussian to clone, then all first and then all second halves of those to split.

    A half lies at random within its Gaussian and is 1.6 times smaller (Kerbl et al. 2023, section 5.2).

    Args:
        model: the Gaussians; nothing of it is changed.
        clone, split: which. bool [N]
        generator: of the places of the halves, on the CPU.
        revised_opacity: both halves together are as opaque as their Gaussian (Bulò et al. 2024).

    Returns:
        The row of `model` that each new row comes from, int64 [M], and the new rows. Each [M, ...]
    """
    clone_rows, split_rows = torch.nonzero(clone).flatten(), torch.nonzero(split).flatten()
    sources = torch.cat([clone_rows, split_rows, split_rows])
    new = {name: model.get_parameter(name).detach()[sources] for name in row_names(model)}
    halves = {name: rows[len(clone_rows) :] for name, rows in new.items()}  # views: changed in place
    if count := len(halves["xyz"]):
        # Products and sums element by element: a matrix product would add in an order of its own choice.
        draw = torch.randn(count, 3, generator=generator, device="cpu").to(halves["xyz"].device)
        local = (halves["scaling"].exp() * draw)[:, None, :]  # [2n, 1, 3] in the frame of the Gaussian
        along = quat_to_rotmat(halves["rotation"]) * local  # [2n, 3, 3]
        halves["xyz"] += along[..., 0] + along[..., 1] + along[..., 2]
        halves["scaling"] -= math.log(SPLIT_SHRINK)
        if revised_opacity and model.opacity.requires_grad:
            halves["opacity"].copy_(torch.logit(1 - (1 - halves["opacity"].sigmoid()).sqrt()))
    return sources, new


def allowed(model: "GaussianModel", clone: Tensor, split: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of masks of Gaussians to clone and to split with what is frozen and locked. [N], [N]

    A split that would move a frozen xyz or scaling does not happen.
    """
    if not (model.xyz.requires_grad and model.scaling.requires_grad):
        split = torch.zeros_like(split)
    rows = movable(model)
    return (clone, split) if rows is None else (clone & rows, split & rows)


def fit_in(clone: Tensor, split: Tensor, score: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """What is left of masks of Gaussians to clone and to split where there is room for some new rows only.

    Those with the largest score stay, of equal ones the first. A Gaussian in both masks takes two rows.

    Args:
        clone, split: bool [N]
        score: 0 or more. [N]
        room: rows.
    """
    ranked = torch.where(clone | split, score, -1).argsort(descending=True, stable=True)
    taken = (clone.long() + split.long())[ranked].cumsum(0)
    fits = torch.empty_like(clone)
    fits[ranked] = taken <= max(room, 0)
    return clone & fits, split & fits


def check_resolved(strategy: Any) -> None:
    """Raise ValueError where a dataclass has settings that await the length of the run."""
    names = _scaled_fields(type(strategy))  # type: ignore[arg-type]  # a class has a hash
    if None not in map(vars(strategy).get, names):  # asked several times a step
        return
    if awaiting := [name for name in names if getattr(strategy, name) is None]:
        raise ValueError(
            f"{type(strategy).__name__}: {', '.join(awaiting)}: depends on the length of the run; "
            "call resolve(iterations)"
        )


@cache
def _scaled_fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if "of_30k" in field.metadata)


def check_positive(flag: str, strategy: Any, *names: str) -> None:
    """Raise InputError, naming FLAG.NAME, where one of these numbers of steps is below 1."""
    for name in names:
        if (value := getattr(strategy, name)) < 1:
            raise InputError(
                f"{name}: expected 1 or more steps, found {value}; raise {flag}.{name.replace('_', '-')}"
            )


def check_limit(limit: int | None, model: "GaussianModel") -> None:
    """Raise InputError where there are more Gaussians than a limit that was given."""
    count = model.xyz.shape[0]
    if limit is not None and limit < count:
        raise InputError(
            f"max_gaussians: expected at least the {count} Gaussians that training starts with, "
            f"found {limit}; raise it (--max-gaussians) or start with fewer points"
        )


def check_pixels(flag: str, strategy: Any) -> None:
    """Raise InputError, naming FLAG.pixels-per-gaussian, where that is not above 0."""
    if (value := strategy.pixels_per_gaussian) <= 0:
        raise InputError(
            f"pixels_per_gaussian: expected more than 0, found {value:g}; change {flag}.pixels-per-gaussian"
        )


def default_limit(strategy: Any) -> int | None:
    """Its `max_gaussians`, else what `training_pixels` and `pixels_per_gaussian` allow, at most a million.

    None without both.
    """
    if strategy.max_gaussians is not None:
        return strategy.max_gaussians
    if strategy.training_pixels is None:
        return None
    return min(int(strategy.training_pixels / strategy.pixels_per_gaussian), MOST_BY_DEFAULT)
