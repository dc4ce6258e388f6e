"""Adaptive density control does row for row what `gsplat.DefaultStrategy`, plain PyTorch, does on a CPU."""

import pytest
import torch
from optimizing import gaussian_groups
from refining import STEPS, give_gradients, random_info, random_model

from gsopt.groups import GroupSpec
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.strategy import DefaultStrategy, Refinement

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
        self.params = {
            theirs: torch.nn.Parameter(getattr(model, ours).detach().clone().squeeze(1))
            if theirs == "opacities"
            else torch.nn.Parameter(getattr(model, ours).detach().clone())
            for theirs, ours in THEIRS.items()
        }
        self.optimizers = {
            name: torch.optim.Adam([parameter], lr=0.01, eps=1e-15) for name, parameter in self.params.items()
        }

    def step(self, model: GaussianModel, info: dict, step: int) -> bool:
        """One step with the gradients that `model` has; whether opacities are to be reset at its end."""
        for theirs, ours in THEIRS.items():
            self.params[theirs].grad = getattr(model, ours).grad.reshape(self.params[theirs].shape).clone()
            self.optimizers[theirs].step()
        torch.manual_seed(step)
        arguments = (self.params, self.optimizers, self.state, step, info)
        self.strategy.step_post_backward(*arguments)
        due = step < self.strategy.refine_stop_iter and step % self.strategy.reset_every == 0
        if due:  # which its own condition never finds
            self.reset_opa(self.params, self.optimizers, self.state, self.strategy.prune_opa * 2)
        return due


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
    totals = Refinement()
    for step in range(1, 46):
        info = random_info(model.num_gaussians, cameras, generator)
        give_gradients(model, step)
        due = peer.step(model, info, step)
        ours.observe(model, info, step)
        optimizer.step()
        done = ours.refine(model, optimizer, step, torch.Generator().manual_seed(step))
        assert done.reset == due
        for theirs, name in THEIRS.items():
            parameter, peers = getattr(model, name), peer.params[theirs]
            assert len(parameter) == len(peers), f"step {step}: {done}"
            torch.testing.assert_close(parameter.detach().reshape(peers.shape), peers.detach())
            for key, value in peer.optimizers[theirs].state[peers].items():
                mine = optimizer.state[parameter][key]
                torch.testing.assert_close(mine.reshape(value.shape), value, atol=1e-12, rtol=1e-5)
        totals = Refinement(*(a + b for a, b in zip(vars(totals).values(), vars(done).values(), strict=True)))
    assert totals.cloned > 20
    assert totals.split > 20
    assert totals.pruned > 20
    assert totals.reset == 3
