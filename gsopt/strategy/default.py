"""Adaptive density control of the original 3DGS, with names and thresholds of gsplat's DefaultStrategy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt import surgery
from gsopt.errors import InputError
from gsopt.schedules import Steps, resolve_steps, scaled
from gsopt.strategy.growth import allowed, check_limit, check_positive, check_resolved, children, fit_in
from gsopt.strategy.protocol import Refinement, Strategy, movable, row_names
from gsopt.strategy.statistics import ViewStatistics

if TYPE_CHECKING:
    from gsopt.model import GaussianModel


@dataclass
class DefaultStrategy(Strategy):
    """Clone small and split large Gaussians whose image moves, prune faint and huge ones, reset opacities.

    Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (2023), section 5.2.
    Where that and `gsplat` 1.5.3 differ, the numbers are gsplat's. The mean norm of the gradient of the
    projected centre, in normalised device coordinates and over the views in which a Gaussian was visible,
    decides about growth.

    What differs from gsplat 1.5.3, on purpose:

    - Opacities are reset every `reset_every` steps. gsplat never does: ``step % n == 0 & step > 0`` is false.
    - Refinement follows `optimizer.step()`, so no update is lost, and steps count from 1.
    - Frozen attributes keep their values: a split that would move a frozen xyz or scaling does not happen,
      a reset skips a frozen opacity. Clones copy them. Locked Gaussians are left alone altogether.
    - Several cameras in one step: the radius of a Gaussian is its largest, not that of the last camera.
    - `max_gaussians`: where more would grow than there is room for, those with the largest gradient do, of
      equal ones the first. Pruning comes after growth and makes room for the next refinement only, so the
      limit is never passed.

    Settings in steps that are None scale with the run, see :meth:`resolve`.
    """

    scene_scale: float = 1.0
    """Extent of the scene in world units, which the 3D thresholds are relative to."""
    prune_opa: float = 0.005
    """Gaussians with an opacity below are pruned; a reset lowers opacities to twice this."""
    grow_grad2d: float = 0.0002
    """Gaussians with a mean gradient of the projected centre above are cloned or split. NDC."""
    grow_scale3d: float = 0.01
    """Up to this largest scale they are cloned, above split. Scene extents."""
    grow_scale2d: float = 0.05
    """Gaussians with a screen radius above are split. Longest image sides."""
    prune_scale3d: float = 0.1
    """Gaussians with a largest scale above are pruned, once opacities have been reset. Scene extents."""
    prune_scale2d: float = 0.15
    """Gaussians with a screen radius above are pruned, once opacities were reset. Longest image sides."""
    refine_scale2d_stop_iter: Steps = scaled(0)
    """Screen radii count before this step; 0, as in the original code, is never."""
    refine_start_iter: Steps = scaled(500)
    """Rows change after this step. Scaled."""
    refine_stop_iter: Steps = scaled(15_000)
    """Rows change before this step. Scaled."""
    reset_every: Steps = scaled(3_000, at_least=1_000)
    """Steps between resets of opacity. Scaled, at least 1,000: a model needs hundreds to recover."""
    refine_every: Steps = scaled(100, at_least=100)
    """Steps between changes of rows. Scaled, at least 100: fewer views make the mean gradient a lottery."""
    pause_refine_after_reset: Steps = scaled(0)
    """Steps after a reset without changes of rows. Scaled."""
    absgrad: bool = False
    """Sum absolute gradients over the pixels (AbsGS, Ye et al. 2024); then raise grow_grad2d to 0.0008."""
    revised_opacity: bool = False
    """Let both halves of a split together be as opaque as it was (Bulò et al. 2024, arXiv:2404.06109)."""
    max_gaussians: int | None = None
    """No growth beyond this number of Gaussians."""

    def __post_init__(self) -> None:
        self._statistics = ViewStatistics("DefaultStrategy")

    def resolve(self, iterations: int) -> Self:
        return resolve_steps(self, iterations)

    def plan(self, model: "GaussianModel") -> str:
        return "" if self.max_gaussians is None else f"at most {self.max_gaussians:,} Gaussians"

    def forecast(self, now: int, count: int, step: int, growth: float) -> float:
        """It goes on as of late, slower with time: in a refinement fewer and fewer grow."""
        steps = min(step, self.refine_stop_iter) - max(now, self.refine_start_iter)
        if steps <= 0:
            return count
        slowing = 2 * (self.refine_stop_iter - self.refine_start_iter)  # as seen in runs of 2,000 and 3,000
        found = count + max(growth, 0) * slowing * -math.expm1(-steps / slowing)
        return found if self.max_gaussians is None else min(found, max(self.max_gaussians, count))

    def check(self, model: "GaussianModel") -> None:
        check_resolved(self)
        check_positive("--densify", self, "refine_every", "reset_every")
        check_limit(self.max_gaussians, model)
        if not 0 < self.prune_opa < 0.5:
            raise InputError(
                f"prune_opa: expected an opacity between 0 and 0.5, found {self.prune_opa}; "
                "change --densify.prune-opa"
            )

    def needs_grad2d(self, step: int) -> bool:
        check_resolved(self)
        return step < self.refine_stop_iter

    def observe(self, model: "GaussianModel", info: Mapping[str, Any], step: int) -> None:
        """Add this step's gradients, visibility and radii to the statistics.

        Raises:
            ValueError: `info["means2d"]` has no gradient, or other rows than the statistics.
        """
        if not self.needs_grad2d(step):
            return
        self._statistics.add(info, self.absgrad, screen_size=bool(self.refine_scale2d_stop_iter))

    def refine(
        self, model: "GaussianModel", optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Grow and prune, then reset opacities, each if it is due after this step."""
        check_resolved(self)
        if step >= self.refine_stop_iter:
            self._statistics.clear()
            return Refinement()
        done = Refinement()
        if (
            step > self.refine_start_iter
            and step % self.refine_every == 0
            and step % self.reset_every >= self.pause_refine_after_reset
        ):
            done = self._grow_and_prune(model, optimizer, step, generator)
            self._statistics.clear()
        if step % self.reset_every == 0 and model.opacity.requires_grad:
            self._reset(model, optimizer)
            done = replace(done, reset=True)
        return done

    @torch.no_grad()
    def _reset(self, model: "GaussianModel", optimizer: Optimizer | None) -> None:
        """Lower opacities to twice that at which a Gaussian is pruned."""
        limit, rows = _logit(2 * self.prune_opa), movable(model)
        opacity = model.opacity if rows is None else model.opacity[rows]
        surgery.overwrite(model, optimizer, {"opacity": opacity.clamp(max=limit)}, rows)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._statistics.rows)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._statistics.load(state)

    @torch.no_grad()
    def _grow_and_prune(
        self, model: "GaussianModel", optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Clone and split, then prune old and new rows alike, in one move of the rows."""
        statistics = self._statistics.of(model.xyz.shape[0], model.xyz.device)
        score = self._statistics.mean_gradient(model.xyz.shape[0], model.xyz.device)
        clone, split = self._growing(model, score, statistics["radii"], step)
        sources, new = children(model, clone, split, generator, self.revised_opacity)

        doomed = self._doomed(model.opacity, model.scaling, statistics["radii"], step)  # [N]
        if (rows := movable(model)) is not None:
            doomed &= rows
        doomed_new = self._doomed(new["opacity"], new["scaling"], statistics["radii"][sources], step)  # [M]
        kept = ~(split | doomed)
        pruned = int((doomed & ~split).sum()) + int(doomed_new.sum())
        if len(sources) or pruned:
            added = {name: rows[~doomed_new] for name, rows in new.items()}
            surgery.resize(model, row_names(model), optimizer, kept, added)
        return Refinement(cloned=int(clone.sum()), split=int(split.sum()), pruned=pruned, score=score)

    def _growing(
        self, model: "GaussianModel", score: Tensor, radii: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Masks of the Gaussians to clone and of those to split. [N], [N]"""
        high = score > self.grow_grad2d
        small = model.scaling.amax(dim=1).exp() <= self.grow_scale3d * self.scene_scale
        clone, split = high & small, high & ~small
        if step < self.refine_scale2d_stop_iter:
            split |= radii > self.grow_scale2d
        clone, split = allowed(model, clone, split)
        if self.max_gaussians is not None:
            clone, split = fit_in(clone, split, score, self.max_gaussians - len(score))
        return clone, split

    def _doomed(self, opacity: Tensor, scaling: Tensor, radii: Tensor, step: int) -> Tensor:
        """Mask of the rows to prune. [N]"""
        doomed = opacity.squeeze(-1).sigmoid() < self.prune_opa
        if step > self.reset_every:
            doomed |= scaling.amax(dim=1).exp() > self.prune_scale3d * self.scene_scale
            if step < self.refine_scale2d_stop_iter:
                doomed |= radii > self.prune_scale2d
        return doomed


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
