"""Adaptive density control does row for row what `gsplat.DefaultStrategy`, plain PyTorch, does on a CPU.

First over random numbers and every option, then over what a real training sees. On purpose we differ in three
things, and the tests step around them: refinement follows `optimizer.step()`, so gsplat's is called with the
parameters after it; opacities are reset, which gsplat 1.5.3 never does, so its `reset_opa` is called by hand;
and the radius of a Gaussian in several cameras is the largest.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from optimizing import gaussian_groups
from refining import STEPS, give_gradients, random_info, random_model

from gsopt.config import TrainConfig
from gsopt.groups import GroupSpec
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.strategy import DefaultStrategy, Refinement
from gsopt.trainer import Trainer

THEIRS = {
    "means": "xyz",
    "scales": "scaling",
    "quats": "rotation",
    "opacities": "opacity",
    "sh0": "feature_dc",
    "shN": "feature_rest",
}
OPTIONS = {
    "defaults": ({}, 1),
    "absgrad": (dict(absgrad=True), 1),
    "revised opacity": (dict(revised_opacity=True), 1),
    "screen size": (dict(refine_scale2d_stop_iter=30, grow_scale2d=0.1, prune_scale2d=0.11), 1),
    "pause after reset": (dict(pause_refine_after_reset=5), 1),
    "three cameras": ({}, 3),
    "small scene": (dict(scene_scale=0.3), 1),
}


class Peer:
    """gsplat's strategy with its parameters and one Adam for each, as its trainer has them."""

    def __init__(self, model: GaussianModel, scene_scale: float, options: dict):
        gsplat = pytest.importorskip("gsplat", reason="the parity test needs the extra cuda")
        from gsplat.strategy import ops

        self.reset_opa = ops.reset_opa
        self.strategy = gsplat.DefaultStrategy(**options)
        self.state = self.strategy.initialize_state(scene_scale)
        self.grown, self.pruned = (0, 0), 0
        grow, prune = self.strategy._grow_gs, self.strategy._prune_gs
        self.strategy._grow_gs = lambda *arguments: self._remember("grown", grow(*arguments))
        self.strategy._prune_gs = lambda *arguments: self._remember("pruned", prune(*arguments))
        self.copy(model)

    def _remember(self, name: str, found):
        setattr(self, name, found)
        return found

    def copy(self, model: GaussianModel, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take over the values of our model, and the moments of our optimizer."""
        self.params, self.optimizers = {}, {}
        for theirs, ours in THEIRS.items():
            parameter = model.get_parameter(ours)
            shape = parameter.shape[:1] if theirs == "opacities" else parameter.shape
            self.params[theirs] = torch.nn.Parameter(parameter.detach().clone().reshape(shape))
            self.optimizers[theirs] = torch.optim.Adam([self.params[theirs]], lr=0.01, eps=1e-15)
            if optimizer is not None:
                state = optimizer.state[parameter]
                moments = {key: state[key].clone().reshape(shape) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizers[theirs].state[self.params[theirs]] = moments

    def step(self, model: GaussianModel, info: dict, step: int) -> bool:
        """One step with the gradients that `model` has; whether opacities are to be reset at its end."""
        for theirs, ours in THEIRS.items():
            self.params[theirs].grad = getattr(model, ours).grad.reshape(self.params[theirs].shape).clone()
            self.optimizers[theirs].step()
        return self.refine(info, step)

    def refine(self, info: dict, step: int) -> bool:
        """What follows a step; whether opacities are to be reset at its end."""
        torch.manual_seed(step)
        arguments = (self.params, self.optimizers, self.state, step, info)
        self.strategy.step_post_backward(*arguments)
        due = step < self.strategy.refine_stop_iter and step % self.strategy.reset_every == 0
        if due:  # which its own condition never finds
            self.reset_opa(self.params, self.optimizers, self.state, self.strategy.prune_opa * 2)
        return due

    def require_same(self, model: GaussianModel, optimizer: torch.optim.Optimizer, message: str) -> None:
        """The same rows, values and moments as ours."""
        for theirs, name in THEIRS.items():
            parameter, peers = getattr(model, name), self.params[theirs]
            assert len(parameter) == len(peers), message
            torch.testing.assert_close(parameter.detach().reshape(peers.shape), peers.detach())
            for key, value in self.optimizers[theirs].state[peers].items():
                mine = optimizer.state[parameter][key]
                torch.testing.assert_close(mine.reshape(value.shape), value, atol=1e-12, rtol=1e-5)


@pytest.mark.parametrize("case", OPTIONS)
def test_the_same_rows_and_values_as_gsplat(case):
    options, cameras = OPTIONS[case]
    options = STEPS | options
    scene_scale = options.pop("scene_scale", 1.0)
    generator = torch.Generator().manual_seed(1)
    model = random_model(300, generator)
    rate = {name: GroupSpec(0.01) for name in ATTRIBUTES}
    optimizer = build_optimizer("adam", gaussian_groups(model, **rate), fused=False)
    peer = Peer(model, scene_scale, options)
    ours = DefaultStrategy(scene_scale=scene_scale, **options).resolve(30_000)
    totals = Counter()
    for step in range(1, 46):
        info = random_info(model.num_gaussians, cameras, generator)
        give_gradients(model, step)
        due = peer.step(model, info, step)
        ours.observe(model, info, step)
        optimizer.step()
        done = ours.refine(model, optimizer, step, torch.Generator().manual_seed(step))
        assert done.reset == due
        peer.require_same(model, optimizer, f"step {step}: {done}")
        totals += Counter(done.counts | {"reset": done.reset})
    assert min(totals[what] for what in ("cloned", "split", "pruned")) > 20
    assert totals["reset"] == 3


class Accompanied(DefaultStrategy):
    """Adaptive density control with gsplat's beside it, over the same parameters, gradients and radii."""

    def begin(self, model: GaussianModel, options: dict) -> None:
        self.peer, self.totals, self.refined = Peer(model, self.scene_scale, options), Counter(), 0

    def observe(self, model, info, step) -> None:
        super().observe(model, info, step)
        self.info = info

    def refine(self, model, optimizer, step, generator) -> Refinement:
        self.peer.copy(model, optimizer)
        self.peer.grown, self.peer.pruned = (0, 0), 0
        due = self.peer.refine(self.info | {"gaussian_ids": None}, step)
        done = super().refine(model, optimizer, step, torch.Generator().manual_seed(step))
        assert ((done.cloned, done.split), done.pruned) == (self.peer.grown, self.peer.pruned)
        assert done.reset == due
        self.peer.require_same(model, optimizer, f"step {step}: {done}")
        self.totals += Counter(done.counts | {"reset": done.reset})
        self.refined += done.score is not None
        return done


@pytest.mark.parametrize("refinements", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_the_same_as_gsplat_over_a_real_training(refinements, builtin_scene, tmp_path):
    """Photos of the fox, where they are at hand; refined eagerly, so that each finds something to do."""
    fox = Path(builtin_scene).parents[2] / "shared" / "scenes" / "fox"
    steps = 5 * refinements + 1
    options = dict(refine_start_iter=3, refine_stop_iter=steps, refine_every=5, reset_every=60)
    options |= dict(prune_opa=0.02, grow_grad2d=4e-4, grow_scale2d=0.2, refine_scale2d_stop_iter=steps // 2)
    settings = TrainConfig(
        scene=fox if fox.is_dir() else builtin_scene,
        output=tmp_path / "run",
        resolution=60,
        iterations=steps,
        device="cpu",
        sh_degree=1,
        quiet=True,
    )
    scale = settings.resolved("cpu").load_scene().extent
    ours = Accompanied(scene_scale=scale, max_gaussians=None, pause_refine_after_reset=0, **options)
    trainer = Trainer(settings, strategy=ours)
    trainer.strategy.begin(trainer.model, options)
    for _ in range(steps):
        trainer.train_step()
    found = trainer.strategy
    assert found.refined == refinements
    assert min(found.totals[what] for what in ("cloned", "split", "pruned")) > refinements
    assert found.totals["reset"] == (steps - 1) // 60
