"""Going on with a run when something around it has changed, and runs that must not go on."""

import shutil
from dataclasses import replace

import pytest
import scenes
import torch

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.group_options import GroupOptions, Groups
from gsopt.rundir import write_json
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer


@pytest.fixture
def config(tmp_path):
    scene = scenes.write_nerf_synthetic(tmp_path / "ball", points=60)
    return TrainConfig(
        scene=str(scene),  # strings will do for paths, lists for tuples
        output=str(tmp_path / "run"),
        iterations=6,
        test_iterations=[],
        save_iterations=[],
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DefaultStrategy(refine_start_iter=1, refine_every=10, grow_grad2d=1e-5),
    )


def resumed(config, **changes) -> Trainer:
    return Trainer(replace(TrainConfig.of_run(config.output), iterations=9, **changes))


def test_the_file_it_began_with_may_be_gone(config, tmp_path):
    scene = load_scene(config.scene)
    cloud = tmp_path / "cloud.ply"
    scenes.write_points(cloud, scene.points.xyz.numpy(), scene.points.rgb.numpy())
    before = Trainer(replace(config, init=cloud))
    before.train()
    cloud.unlink()
    after = resumed(config)
    assert torch.equal(after.model.xyz, before.model.xyz)
    assert after.train()["iterations"] == 9


def test_the_scene_may_have_moved(config, tmp_path):
    Trainer(config).train()
    shutil.move(config.scene, tmp_path / "elsewhere")
    assert resumed(config, scene=tmp_path / "elsewhere").train()["iterations"] == 9


def test_another_scene_is_refused(config, tmp_path):
    Trainer(config).train()
    other = scenes.write_colmap(tmp_path / "other")
    with pytest.raises(InputError, match=r"--scene .*other: not the .* views that .*cameras\.json has"):
        resumed(config, scene=other)


def test_another_strategy_starts_afresh(config, capsys):
    Trainer(config).train()
    assert resumed(config, strategy="none", quiet=False).step == 6
    assert "NoStrategy starts afresh (was DefaultStrategy)" in capsys.readouterr().out


def test_fewer_iterations_than_are_done_are_refused(config):
    Trainer(config).train()
    with pytest.raises(InputError, match="--iterations 3: the run has done 6 already"):
        Trainer(replace(TrainConfig.of_run(config.output), iterations=3))


def test_a_checkpoint_without_all_its_parts_is_named(config):
    trainer = Trainer(config)
    trainer.train()
    path = checkpoint.latest(trainer.run.checkpoints)
    state = checkpoint.load(path)
    del state["order"], state["generator"]
    checkpoint.save(path, state)
    with pytest.raises(InputError, match=r"step_00000006\.pt: no generator, order in it"):
        resumed(config)


def test_a_limit_below_the_gaussians_there_are_is_refused(config):
    Trainer(config).train()
    with pytest.raises(InputError, match=r"max.gaussians"):
        resumed(config, max_gaussians=5)


def test_a_run_that_diverges_ends_and_saves_nothing_bad(config):
    groups = Groups(scaling=GroupOptions(lr=1e30))
    trainer = Trainer(replace(config, groups=groups, checkpoint_every=100))
    with pytest.raises(InputError, match=r"iteration \d+: \w+ is not finite.*lower its learning rate"):
        trainer.train()
    assert checkpoint.latest(trainer.run.checkpoints) is None
    assert not trainer.run.ply(6).exists()


def test_tests_of_earlier_sessions_are_kept(config):
    """All up to the checkpoint; one after it, of a session that was killed, is done again."""
    before = Trainer(replace(config, test_iterations=[2, 4])).train()["history"]
    file = Trainer(TrainConfig.of_run(config.output)).run.history
    write_json(file, [*before, before[-1] | {"iteration": 8, "psnr": 99.0}])
    after = resumed(config, test_iterations=[2, 4, 8]).train()["history"]
    assert [test["iteration"] for test in after] == [2, 4, 6, 8, 9]
    assert after[:3] == before
    assert after[3]["psnr"] < 99
    assert [test["seconds"] for test in after] == sorted(test["seconds"] for test in after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"freeze": ["xyz", "scaling", "rotation"], "exclude": ["feature_dc", "feature-rest", "opacity"]},
            "is every",
        ),
        ({"seed": 2**63 - 1}, "--seed 9223372036854775807: expected at most"),
        ({"test_iterations": (0, 5)}, "--test-iterations 0: expected 1 or more"),
        (
            {"densify": DefaultStrategy(grow_grad2d=float("inf"))},
            "--densify.grow-grad2d inf: expected a number",
        ),
    ],
)
def test_settings_that_cannot_be_used(config, changes, message):
    with pytest.raises(InputError, match=message):
        Trainer(replace(config, **changes))


def files_of(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_belongs_to_one_session_at_a_time(config):
    first = Trainer(config)
    first.train()
    with first.run.held():
        before = files_of(first.run.path)
        with pytest.raises(InputError, match="run: another session trains in this run; wait until it ends"):
            resumed(config).train()
        assert files_of(first.run.path) == before
    assert resumed(config).train()["iterations"] == 9


def test_a_run_is_held_while_it_trains_and_free_after_a_failure(config):
    trainer = Trainer(config)
    step, seen = trainer.train_step, []

    def watched():
        with pytest.raises(InputError, match="another session"), trainer.run.held():
            pass
        seen.append(trainer.step)
        if len(seen) == 3:
            raise RuntimeError("a mistake")
        return step()

    trainer.train_step = watched
    with pytest.raises(RuntimeError, match="a mistake"):
        trainer.train()
    with trainer.run.held():
        assert seen == [0, 1, 2]
