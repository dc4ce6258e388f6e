"""3D Gaussian splatting as Markov chain Monte Carlo, with the settings of gsplat's MCMCStrategy."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsopt import surgery
from gsopt.errors import InputError
from gsopt.schedules import REFERENCE_ITERATIONS, Steps, resolve_steps, scaled
from gsopt.strategy.growth import (
    PIXELS_PER_GAUSSIAN,
    Rows,
    check_limit,
    check_pixels,
    check_positive,
    check_resolved,
    default_limit,
)
from gsopt.strategy.noise import perturb, rows_below, turned
from gsopt.strategy.protocol import Refinement, Strategy, movable, row_names

if TYPE_CHECKING:
    from gsopt.model import GaussianModel

GROWTH = 1.05  # Kheradmand et al. 2024, section 4: most Gaussians after 100 of 30,000 steps, by those before
MOST_SHARES = 51  # as in the authors' code: Gaussians that one is replaced by, at most
NOISE_UP_TO = (
    0.1  # opacity; the gate is 7e-5 there: the more opaque would not move by 1/100 of its size in a run
)
NOISE_EVERY = 4  # steps whose noise is drawn at once: the same random walk in a quarter of the time
LARGEST_OPACITY = 1 - torch.finfo(torch.float32).eps  # the logit of 1 is infinite
WEIGHT_ONE = 2**32  # opacity 1 as a weight in draws: whole numbers add up to the same in any order


@dataclass
class MCMCStrategy(Strategy):
    """Moves dead Gaussians to live ones, adds new ones up to a limit, and lets positions wander.

    Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo" (2024, arXiv:2404.09591). At each
    refinement dead Gaussians, those that hardly show, begin anew at live ones, drawn by opacity, and 5% are
    added in the same way; opacities and scales are changed such that the picture stays nearly what it was.
    After each step noise moves every Gaussian that is not opaque, along its own shape. Terms of the loss pull
    opacities and scales down, so that what is not needed dies.

    What differs from gsplat 1.5.3, on purpose:

    - Moments are zero at a relocated Gaussian and at the one it went to; gsplat keeps those of the dead one.
    - Relocated Gaussians are the last rows afterwards, not in the places of the dead.
    - Draws are by whole numbers, exact and the same with any number of threads.
    - A copy begins at a random place of its Gaussian; growth and the first opacity fit short runs.
    - The noise of four steps is one draw of twice the size.
    - Noise and the scale term are in scene extents, as gsplat's trainer scales the world to about 1; with
      `scene_scale` 1 the formulas are its own.
    - Gaussians that are not opaque enough to be drawn are left where they are if there is none that is.
    - Frozen attributes keep their values: with xyz frozen there is neither noise nor relocation; with scaling
      or opacity frozen there is no relocation, and what is added copies the frozen ones. Locked Gaussians
      are left alone altogether.

    Settings in steps that are None scale with the run, see :meth:`resolve`.
    """

    scene_scale: float = 1.0
    """Extent of the scene in world units, which noise and scales are relative to."""
    max_gaussians: int | None = None
    """Most Gaussians (gsplat's cap_max); default: one for 65 pixels of the training views, at most
    a million."""
    training_pixels: int | None = None
    """Pixels of all training views, for the default of max_gaussians; without either there is no limit."""
    pixels_per_gaussian: float = PIXELS_PER_GAUSSIAN
    """Pixels of the training views for each Gaussian of that default."""
    noise_lr: float = 5e5
    """The noise is this times the learning rate of xyz, before --fit-rates, times the covariance; 0: none."""
    refine_start_iter: Steps = scaled(500)
    """Gaussians are relocated and added after this step. Scaled."""
    refine_stop_iter: Steps = scaled(25_000)
    """Gaussians are relocated and added before this step. Scaled."""
    refine_every: Steps = scaled(100, at_least=100)
    """Steps between refinements. Scaled, at least 100."""
    growth: float | None = None
    """Most Gaussians after a refinement, by those before; default 1.05 in 100 steps, scaled, at least 20."""
    spread: float = 1.0
    """A copy begins at a random place of its Gaussian, so many standard deviations wide; 0: in the middle."""
    init_opacity: float = 0.5
    """Of Gaussians that are made from points."""
    min_opacity: float = 0.005
    """Gaussians up to this opacity are dead."""
    opacity_reg: float = 0.01
    """Weight of the mean opacity in the loss; 0 for none."""
    scale_reg: float = 0.01
    """Weight of the mean scale, in scene extents, in the loss; 0 for none."""

    def resolve(self, iterations: int) -> Self:
        found = resolve_steps(self, iterations)
        if found.growth is None:
            times = found.refine_every / max(100 * iterations / REFERENCE_ITERATIONS, 20)
            found = replace(found, growth=GROWTH ** max(times, 1))
        return found

    @torch.no_grad()
    def prepare(self, model: "GaussianModel") -> None:
        """Make what is not frozen or locked as opaque as `init_opacity` says."""
        if model.opacity.requires_grad:
            rows = movable(model)
            model.opacity[slice(None) if rows is None else rows] = _logit(self.init_opacity)

    def plan(self, model: "GaussianModel") -> str:
        limit = default_limit(self)
        return "" if limit is None else f"at most {max(limit, len(model.xyz)):,} Gaussians"

    def forecast(self, now: int, count: int, step: int, growth: float) -> float:
        """As many as may come: they do, unless hardly any is opaque."""
        first, last = max(now, self.refine_start_iter), min(step, self.refine_stop_iter - 1)
        refinements = max(last // self.refine_every - first // self.refine_every, 0)
        limit = default_limit(self)
        log = math.log(count) + refinements * math.log(self.growth or GROWTH) if count else 0.0
        if limit is not None:
            log = min(log, math.log(max(limit, count)))
        return max(count, math.exp(min(log, math.log(sys.maxsize))))

    def check(self, model: "GaussianModel") -> None:
        check_resolved(self)
        check_positive("--mcmc", self, "refine_every")
        check_limit(self.max_gaussians, model)
        check_pixels("--mcmc", self)
        for name, most in (("min_opacity", 0.5), ("init_opacity", 1.0)):
            if not 0 < (value := getattr(self, name)) < most:
                flag = f"--mcmc.{name.replace('_', '-')}"
                raise InputError(
                    f"{name}: expected an opacity between 0 and {most:g}, found {value}; change {flag}"
                )
        if self.growth is not None and self.growth < 1:
            raise InputError(f"growth: expected 1 or more, found {self.growth}; raise --mcmc.growth")

    def regularization(self, model: "GaussianModel") -> Mapping[str, Tensor]:
        """Terms "opacity_reg" and "scale_reg": what is not needed fades and shrinks (eq. 10)."""
        terms = {}
        if self.opacity_reg and model.opacity.requires_grad:
            terms["opacity_reg"] = self.opacity_reg * model.opacity.sigmoid().mean()
        if self.scale_reg and model.scaling.requires_grad:
            terms["scale_reg"] = self.scale_reg / self.scene_scale * model.scaling.exp().mean()
        return terms

    @torch.no_grad()
    def refine(
        self, model: "GaussianModel", optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> Refinement:
        """Relocate and add if it is due after this step, then move positions."""
        check_resolved(self)
        done = Refinement()
        if self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0:
            done = self._relocate_and_add(model, optimizer, generator)
        if step % NOISE_EVERY == 0:
            self._perturb(model, optimizer, generator)
        return done

    def _relocate_and_add(
        self, model: "GaussianModel", optimizer: Optimizer | None, generator: torch.Generator
    ) -> Refinement:
        """Both in one move of the rows: the dead go, and their number and the new come as copies."""
        before = model.opacity.detach().squeeze(-1).sigmoid()  # [N]
        allowed = _all_true(before) if (rows := movable(model)) is None else rows
        dead = (before <= self.min_opacity) & allowed
        if not all(getattr(model, name).requires_grad for name in ("xyz", "scaling", "opacity")):
            dead = torch.zeros_like(dead)
        if not (allowed & ~dead & (before > 0)).any():
            return Refinement(score=before)  # nobody to be copied
        limit = default_limit(self)
        wanted = int((self.growth or GROWTH) * len(before))
        added = max((wanted if limit is None else min(limit, wanted)) - len(before), 0)

        sources = torch.nonzero(~dead).flatten()  # the row of the model that each row then comes from
        kept = len(sources)
        opacity, scaling = model.opacity.detach()[sources], model.scaling.detach()[sources]
        drawn = []
        for count in (int(dead.sum()), added):
            weights = torch.where(allowed[sources], opacity.squeeze(-1).double().sigmoid(), 0)
            chosen = draw(weights, count, generator)  # [count]
            opacity, scaling = self._share(model, opacity, scaling, chosen)
            sources, opacity, scaling = (torch.cat([t, t[chosen]]) for t in (sources, opacity, scaling))
            drawn.append(_mask_of(chosen, kept))
        shared = {"opacity": opacity, "scaling": scaling}
        self._overwrite_sources(model, optimizer, sources[:kept], shared, *drawn)
        if len(sources) > kept:
            new = {name: model.get_parameter(name).detach()[sources[kept:]] for name in row_names(model)}
            new |= {name: values[kept:] for name, values in shared.items()}
            self._spread(model, new, generator)
            surgery.resize(model, row_names(model), optimizer, ~dead, new)
        return Refinement(relocated=int(dead.sum()), added=added, score=before)

    def _spread(self, model: "GaussianModel", new: Rows, generator: torch.Generator) -> None:
        """Move copies to random places of their Gaussians: in one and the same place, with equal gradients
        and moments, they would stay together for good."""
        if not (self.spread and model.xyz.requires_grad):
            return
        draws = torch.randn(new["xyz"].shape, generator=generator, device="cpu").to(new["xyz"])
        new["xyz"] += turned(new["rotation"], self.spread * new["scaling"].exp() * draws)

    def _share(
        self, model: "GaussianModel", opacity: Tensor, scaling: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Raw opacities [M, 1] and scales [M, 3] where the `chosen` rows share theirs with their copies."""
        if not (len(chosen) and model.opacity.requires_grad):
            return opacity, scaling
        rows, copies = chosen.unique(return_counts=True)
        new, factor = shares(opacity[rows].squeeze(-1).sigmoid(), copies + 1)
        new = new.clamp(self.min_opacity, LARGEST_OPACITY)
        opacity, scaling = opacity.clone(), scaling.clone()
        opacity[rows] = torch.logit(new)[:, None].to(opacity)
        if model.scaling.requires_grad:
            scaling[rows] += factor.log()[:, None].to(scaling)
        return opacity, scaling

    def _overwrite_sources(
        self,
        model: "GaussianModel",
        optimizer: Optimizer | None,
        rows: Tensor,
        shared: dict[str, Tensor],
        relocated: Tensor,
        added: Tensor,
    ) -> None:
        """Give sources what they share. Those of relocated Gaussians lose the moments of all attributes.

        `rows` [K] are of the model, the masks [K] say which of them are sources of which.
        """
        free = [name for name in row_names(model) if model.get_parameter(name).requires_grad]
        changed = [name for name in shared if name in free and "opacity" in free]
        for names, mask in ((free, relocated), (changed, added & ~relocated)):
            places = rows[mask]
            values = {name: model.get_parameter(name).detach()[places] for name in names}
            values |= {name: shared[name][: len(rows)][mask] for name in shared if name in names}
            if len(places) and values:
                surgery.overwrite(model, optimizer, values, places)

    def _perturb(
        self, model: "GaussianModel", optimizer: Optimizer | None, generator: torch.Generator
    ) -> None:
        """Add noise to positions (eq. 8): the fainter a Gaussian, the more, along its own shape."""
        rate = _learning_rate(optimizer, model.xyz)
        if not (rate and self.noise_lr and model.xyz.requires_grad):
            return
        rows = rows_below(model.opacity.detach(), _logit(NOISE_UP_TO), movable(model))
        draws = torch.randn(len(rows), 3, generator=generator, device="cpu").to(model.xyz, non_blocking=True)
        shape = model.opacity.detach(), model.rotation.detach(), model.scaling.detach()
        strength = math.sqrt(NOISE_EVERY) * rate * self.noise_lr / self.scene_scale**2
        perturb(model.xyz.detach(), rows, draws, *shape, strength)


def shares(opacities: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """What `count` equal Gaussians in one place need in order to look like one (Kheradmand et al., eq. 9).

    Args:
        opacities: of the one, 0 to 1, without 0. [M]
        count: Gaussians that replace it, 1 or more; more than 51 count as 51. int64 [M]

    Returns:
        The opacity of each of them, and the factor on its scales. float64 [M], [M]
    """
    opacities = opacities.double().clamp(max=LARGEST_OPACITY)
    count = count.clamp(1, MOST_SHARES)
    # 1 - (1 - o)^(1/count), without loss where o is small. One that is quite opaque needs opaque parts.
    new = -torch.expm1(torch.log1p(-opacities) / count)
    # The double sum of eq. 9, its inner binomials added up: sum_i C(i-1, k) = C(count, k+1).
    binomials = _binomials().to(opacities.device)[count]  # [M, 52]
    total = torch.zeros_like(new)
    for j in range(int(count.max()) if len(count) else 0, 0, -1):  # Horner's rule, in a fixed order
        total = (total + (-1) ** (j - 1) / math.sqrt(j) * binomials[:, j]) * new
    return new, opacities / total


def draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows drawn with replacement in proportion to their weights, 0 to 1. int64 [count]

    At least one weight has to be above 0. The same on every device and with any number of threads.
    """
    sums = (weights.double() * WEIGHT_ONE).ceil().long().cpu().cumsum(0)  # ceil: a tiny weight is above 0
    picks = torch.randint(int(sums[-1]), (count,), generator=generator, device="cpu")
    return torch.searchsorted(sums, picks, right=True).to(weights.device)


@cache
def _binomials() -> Tensor:
    """C(n, k), 0 for k > n. float64 [52, 52]"""
    numbers = range(MOST_SHARES + 1)
    rows = [[math.comb(n, k) for k in numbers] for n in numbers]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _learning_rate(optimizer: Optimizer | None, parameter: nn.Parameter) -> float:
    """That of the group which the parameter is in; 0 where it is in none."""
    groups = optimizer.param_groups if optimizer is not None else ()
    return next((float(g["lr"]) for g in groups if any(p is parameter for p in g["params"])), 0.0)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _mask_of(rows: Tensor, length: int) -> Tensor:
    """Which of the first `length` rows are among `rows`. bool [length]"""
    mask = torch.zeros(length, dtype=torch.bool, device=rows.device)
    mask[rows[rows < length]] = True
    return mask


def _all_true(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)
