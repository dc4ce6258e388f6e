"""The proof of freezing, on bits: 200 steps of any optimizer, through any densification: nothing has changed.

Gradients are random and nothing is rendered. The Gaussians carry a mark, from which the test knows what each
row was when the freeze began, whatever densification has made of the rows since.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from optimizing import train
from refining import random_info, random_model
from torch import Tensor, nn

from gsopt import surgery
from gsopt.groups import GroupSpec, apply_freezes, build_groups, freeze, gaussian_specs, unfreeze
from gsopt.model import ATTRIBUTES
from gsopt.optim import build_optimizer
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy

BEFORE, FROZEN = 10, 200  # steps
ROWS, MOST = 60, 100

OPTIMIZERS = {  # name, options; momentum and weight decay are on where there are any
    "adam": ("adam", {}),
    "adam in the kernel": ("adam", {"native": True}),
    "adam, amsgrad": ("adam", {"amsgrad": True}),
    "adamw": ("adamw", {}),
    "adamw in the kernel": ("adamw", {"native": True}),
    "sgd": ("sgd", {"momentum": 0.9, "dampening": 0.1}),
    "sgd, nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "nadam": ("nadam", {}),
    "radam": ("radam", {}),
    "adagrad": ("adagrad", {}),
    "adadelta": ("adadelta", {}),
    "adamax": ("adamax", {}),
    "asgd": ("asgd", {}),
    "rmsprop": ("rmsprop", {"momentum": 0.9, "centered": True}),
    "rprop": ("rprop", {}),
    "adafactor": ("adafactor", {}),
    "visible_adam": ("visible_adam", {}),
    "visible_adam in the kernel": ("visible_adam", {"native": True}),
}
WHEN = dict(refine_start_iter=BEFORE, refine_stop_iter=1000, refine_every=10, max_gaussians=MOST)
STRATEGIES = {
    "default": DefaultStrategy(**WHEN, reset_every=50),
    "mcmc": MCMCStrategy(**WHEN),
    "budget": BudgetStrategy(**WHEN),
}
BY_STRATEGY = [  # every optimizer with the first, and some with the others
    *(pytest.param(case, "default", id=case) for case in OPTIMIZERS),
    *(
        pytest.param(case, strategy, id=f"{case}, {strategy}")
        for case in ("adam", "adamw in the kernel", "sgd")
        for strategy in ("mcmc", "budget")
    ),
]
CASTS = {  # what is frozen by `freeze`, by a window, and left out of the optimizer
    "splits and resets happen": ("rotation", "feature_dc", "feature_rest"),
    "resets do not": ("feature_rest", "opacity", "rotation"),
    "splits do not": ("xyz", "scaling", "feature_dc"),
    "neither": ("opacity", "xyz", "scaling"),
}


class Run:
    """Random Gaussians under an optimizer and a strategy; the last three arguments are attributes."""

    def __init__(
        self, strategy: str, name: str, options: dict, frozen: str, windowed: str, excluded: str
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model = random_model(ROWS, self.generator)
        self.model.mark = nn.Parameter(torch.arange(ROWS).float()[:, None], requires_grad=False)
        decay = 0.0 if name == "rprop" else 0.1  # which has none
        specs = {key: GroupSpec(1e-3, weight_decay=decay) for key in gaussian_specs(1.0, 1)}
        specs[windowed] = GroupSpec(1e-3, weight_decay=decay, freeze=[(BEFORE, BEFORE + FROZEN)])
        specs[excluded] = GroupSpec(1e-3, optimize=False)
        self.specs = specs
        self.optimizer = build_optimizer(name, build_groups(self.model, specs), **options)
        self.strategy = replace(STRATEGIES[strategy]).resolve(30_000)
        self.done: Counter[str] = Counter()
        self.step = 0

    def steps(self, count: int) -> None:
        for _ in range(count):
            apply_freezes(self.optimizer, self.specs, self.step)
            self.step += 1
            info = random_info(len(self.model.xyz), 1, self.generator)
            self.strategy.observe(self.model, info, self.step)
            train(self.optimizer, 1, seed=self.step)
            done = self.strategy.refine(self.model, self.optimizer, self.step, self.generator)
            self.done += Counter(done.counts | {"reset": done.reset})

    def value(self, name: str) -> Tensor:
        return getattr(self.model, name).detach().clone()

    def moments(self, name: str) -> dict[str, Tensor]:
        state = self.optimizer.state.get(getattr(self.model, name), {})
        return {key: torch.as_tensor(value).clone() for key, value in state.items()}


@pytest.fixture
def originals(monkeypatch) -> list[bool]:
    """Row by row, whether it is one of the first Gaussians itself, and not a copy or a half of one."""
    rows = [True] * ROWS
    resize = surgery.resize

    def remembering(module, names, optimizer, kept, values):
        rows[:] = [row for row, stays in zip(rows, kept.tolist(), strict=True) if stays]
        rows.extend([False] * len(values["xyz"]))
        resize(module, names, optimizer, kept, values)

    monkeypatch.setattr(surgery, "resize", remembering)
    return rows


def largest_change(found: Tensor, before: Tensor) -> float:
    assert found.shape == before.shape
    return (found - before).abs().max().item() if found.numel() else 0.0


def happens(strategy: str, still: set[str]) -> set[str]:
    """What a strategy does where these attributes are still."""
    if strategy == "mcmc":
        return {"added"} | ({"relocated"} if not still & {"xyz", "scaling", "opacity"} else set())
    found = {"cloned", "pruned"} | ({"split"} if not still & {"xyz", "scaling"} else set())
    return found | ({"reset"} if strategy == "default" and "opacity" not in still else set())


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize(("case", "strategy"), BY_STRATEGY)
def test_what_is_frozen_keeps_its_bits(case, strategy, cast, originals):
    """Values are those of the Gaussian a row comes from; moments too, and where the row is new what they
    begin with: zero, for Rprop's step size the rate, for ASGD's mean of the values the value."""
    frozen, windowed, excluded = CASTS[cast]
    run = Run(strategy, *OPTIMIZERS[case], frozen, windowed, excluded)
    run.steps(BEFORE)
    freeze(run.optimizer, frozen)
    values = {name: run.value(name) for name in ATTRIBUTES}
    moments = {name: run.moments(name) for name in (frozen, windowed)}
    assert all(moments.values()), "there is something to lose"

    run.steps(FROZEN)
    origin = run.model.mark.detach()[:, 0].long()
    is_new = ~torch.tensor(originals)
    assert {what for what, count in run.done.items() if count} == happens(strategy, set(CASTS[cast]))
    assert 0 < is_new.sum() < len(is_new)
    for name in (frozen, windowed, excluded):
        assert largest_change(run.value(name), values[name][origin]) == 0, name
    for name, before in moments.items():
        found = run.moments(name)
        assert found.keys() == before.keys()
        for key, moment in before.items():
            if moment.dim() and len(moment) == ROWS:
                moment = moment[origin]
                new = {"step_size": run.specs[name].lr, "ax": run.value(name)[is_new]}
                moment[is_new] = new.get(key, 0)
            assert largest_change(found[key], moment) == 0, (name, key)
    for name in set(ATTRIBUTES) - {frozen, windowed, excluded}:
        assert (run.value(name) != values[name][origin]).any(), f"{name} trains"

    unfreeze(run.optimizer, frozen)
    still = {name: run.value(name) for name in (frozen, windowed, excluded)}
    run.steps(1)
    moved = {name for name in still if not torch.equal(run.value(name), still[name])}
    assert moved == {frozen, windowed}
