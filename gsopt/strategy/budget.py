"""Growth to a number of Gaussians that is known before the run starts, along a fixed curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt import surgery
from gsopt.errors import InputError
from gsopt.schedules import Steps, resolve_steps, scaled
from gsopt.strategy.growth import (
    PIXELS_PER_GAUSSIAN,
    allowed,
    check_limit,
    check_pixels,
    check_positive,
    check_resolved,
    children,
    default_limit,
    fit_in,
)
from gsopt.strategy.protocol import Refinement, Strategy, movable, row_names
from gsopt.strategy.statistics import ViewStatistics

if TYPE_CHECKING:
    from gsopt.model import GaussianModel


@dataclass
class BudgetStrategy(Strategy):
    """Grows to a fixed number of Gaussians on a fixed curve: time and memory are known before the run.

    In the spirit of Mallick et al., "Taming 3DGS: High-Quality Radiance Fields with Limited Resources"
    (2024). At each refinement Gaussians that are hardly opaque go, and as many grow as the curve of
    :meth:`target` then has room for, be that many or few: those with the largest score, of equal ones the
    first. Small ones are cloned, large ones split, as in :class:`DefaultStrategy`. Opacities are never reset.

    The score is the one that :class:`DefaultStrategy` compares with a threshold, the mean norm of the
    gradient of the projected centre over the views in which a Gaussian was visible. Here it only ranks. The
    paper adds up a dozen scores with weights, and draws; docs/strategies.md says what we tried.

    The number of Gaussians is that of the curve after every refinement, unless there are too few that may
    grow: each at most once a refinement, none that is locked or that no view sees, and none that would have
    to be split while xyz or scaling is frozen.

    Settings in steps that are None scale with the run, see :meth:`resolve`.
    """

    scene_scale: float = 1.0
    """Extent of the scene in world units, which grow_scale3d is relative to."""
    max_gaussians: int | None = None
    """Gaussians at the end of growth; default: one for 65 pixels of the training views, at most a
    million."""
    training_pixels: int | None = None
    """Pixels of all training views, for the default of max_gaussians."""
    pixels_per_gaussian: float = PIXELS_PER_GAUSSIAN
    """Pixels of the training views for each Gaussian of that default."""
    grow_scale3d: float = 0.01
    """Up to this largest scale Gaussians are cloned, above split. Scene extents."""
    prune_opa: float = 0.005
    """Gaussians with an opacity below are pruned."""
    refine_start_iter: Steps = scaled(500)
    """Rows change after this step. Scaled."""
    refine_stop_iter: Steps = scaled(15_000)
    """Rows change before this step. Scaled."""
    refine_every: Steps = scaled(100, at_least=100)
    """Steps between changes of rows. Scaled, at least 100: fewer views make the mean gradient a lottery."""
    absgrad: bool = False
    """Sum absolute gradients over the pixels (AbsGS, Ye et al. 2024)."""
    revised_opacity: bool = False
    """Let both halves of a split together be as opaque as it was (Bulò et al. 2024, arXiv:2404.06109)."""

    def __post_init__(self) -> None:
        self._statistics = ViewStatistics("BudgetStrategy")
        self._start: int | None = None  # Gaussians before the first refinement

    def resolve(self, iterations: int) -> Self:
        return resolve_steps(self, iterations)

    def plan(self, model: "GaussianModel") -> str:
        start = len(model.xyz) if self._start is None else self._start
        end = self.target(self.refine_stop_iter, start)
        return f"{start:,} to {end:,} Gaussians by iteration {self._last():,}" if end > start else ""

    def forecast(self, now: int, count: int, step: int, growth: float) -> float:
        """On the curve."""
        return max(count, self.target(step, count if self._start is None else self._start))

    def check(self, model: "GaussianModel") -> None:
        check_resolved(self)
        check_positive("--budget", self, "refine_every")
        check_limit(self.max_gaussians, model)
        check_pixels("--budget", self)
        if default_limit(self) is None:
            raise InputError(
                "max_gaussians: expected the number to grow to, found none; give --max-gaussians"
            )
        if not 0 <= self.prune_opa < 0.5:
            raise InputError(
                f"prune_opa: expected an opacity from 0 to 0.5, found {self.prune_opa}; "
                "change --budget.prune-opa"
            )

    def target(self, step: int, start: int) -> int:
        """Gaussians after the refinement at `step` in a run that began with `start`: the curve of growth.

        A parabola from `start` to the budget B with its vertex at the last refinement, start + (B - start)
        (2t - t²) with t from 0 to 1. Half of the way is done after three tenths of it: those that come early
        have time to settle. A default budget that is below `start` leaves it at `start`.
        """
        budget = max(default_limit(self) or 0, start)
        length = self._last() - self.refine_start_iter
        if length <= 0:  # too short a run for a refinement
            return start
        t = min(max((step - self.refine_start_iter) / length, 0.0), 1.0)
        return start + round((budget - start) * (2 * t - t * t))

    def needs_grad2d(self, step: int) -> bool:
        check_resolved(self)
        return step < self.refine_stop_iter

    def observe(self, model: "GaussianModel", info: Mapping[str, Any], step: int) -> None:
        """Add this step's gradients and visibility to the statistics. Raises as `ViewStatistics.add`."""
        if self.needs_grad2d(step):
            self._statistics.add(info, self.absgrad)

    def refine(
        self, model: "GaussianModel", optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Prune and grow to the curve if it is due after this step."""
        check_resolved(self)
        if self._start is None:
            self._start = len(model.xyz)
        done = Refinement()
        if self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0:
            done = self._prune_and_grow(model, optimizer, step, generator)
            self._statistics.clear()
        elif step >= self.refine_stop_iter:
            self._statistics.clear()
        return done

    def state_dict(self) -> dict[str, Tensor]:
        start = {} if self._start is None else {"start": torch.tensor(self._start, device="cpu")}
        return start | self._statistics.rows

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        rows = dict(state)
        start = rows.pop("start", None)
        self._statistics.load(rows)
        self._start = None if start is None else int(start)

    def _last(self) -> int:
        """The step of the last refinement."""
        return (self.refine_stop_iter - 1) // self.refine_every * self.refine_every

    @torch.no_grad()
    def _prune_and_grow(
        self, model: "GaussianModel", optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Both in one move of the rows."""
        score = self._statistics.mean_gradient(len(model.xyz), model.xyz.device)  # [N]
        faint = model.opacity.squeeze(-1).sigmoid() < self.prune_opa
        if (rows := movable(model)) is not None:
            faint &= rows
        small = model.scaling.amax(dim=1).exp() <= self.grow_scale3d * self.scene_scale
        able = (score > 0) & ~faint
        clone, split = allowed(model, able & small, able & ~small)
        pruned = int(faint.sum())
        assert self._start is not None  # since `refine`
        room = self.target(step, self._start) - (len(score) - pruned)
        clone, split = fit_in(clone, split, score, room)
        sources, new = children(model, clone, split, generator, self.revised_opacity)
        if len(sources) or pruned:
            surgery.resize(model, row_names(model), optimizer, ~(split | faint), new)
        return Refinement(cloned=int(clone.sum()), split=int(split.sum()), pruned=pruned, score=score)
