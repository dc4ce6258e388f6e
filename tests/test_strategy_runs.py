"""Every strategy in training: `--max-gaussians` holds, runs repeat themselves and go on to the same bits."""

from dataclasses import replace

import pytest
import scenes
import torch
from test_monitor import read
from test_trainer import bits, same_bits

from gsopt.commands.train import opening
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.group_options import GroupOptions, Groups
from gsopt.strategy import (
    BudgetStrategy,
    DefaultStrategy,
    MCMCStrategy,
    NoStrategy,
    Refinement,
    Strategy,
    movable,
    row_names,
)
from gsopt.surgery import keep
from gsopt.trainer import Trainer

WHEN = dict(refine_start_iter=4, refine_stop_iter=30, refine_every=5)
DOES = {  # strategy: what it does to the ball
    "default": {"cloned", "split"},
    "mcmc": {"relocated", "added"},
    "budget": {"cloned", "split"},
    "none": set(),
}
MOST = 75
PLANS = {
    "default": "at most 75 Gaussians",
    "mcmc": "at most 75 Gaussians",
    "budget": "60 to 75 Gaussians by iteration 25",
}


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("strategies") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=36,
        max_gaussians=MOST,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DefaultStrategy(**WHEN, grow_grad2d=1e-5, grow_scale3d=0.05),
        mcmc=MCMCStrategy(**WHEN, min_opacity=0.098, init_opacity=0.1),  # few are dead
        budget=BudgetStrategy(**WHEN, grow_scale3d=0.05),
    )


@pytest.mark.parametrize("strategy", DOES)
def test_a_run(ball, config, strategy):
    """The limit is told, reached, and never passed by a row; what happened is in TensorBoard."""
    trainer = Trainer(replace(config, strategy=strategy), scene=ball)
    told = [line for line in opening(trainer) if line.startswith("growth")]
    assert told == [f"growth    {plan} (--max-gaussians)" for name, plan in PLANS.items() if name == strategy]
    trainer.train()
    events = read(config.output)
    tags = events.Tags()
    totals = [event.value for event in events.Scalars("total_points")]
    done = {
        tag.removeprefix("gaussians/")
        for tag in tags["scalars"]
        if tag.startswith("gaussians/") and sum(event.value for event in events.Scalars(tag))
    }
    assert done == DOES[strategy] | ({"total"} if DOES[strategy] else set())
    assert trainer.model.num_gaussians == (MOST if DOES[strategy] else 60)
    assert max(totals) <= MOST
    if DOES[strategy]:
        assert [event.step for event in events.Scalars("gaussians/total")] == [5, 10, 15, 20, 25]
        assert [event.step for event in events.Histograms("gaussians/score_log10")] == [5, 10, 15, 20, 25]
    regularized = {"train_loss_patches/opacity_reg", "train_loss_patches/scale_reg"}
    assert regularized & set(tags["scalars"]) == (regularized if strategy == "mcmc" else set())


@pytest.mark.parametrize("strategy", ["mcmc", "budget"])
def test_the_same_seed_gives_the_same_bits(ball, config, tmp_path, strategy):
    def run(name, seed, threads):
        settings = replace(config, strategy=strategy, output=tmp_path / name, seed=seed, threads=threads)
        trainer = Trainer(settings, scene=ball)
        trainer.train()
        return bits(trainer.model)

    first = run("a", 0, 1)
    assert same_bits(first, run("b", 0, 2))
    assert not same_bits(first, run("c", 1, 1))


@pytest.mark.parametrize("middle", [3, 12, 20])
@pytest.mark.parametrize("strategy", ["mcmc", "budget"])
def test_a_resumed_run_gives_the_same_bits(ball, config, tmp_path, strategy, middle):
    config = replace(config, strategy=strategy)
    straight = Trainer(config, scene=ball)
    straight.train()
    first = Trainer(
        replace(config, output=tmp_path / "b", schedule_iterations=36, iterations=middle), scene=ball
    )
    first.train()
    second = Trainer(replace(TrainConfig.of_run(tmp_path / "b"), iterations=36), scene=ball)
    assert second.step == middle
    second.train()
    assert same_bits(bits(straight.model), bits(second.model))


@pytest.mark.parametrize("strategy", ["mcmc", "budget"])
def test_frozen_attributes_keep_their_bits_in_training(ball, config, strategy):
    trainer = Trainer(replace(config, strategy=strategy, freeze=("xyz", "feature_dc")), scene=ball)
    start = bits(trainer.model)
    trainer.train()
    assert trainer.model.num_gaussians == MOST
    for name in ("xyz", "feature_dc"):
        known = {row.numpy().tobytes() for row in start[name].flatten(1)}
        assert {row.numpy().tobytes() for row in bits(trainer.model)[name].flatten(1)} <= known


@pytest.mark.parametrize(("strategy", "opacity"), [("mcmc", 0.4), ("budget", 0.1)])
def test_a_strategy_prepares_what_is_made_of_points_and_nothing_else(
    ball, config, tmp_path, strategy, opacity
):
    config = replace(config, strategy=strategy, mcmc=MCMCStrategy(**WHEN, init_opacity=0.4))
    made = Trainer(config, scene=ball).model
    torch.testing.assert_close(made.opacities, torch.full((60,), opacity))
    with torch.no_grad():
        made.opacity.fill_(1.0)
    made.save_ply(tmp_path / "a.ply")
    read = Trainer(replace(config, init=tmp_path / "a.ply"), scene=ball).model
    given = Trainer(config, scene=ball, model=made).model
    assert (read.opacity == 1).all()
    assert (given.opacity == 1).all()


SCENES = {  # flags: what the strategy gets from settings and scene
    "by default": (dict(), MCMCStrategy, dict(max_gaussians=None, training_pixels=6 * 24 * 24)),
    "default": (dict(strategy="default"), DefaultStrategy, dict(max_gaussians=None)),
    "default, a limit": (
        dict(strategy="default", max_gaussians=99),
        DefaultStrategy,
        dict(max_gaussians=99),
    ),
    "mcmc": (dict(strategy="mcmc"), MCMCStrategy, dict(max_gaussians=None, training_pixels=6 * 24 * 24)),
    "budget": (dict(strategy="budget"), BudgetStrategy, dict(training_pixels=6 * 24 * 24)),
    "budget, a limit": (dict(strategy="budget", max_gaussians=99), BudgetStrategy, dict(max_gaussians=99)),
    "pixels given": (
        dict(strategy="budget", budget=BudgetStrategy(training_pixels=500)),
        BudgetStrategy,
        dict(training_pixels=500),
    ),
    "noise": (dict(strategy="mcmc"), MCMCStrategy, dict(noise_lr=5e5)),
    "noise, rates fit a short run": (dict(iterations=1875), MCMCStrategy, dict(noise_lr=5e5 / 4)),
    "noise, the original rates": (dict(iterations=1875, fit_rates=False), MCMCStrategy, dict(noise_lr=5e5)),
    "noise, a rate given": (
        dict(iterations=1875, groups=Groups(xyz=GroupOptions(lr=1e-3))),
        MCMCStrategy,
        dict(noise_lr=5e5),
    ),
    "noise given": (
        dict(iterations=1875, mcmc=MCMCStrategy(noise_lr=2e5)),
        MCMCStrategy,
        dict(noise_lr=2e5 / 4),
    ),
    "none": (dict(strategy="none"), NoStrategy, {}),
}


@pytest.mark.parametrize("case", SCENES)
def test_what_a_strategy_gets_from_the_scene(ball, case):
    changes, kind, expected = SCENES[case]
    strategy = TrainConfig(scene=ball.path, **changes).make_strategy(ball)
    assert type(strategy) is kind
    assert {name: getattr(strategy, name) for name in expected} == expected
    if kind is not NoStrategy:
        assert strategy.scene_scale == pytest.approx(ball.extent)
        given = replace(strategy, scene_scale=7.0)
        name = changes.get("strategy", "mcmc")
        part = {"default": "densify"}.get(name, name)
        assert TrainConfig(scene=ball.path, **changes | {part: given}).make_strategy(ball).scene_scale == 7.0


# ---------------------------------------- one's own


class Shrinking(Strategy):
    """Drops the faintest at step 3, and pulls colours together."""

    def regularization(self, model):
        return {"grey": 0.1 * model.feature_dc.square().mean()}

    def refine(self, model, optimizer, step, generator):
        if step != 3:
            return Refinement()
        faint = model.opacities < model.opacities.median()
        if (rows := movable(model)) is not None:
            faint &= rows
        keep(model, row_names(model), optimizer, ~faint)
        return Refinement(pruned=int(faint.sum()))


def test_a_strategy_of_ones_own(ball, config):
    trainer = Trainer(config, scene=ball, strategy=Shrinking())
    found = [trainer.train_step() for _ in range(4)]
    assert found[2].refined.pruned > 10
    assert trainer.model.num_gaussians == 60 - found[2].refined.pruned
    for result in found:
        plain = 0.8 * result.terms["l1"] + 0.2 * (1 - result.terms["ssim"])
        torch.testing.assert_close(result.loss, plain + result.terms["grey"])
        assert result.terms["grey"] > 0
