"""Adaptive density control of the original 3DGS, with names and thresholds of gsplat's DefaultStrategy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsopt import surgery
from gsopt.errors import InputError
from gsopt.geometry import quat_to_rotmat
from gsopt.schedules import resolve_steps, scaled
from gsopt.strategy.protocol import Refinement, Strategy, movable, row_names
from gsopt.strategy.statistics import add_gradients

SPLIT_SHRINK = 1.6  # Kerbl et al. 2023, section 5.2: scales of both halves, divided by this
STATISTICS = ("grad2d", "count", "radii")


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
    refine_scale2d_stop_iter: int | None = scaled(0)
    """Screen radii count before this step; 0, as in the original code, is never."""
    refine_start_iter: int | None = scaled(500)
    """Rows change after this step. Scaled."""
    refine_stop_iter: int | None = scaled(15_000)
    """Rows change before this step. Scaled."""
    reset_every: int | None = scaled(3_000, at_least=1_000)
    """Steps between resets of opacity. Scaled, at least 1,000: a model needs hundreds to recover."""
    refine_every: int | None = scaled(100, at_least=100)
    """Steps between changes of rows. Scaled, at least 100: fewer views make the mean gradient a lottery."""
    pause_refine_after_reset: int | None = scaled(0)
    """Steps after a reset without changes of rows. Scaled."""
    absgrad: bool = False
    """Sum absolute gradients over the pixels (AbsGS, Ye et al. 2024); then raise grow_grad2d to 0.0008."""
    revised_opacity: bool = False
    """Let both halves of a split together be as opaque as it was (Bulò et al. 2024, arXiv:2404.06109)."""
    max_gaussians: int | None = None
    """No growth beyond this number of Gaussians."""

    def __post_init__(self) -> None:
        self._statistics: dict[str, Tensor] = {}  # each [N]

    def resolve(self, iterations: int) -> Self:
        return resolve_steps(self, iterations)

    def check(self, model: nn.Module) -> None:
        for name in ("refine_every", "reset_every"):
            if getattr(self._resolved(), name) < 1:
                raise InputError(
                    f"{name}: expected 1 or more steps, found {getattr(self, name)}; "
                    f"raise --densify.{name.replace('_', '-')}"
                )
        if not 0 < self.prune_opa < 0.5:
            raise InputError(
                f"prune_opa: expected an opacity between 0 and 0.5, found {self.prune_opa}; "
                "change --densify.prune-opa"
            )
        count = model.xyz.shape[0]
        if self.max_gaussians is not None and self.max_gaussians < count:
            raise InputError(
                f"max_gaussians: expected at least the {count} Gaussians that training starts with, "
                f"found {self.max_gaussians}; raise it (--max-gaussians) or start with fewer points"
            )

    def needs_grad2d(self, step: int) -> bool:
        return step < self._resolved().refine_stop_iter

    @torch.no_grad()
    def observe(self, model: nn.Module, info: Mapping[str, Any], step: int) -> None:
        """Add this step's gradients, visibility and radii to the statistics.

        Raises:
            ValueError: `info["means2d"]` has no gradient, or other rows than the statistics.
        """
        if not self.needs_grad2d(step):
            return
        means2d = info["means2d"]
        gradients = means2d.absgrad if self.absgrad else means2d.grad  # [C, N, 2]
        if gradients is None:
            raise ValueError(
                "means2d: expected a gradient, found none; call retain_grad() before the backward pass"
            )
        radii = info["radii"]  # int [C, N, 2]
        # The loss is a mean over cameras: its gradient is undone to that of each.
        to_ndc = [info[side] / 2 * info["n_cameras"] for side in ("width", "height")]
        statistics = self._rows(gradients.shape[-2], gradients.device)
        add_gradients(statistics["grad2d"], statistics["count"], radii, gradients, to_ndc)
        if self.refine_scale2d_stop_iter:
            visible = (radii > 0).all(dim=-1)  # [C, N]
            largest = torch.where(visible, radii.amax(dim=-1), 0).amax(dim=0)  # pixels [N]
            longest_side = max(info["width"], info["height"])
            torch.maximum(statistics["radii"], largest / longest_side, out=statistics["radii"])

    @torch.no_grad()
    def refine(
        self, model: nn.Module, optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Grow and prune, then reset opacities, each if it is due after this step."""
        self._resolved()
        if step >= self.refine_stop_iter:
            self._statistics = {}
            return Refinement()
        done = Refinement()
        if (
            step > self.refine_start_iter
            and step % self.refine_every == 0
            and step % self.reset_every >= self.pause_refine_after_reset
        ):
            done = self._grow_and_prune(model, optimizer, step, generator)
            self._statistics = {}
        if step % self.reset_every == 0 and model.opacity.requires_grad:
            limit, rows = _logit(2 * self.prune_opa), movable(model)
            opacity = model.opacity if rows is None else model.opacity[rows]
            surgery.overwrite(model, optimizer, {"opacity": opacity.clamp(max=limit)}, rows)
            done = replace(done, reset=True)
        return done

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._statistics)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state and set(state) != set(STATISTICS):
            raise ValueError(f"DefaultStrategy: expected {', '.join(STATISTICS)}, found {', '.join(state)}")
        self._statistics = {name: value.clone() for name, value in state.items()}

    def _grow_and_prune(
        self, model: nn.Module, optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Clone and split, then prune old and new rows alike, in one move of the rows."""
        statistics = self._rows(model.xyz.shape[0], model.xyz.device)
        clone, split = self._growing(model, statistics, step)
        clone_rows, split_rows = torch.nonzero(clone).flatten(), torch.nonzero(split).flatten()
        sources = torch.cat([clone_rows, split_rows, split_rows])  # of the new rows [M]
        new = {name: model.get_parameter(name).detach()[sources] for name in row_names(model)}
        self._move_halves(model, {name: rows[len(clone_rows) :] for name, rows in new.items()}, generator)

        doomed = self._doomed(model.opacity, model.scaling, statistics["radii"], step)  # [N]
        if (rows := movable(model)) is not None:
            doomed &= rows
        doomed_new = self._doomed(new["opacity"], new["scaling"], statistics["radii"][sources], step)  # [M]
        kept = ~(split | doomed)
        pruned = int((doomed & ~split).sum()) + int(doomed_new.sum())
        if len(sources) or pruned:
            added = {name: rows[~doomed_new] for name, rows in new.items()}
            surgery.resize(model, row_names(model), optimizer, kept, added)
        return Refinement(cloned=len(clone_rows), split=len(split_rows), pruned=pruned)

    def _growing(self, model: nn.Module, statistics: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Masks of the Gaussians to clone and of those to split. [N], [N]"""
        score = statistics["grad2d"] / statistics["count"].clamp_min(1)
        high = score > self.grow_grad2d
        small = model.scaling.amax(dim=1).exp() <= self.grow_scale3d * self.scene_scale
        clone, split = high & small, high & ~small
        if step < self.refine_scale2d_stop_iter:
            split |= statistics["radii"] > self.grow_scale2d
        if not (model.xyz.requires_grad and model.scaling.requires_grad):
            split = torch.zeros_like(split)  # it would move what is frozen
        if (rows := movable(model)) is not None:
            clone, split = clone & rows, split & rows
        if self.max_gaussians is not None:
            room = max(self.max_gaussians - len(score), 0)
            ranked = torch.where(clone | split, score, -1).argsort(descending=True, stable=True)
            taken = (clone.long() + split.long())[ranked].cumsum(0)  # rows: one in both masks takes two
            clone[ranked[taken > room]] = False
            split[ranked[taken > room]] = False
        return clone, split

    def _move_halves(self, model: nn.Module, halves: dict[str, Tensor], generator: torch.Generator) -> None:
        """Turn copies of split Gaussians, all first halves and then all second ones, into halves in place."""
        count = len(halves["xyz"])
        if count == 0:
            return
        # Products and sums element by element: a matrix product would add in an order of its own choice.
        draw = torch.randn(count, 3, generator=generator, device="cpu").to(halves["xyz"].device)
        local = (halves["scaling"].exp() * draw)[:, None, :]  # [2n, 1, 3] in the frame of the Gaussian
        along = quat_to_rotmat(halves["rotation"]) * local  # [2n, 3, 3]
        halves["xyz"] += along[..., 0] + along[..., 1] + along[..., 2]
        halves["scaling"] -= math.log(SPLIT_SHRINK)
        if self.revised_opacity and model.opacity.requires_grad:
            halves["opacity"].copy_(torch.logit(1 - (1 - halves["opacity"].sigmoid()).sqrt()))

    def _doomed(self, opacity: Tensor, scaling: Tensor, radii: Tensor, step: int) -> Tensor:
        """Mask of the rows to prune. [N]"""
        doomed = opacity.squeeze(-1).sigmoid() < self.prune_opa
        if step > self.reset_every:
            doomed |= scaling.amax(dim=1).exp() > self.prune_scale3d * self.scene_scale
            if step < self.refine_scale2d_stop_iter:
                doomed |= radii > self.prune_scale2d
        return doomed

    def _rows(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """The statistics, made or moved to `device` if need be. Each [count]"""
        statistics = self._statistics or {name: torch.zeros(count, device=device) for name in STATISTICS}
        found = len(statistics["count"])
        if found != count:
            raise ValueError(
                f"DefaultStrategy: expected statistics of {count} Gaussians, found {found}; "
                "rows were changed between two refinements by something else"
            )
        self._statistics = {name: value.to(device) for name, value in statistics.items()}
        return self._statistics

    def _resolved(self) -> Self:
        open_ones = [f.name for f in fields(self) if "of_30k" in f.metadata and getattr(self, f.name) is None]
        if open_ones:
            raise ValueError(
                f"DefaultStrategy: {', '.join(open_ones)}: depends on the length of the run; "
                "call resolve(iterations)"
            )
        return self


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
