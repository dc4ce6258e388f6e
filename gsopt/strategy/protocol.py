"""What a strategy is: it watches training and decides which Gaussians are added, removed and reset.

A strategy of one's own is a subclass that overrides what it needs, given to `Trainer(config,
strategy=...)`:

    class PruneFaint(Strategy):
        def refine(self, model, optimizer, step, generator):
            if step % 500:
                return Refinement()
            faint = model.opacities < 0.01
            if (rows := movable(model)) is not None:
                faint &= rows
            keep(model, row_names(model), optimizer, ~faint)
            return Refinement(pruned=int(faint.sum()))

Steps count from 1: `step` is the number of optimizer steps done, the present one included. So
`observe(1)` follows the first backward pass and `refine(1)` the first `optimizer.step()`, and the numbers
are those of the original 3DGS, whose iterations count from 1 as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from gsopt.model import GaussianModel


@dataclass(frozen=True)
class Refinement:
    """What one call of `refine` did to the rows.

    Args:
        cloned: Gaussians that got a copy.
        split: Gaussians that were replaced by two.
        pruned: Gaussians that were removed.
        reset: whether the opacities were reset.
        relocated: Gaussians that were removed where they were and begin anew at another.
        added: Gaussians that began at another beside those, as many as there are now more.
        score: what decided who grows, of each Gaussian there was; for reports. [N], or None
    """

    cloned: int = 0
    split: int = 0
    pruned: int = 0
    reset: bool = False
    relocated: int = 0
    added: int = 0
    score: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many Gaussians were "cloned", "split", "pruned", "relocated" and "added"."""
        return {name: getattr(self, name) for name in ("cloned", "split", "pruned", "relocated", "added")}


class Strategy:
    """Leaves the Gaussians alone, and is the base class of strategies that do not.

    Frozen attributes are those whose parameter does not require grad, be its group frozen or not in the
    optimizer: a strategy may copy them to new rows and remove them with their rows, but never gives them
    another value.

    Locked Gaussians, those that are not :func:`movable`, a strategy leaves alone altogether, whichever of
    their attributes are locked: it neither clones, splits, prunes, resets, moves nor perturbs them.
    """

    def regularization(self, model: "GaussianModel") -> Mapping[str, Tensor]:
        """Terms that this strategy adds to the loss, each [] and differentiable in what trains of `model`."""
        return {}

    def resolve(self, iterations: int) -> Self:
        """A copy for a run of this many iterations, with the settings that scale with it as numbers."""
        return self

    def plan(self, model: "GaussianModel") -> str:
        """How many Gaussians there will be, told before a run: "at most 9,000 Gaussians"; "" where open."""
        return ""

    def forecast(self, now: int, count: int, step: int, growth: float) -> float:
        """How many Gaussians there will be after `step`, as far as one can tell: for the time that is left.

        Args:
            now: the step of now, at most `step`.
            count: Gaussians there are now.
            growth: how many more there have been a step of late.
        """
        return count

    def check(self, model: "GaussianModel") -> None:
        """Raise InputError if this strategy cannot work with this model and these settings."""

    def prepare(self, model: "GaussianModel") -> None:
        """Prepare a model that was made from points, before its first step."""

    def needs_grad2d(self, step: int) -> bool:
        """Whether `observe(step)` needs the gradient of `info["means2d"]`, which is kept on request only."""
        return False

    def observe(self, model: "GaussianModel", info: Mapping[str, Any], step: int) -> None:
        """Gather statistics after the backward pass of a step.

        Args:
            model: the Gaussians that were rendered.
            info: from `gsopt.rasterization` with ``packed=False``, of C cameras.
            step: from 1.
        """

    def refine(
        self, model: "GaussianModel", optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Change the rows of `model` and of the optimizer's state after `optimizer.step()` of a step.

        Args:
            model: changed through `gsopt.surgery` only.
            optimizer: of the model and maybe of others; None if there is none.
            step: from 1.
            generator: of all random choices, on the CPU whatever the device of the model.
        """
        return Refinement()

    def state_dict(self) -> dict[str, Tensor]:
        """What later calls depend on beside the settings: statistics, for example."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is the state of another strategy.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, found {', '.join(state)}")


def movable(model: "GaussianModel") -> Tensor | None:
    """Which Gaussians a strategy may change, copy or remove: those not locked. [N] bool; None is all."""
    locked = getattr(model, "locked", None)
    return ~locked if isinstance(locked, Tensor) else None


def row_names(model: "GaussianModel") -> tuple[str, ...]:
    """Names of the parameters with one row per Gaussian: all that are the model's own, not a part's."""
    return tuple(name for name, _ in model.named_parameters(recurse=False))
