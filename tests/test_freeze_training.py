"""Windows of freezing in a run on a ball of 24x24 pixels: step by step, with densification, resumed."""

from dataclasses import replace

import pytest
import scenes
import torch

from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.model import ATTRIBUTES
from gsopt.recorder import Recorder
from gsopt.strategy import DefaultStrategy, NoStrategy
from gsopt.trainer import Trainer


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("freeze") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=40,
        test_iterations=(),
        save_iterations=(),
        sh_degree=0,
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DefaultStrategy(
            refine_start_iter=5, refine_stop_iter=40, refine_every=5, reset_every=20, grow_grad2d=1e-5
        ),
    )


class Watching(NoStrategy):
    """Notes which attributes have a gradient after the backward pass."""

    def observe(self, model, info, step):
        self.with_gradient = {name for name in ATTRIBUTES if getattr(model, name).grad is not None}


MOVING = set(ATTRIBUTES) - {"feature_rest"}  # degree 0 has none


def test_a_frozen_attribute_has_no_gradient_and_does_not_move_in_the_steps_of_its_windows(ball, config):
    freeze = ("xyz@0:3", "opacity@2:4", "xyz@5:6", "scaling@4:", "feature-dc")
    frozen = {  # by iteration, counted from 1
        1: {"xyz"},
        2: {"xyz"},
        3: {"xyz", "opacity"},
        4: {"opacity"},
        5: {"scaling"},
        6: {"xyz", "scaling"},
        7: {"scaling"},
        8: {"scaling"},
    }
    strategy = Watching()
    trainer = Trainer(replace(config, freeze=freeze), scene=ball, strategy=strategy)
    for iteration, names in frozen.items():
        before = {name: getattr(trainer.model, name).detach().clone() for name in MOVING}
        trainer.train_step()
        moved = {
            name for name, value in before.items() if not torch.equal(value, getattr(trainer.model, name))
        }
        assert moved == MOVING - names - {"feature_dc"}, iteration
        assert strategy.with_gradient - {"feature_rest"} == moved
        shown = {group["name"] for group in trainer.optimizer.param_groups if group["frozen"]}
        assert shown == names | {"feature_dc"}  # what TensorBoard is told


def refinements(config, ball, *freeze: str) -> dict[str, list[int]]:
    """Steps up to 25 after which Gaussians were split, and opacities reset."""
    trainer = Trainer(replace(config, freeze=freeze), scene=ball)
    done = {step: trainer.train_step().refined for step in range(1, 26)}
    return {what: [step for step in done if getattr(done[step], what)] for what in ("split", "reset")}


@pytest.mark.parametrize(
    ("freeze", "split", "reset"),
    [
        ([], [10, 15, 20, 25], [20]),
        (["xyz@0:20"], [25], [20]),  # its last step is 20, refinement included
        (["xyz@0:19"], [20, 25], [20]),
        (["scaling@10:20"], [10, 25], [20]),
        (["opacity@19:20"], [10, 15, 20, 25], []),
        (["opacity@0:19"], [10, 15, 20, 25], [20]),
        (["opacity@20:"], [10, 15, 20, 25], [20]),
    ],
    ids=str,
)
def test_densification_follows_the_windows(ball, config, freeze, split, reset):
    """Nothing is split while xyz or scaling is frozen, no opacity reset while that is; else all is."""
    assert refinements(config, ball, *freeze) == {"split": split, "reset": reset}


def moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{group['name']}.{key}": value
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
        for key, value in trainer.optimizer.state.get(parameter, {}).items()
    }


def stopped_at(step: int, config: TrainConfig, ball) -> None:
    """Leaves a run on disk that was stopped after a step."""
    trainer = Trainer(config, scene=ball)
    Recorder(trainer).begin()
    while trainer.step < step:
        trainer.train_step()
    trainer.save()
    trainer.monitor.close()


@pytest.mark.parametrize("at", [4, 12, 20, 25])  # before, in, at the end of, and after the window
def test_a_run_resumed_anywhere_has_the_bits_of_an_undisturbed_one(ball, config, tmp_path, at):
    config = replace(config, freeze=("xyz@5:20", "opacity@30:"), iterations=35)
    straight = Trainer(replace(config, output=tmp_path / "straight"), scene=ball)
    straight.train()
    stopped_at(at, config, ball)
    resumed = Trainer(TrainConfig.of_run(config.output), scene=ball)
    resumed.train()
    for name in ATTRIBUTES:
        assert torch.equal(getattr(straight.model, name), getattr(resumed.model, name))
    expected, found = moments(straight), moments(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_goes_on_with_other_windows(ball, config):
    config = replace(config, strategy="none")
    stopped_at(10, replace(config, freeze=("xyz@0:8", "rotation")), ball)
    changed = replace(TrainConfig.of_run(config.output), freeze=("opacity@10:12", "xyz@12:14"))
    trainer = Trainer(changed, scene=ball)
    before = moments(trainer)
    assert before["xyz.step"] == 2
    for names in ({"opacity"}, {"opacity"}, {"xyz"}, {"xyz"}, set()):
        trainer.train_step()
        assert {group["name"] for group in trainer.optimizer.param_groups if group["frozen"]} == names
    steps = {
        name: int(moments(trainer)[f"{name}.step"]) for name in ("xyz", "opacity", "rotation", "scaling")
    }
    assert steps == {"xyz": 2 + 3, "opacity": 10 + 3, "rotation": 5, "scaling": 15}
