"""Training as a whole on a ball of 24x24 pixels: it learns, repeats itself, respects freezes, and goes on."""

import json
import os
import signal
from dataclasses import replace

import pytest
import scenes
import torch
from plyfile import PlyData
from test_monitor import read

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.group_options import GroupOptions, Groups
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.recorder import Recorder
from gsopt.runtime import StopSignals, Stopwatch, ViewOrder, spread
from gsopt.strategy import DefaultStrategy, NoStrategy
from gsopt.trainer import Trainer

DENSIFY = DefaultStrategy(  # often and eagerly, so that a short run sees everything
    refine_start_iter=5, refine_stop_iter=40, refine_every=5, reset_every=20, grow_grad2d=1e-5, prune_opa=0.02
)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("trainer") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=40,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DENSIFY,
    )


def bits(model: GaussianModel) -> dict[str, torch.Tensor]:
    return {name: getattr(model, name).detach().clone() for name in ATTRIBUTES}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in ATTRIBUTES)


def moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state
    return {
        f"{group['name']}.{key}": value.clone()
        for group in trainer.optimizer.param_groups
        for p in group["params"]
        for key, value in state[p].items()
    }


def test_it_learns(ball, config):
    groups = Groups(opacity=GroupOptions(lr=0.1))  # six views of sixty blobs: let them get opaque soon
    before = Trainer(config, scene=ball).evaluate()
    metrics = Trainer(replace(config, iterations=200, strategy="none", groups=groups), scene=ball).train()
    assert metrics["train"]["psnr"] > before["train"]["psnr"] + 2
    for split in ("test", "train"):
        assert metrics[split]["psnr"] > before[split]["psnr"] + 0.5
        assert metrics[split]["ssim"] > before[split]["ssim"]
        assert metrics[split]["l1"] < before[split]["l1"]
    losses = [event.value for event in read(config.output).Scalars("train_loss_patches/total_loss")]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_a_run_on_disk(ball, config):
    metrics = Trainer(replace(config, test_iterations=(20,), save_iterations=(20,)), scene=ball).train()
    run = config.output
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert metrics["iterations"] == 40
    assert set(metrics["views"]["test"]) == {view.camera.name for view in ball.test}
    assert set(metrics["seconds"]) == {"load", "train", "evaluate", "save", "total"}
    cameras = json.loads((run / "cameras.json").read_text())
    views = [*ball.test, *ball.train]  # the order of the original 3DGS
    assert [entry["img_name"] for entry in cameras] == [view.camera.name for view in views]
    for iteration in (20, 40):
        ply = PlyData.read(run / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply")
        assert "f_rest_44" in ply["vertex"].data.dtype.names
    assert ply["vertex"].count == metrics["gaussians"]
    assert (run / "renders" / "comparison.png").is_file()
    assert checkpoint.latest(run / "checkpoints").name == "step_00000040.pt"
    settings = json.loads((run / "config.json").read_text())
    assert settings["densify"]["refine_every"] == 5  # as given
    assert settings["checkpoint_every"] == 7  # 5,000 of 30,000, of 40
    events = read(run)
    assert {"lr/xyz", "frozen/opacity", "gaussians/cloned", "gaussians/split", "gaussians/pruned"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Scalars("test/loss_viewpoint - psnr")] == [20, 40]
    assert [e.step for e in events.Scalars("total_points")] == [10, 20, 30, 40]
    assert [e.step for e in events.Histograms("scene/opacity_histogram")] == [20, 40]
    name = ball.test[0].camera.name.removesuffix(".png").replace("/", "_")
    assert [e.step for e in events.Images(f"test_view_{name}/render")] == [20, 40]
    assert len(events.Images(f"test_view_{name}/ground_truth")) == 1


@pytest.mark.parametrize("background", ["auto", "random"])
def test_the_same_seed_gives_the_same_bits(ball, config, tmp_path, background):
    def run(name, seed, threads):
        settings = replace(config, output=tmp_path / name, seed=seed, threads=threads, background=background)
        trainer = Trainer(settings, scene=ball)
        trainer.train()
        return bits(trainer.model)

    first = run("a", 0, 1)
    assert same_bits(first, run("b", 0, 2))
    assert not same_bits(first, run("c", 1, 1))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("how", ["freeze", "exclude"])
@pytest.mark.parametrize(
    "names", [("xyz",), ("opacity", "feature-rest"), ("scaling", "rotation")], ids="+".join
)
def test_frozen_and_excluded_attributes_keep_their_bits(ball, config, how, names, optimizer):
    """Through densification, which copies and drops rows: each row left has a value from the start."""
    trainer = Trainer(replace(config, **{how: names}, optimizer=optimizer), scene=ball)
    start = bits(trainer.model)
    trainer.train()
    assert trainer.model.num_gaussians != len(start["xyz"])  # rows did come and go
    for name in ATTRIBUTES:
        known = {row.numpy().tobytes() for row in start[name].flatten(1)}
        left = [row.numpy().tobytes() for row in getattr(trainer.model, name).detach().flatten(1)]
        if name.replace("_", "-") in names or name in names:
            assert set(left) <= known, name
        elif name != "feature_rest":  # its bands come into play later
            assert not set(left) <= known, name
    in_optimizer = {group["name"] for group in trainer.optimizer.param_groups}
    excluded = {name.replace("-", "_") for name in names} if how == "exclude" else set()
    assert in_optimizer == set(ATTRIBUTES) - excluded


@pytest.mark.parametrize("at", [3, 17, 20])  # before and in the middle of densification, at an opacity reset
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(ball, config, tmp_path, at):
    straight = Trainer(replace(config, output=tmp_path / "straight"), scene=ball)
    straight.train()
    stopped = Trainer(config, scene=ball)
    Recorder(stopped).begin()
    while stopped.step < at:
        stopped.train_step()
    stopped.save()
    stopped.monitor.close()

    resumed = Trainer(TrainConfig.of_run(config.output), scene=ball)
    assert resumed.step == at
    resumed.train()
    assert same_bits(bits(straight.model), bits(resumed.model))
    expected, found = moments(straight), moments(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resuming_before_the_first_checkpoint_starts_at_0(ball, config):
    Recorder(Trainer(config, scene=ball)).begin()
    trainer = Trainer(TrainConfig.of_run(config.output), scene=ball)
    assert trainer.step == 0
    assert trainer.train()["iterations"] == 40


def test_a_longer_run_keeps_its_step_settings(ball, config):
    Trainer(config, scene=ball).train()
    longer = replace(TrainConfig.of_run(config.output), iterations=50)
    trainer = Trainer(longer, scene=ball)
    assert trainer.step == 40
    assert trainer.config.schedule_iterations == 40
    assert trainer.config.checkpoint_every == 7
    assert trainer.train()["iterations"] == 50
    [xyz] = [group for group in trainer.optimizer.param_groups if group["name"] == "xyz"]
    assert xyz["lr"] == pytest.approx(8 * 1.6e-6 * ball.extent)  # raised for so short a run


def test_what_is_frozen_may_change_on_resume(ball, config):
    Trainer(replace(config, freeze=("xyz",), exclude=("rotation",)), scene=ball).train()
    changed = replace(TrainConfig.of_run(config.output), iterations=45, freeze=("opacity",), exclude=())
    trainer = Trainer(changed, scene=ball)
    start = bits(trainer.model)
    trainer.train()
    assert torch.equal(start["opacity"], trainer.model.opacity)
    assert not torch.equal(start["xyz"], trainer.model.xyz)
    assert not torch.equal(start["rotation"], trainer.model.rotation)


@pytest.mark.parametrize("change", [{"sh_degree": 2}, {"seed": 3}, {"test_every": 3}])
def test_what_cannot_change_on_resume(ball, config, change):
    Trainer(replace(config, iterations=2), scene=ball).train()
    with pytest.raises(ValueError, match=f"--{next(iter(change)).replace('_', '-')}"):
        Trainer(replace(TrainConfig.of_run(config.output), **change), scene=ball)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_after_the_step_and_saves(ball, config, name):
    trainer = Trainer(config, scene=ball)
    step = trainer.train_step

    def interrupted_step():
        if trainer.step == 6:
            os.kill(os.getpid(), getattr(signal, name))
        return step()

    trainer.train_step = interrupted_step
    with pytest.raises(KeyboardInterrupt, match=f"{name} after 7 iterations.*--resume"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert checkpoint.latest(config.output / "checkpoints").name == "step_00000007.pt"
    assert (config.output / "point_cloud" / "iteration_7" / "point_cloud.ply").is_file()
    assert Trainer(TrainConfig.of_run(config.output), scene=ball).step == 7


def test_parts_of_ones_own(ball, config):
    """A model, a scene and a strategy can be given; what the configuration says of them is then not used."""
    model = GaussianModel.from_points(ball.points.xyz, ball.points.rgb, sh_degree=1)

    class Counting(NoStrategy):
        seen = 0

        def observe(self, model, info, step):
            assert info["means2d"].shape == (1, model.num_gaussians, 2)
            self.seen += 1

    strategy = Counting()
    trainer = Trainer(replace(config, scene=None), scene=ball, model=model, strategy=strategy)
    start = model.xyz.detach().clone()
    trainer.train()
    assert trainer.model is model
    assert strategy.seen == 40
    assert not torch.equal(start, model.xyz)
    assert json.loads((config.output / "config.json").read_text())["scene"] == str(ball.path)


def test_starting_from_a_splat(ball, config, tmp_path):
    """`--init` with Gaussians takes all of them over and uses their harmonics from the first step."""
    first = Trainer(replace(config, output=tmp_path / "first", sh_degree_every=5), scene=ball)
    trained = first.train()["test"]["psnr"]
    ply = first.run.ply(40)
    trainer = Trainer(replace(config, init=ply, densify=DefaultStrategy()), scene=ball)
    assert trainer.sh_degree == 3
    assert same_bits(bits(first.model), bits(trainer.model))
    assert trainer.evaluate()["test"]["psnr"] == pytest.approx(trained, abs=1e-4)


def test_the_degree_of_the_harmonics_rises(ball, config):
    trainer = Trainer(replace(config, sh_degree_every=2), scene=ball)
    degrees = []
    for _ in range(9):
        trainer.train_step()
        degrees.append(trainer.sh_degree)
    assert degrees == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_rates_of_ones_own(ball, config):
    groups = Groups()
    groups.xyz.lr, groups.opacity.lr, groups.scaling.weight_decay = 1e-3, 0.5, 0.25
    groups.opacity.schedule = "exp:0.01"
    trainer = Trainer(replace(config, groups=groups, fit_rates=False), scene=ball)
    found = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert found["xyz"]["lr"] == pytest.approx(1e-3 * ball.extent)
    assert found["feature_dc"]["lr"] == 2.5e-3
    assert found["scaling"]["weight_decay"] == 0.25
    assert found["opacity"]["lr"] == 0.5
    for _ in range(40):
        trainer.train_step()
    assert found["opacity"]["lr"] == pytest.approx(0.005)


# ------------------------------------------------------------------------------------ what is around the loop


def test_views_come_in_random_order_without_replacement():
    order = ViewOrder(5, seed=0)
    passes = [[order.next() for _ in range(5)] for _ in range(4)]
    assert all(sorted(views) == list(range(5)) for views in passes)
    assert len({tuple(views) for views in passes}) > 1


def test_the_order_goes_on_where_it_was():
    order = ViewOrder(7, seed=3)
    for _ in range(10):
        order.next()
    other = ViewOrder(7, seed=9)
    other.load_state_dict(order.state_dict())
    assert [order.next() for _ in range(20)] == [other.next() for _ in range(20)]
    with pytest.raises(ValueError, match="7 views"):
        ViewOrder(6, seed=3).load_state_dict(order.state_dict())


def test_parts_of_a_stopwatch_exclude_each_other(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gsopt.runtime.time.perf_counter", lambda: now[0])
    clock = Stopwatch(seconds={"train": 100.0})
    with clock("train"):
        now[0] += 1
        with clock("evaluate"):
            now[0] += 10
        now[0] += 2
    now[0] += 1000
    assert clock.read() == {"train": 103.0, "evaluate": 10.0, "total": 113.0}


def test_a_second_signal_does_not_wait():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == "SIGINT"
        with pytest.raises(KeyboardInterrupt, match="second SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [2]), (2, [1, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_spread(count, expected):
    assert spread(range(5), count) == expected
