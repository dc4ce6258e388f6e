"""What only a CUDA device can show; skipped without one. The first use builds gsplat's kernels: minutes."""

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import scenes
import torch
from random_scenes import random_scene
from render_compare import disagreements, results
from torch import Tensor

from gsopt.config import TrainConfig
from gsopt.device import cuda_report
from gsopt.trainer import Trainer

pytestmark = pytest.mark.skipif(cuda_report()["trouble"] is not None, reason="needs CUDA and gsplat")

TOLERANCE = 1e-3  # of a tensor's largest value: gsplat is compiled with fast, less exact functions
SCENES = range(64)
STRATEGIES = ("default", "mcmc", "budget", "none")


def on_the_card(scene: dict) -> dict:
    def sent(value):
        if isinstance(value, tuple):
            return tuple(map(sent, value))
        return value.cuda() if isinstance(value, Tensor) else value

    return {name: sent(value) for name, value in scene.items()}


def train(folder: Path, scene: Path, device: str = "cuda", **settings) -> tuple[Trainer, dict]:
    settings = {"iterations": 200, "test_iterations": (), "quiet": True, "device": device} | settings
    trainer = Trainer(TrainConfig(scene=scene, output=folder / "run", **settings))
    return trainer, trainer.train()


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("ball"))


@pytest.mark.parametrize("seed", SCENES)
def test_gsplat_agrees_with_the_reference(seed):
    """Pictures, radii and all gradients of scenes of every kind; the reference computes in float64."""
    scene = random_scene(seed)
    expected = results(scene, "reference", torch.float64)
    found = results(on_the_card(scene), "cuda", torch.float32)
    found = {name: value.cpu() for name, value in found.items()}
    for grads in (expected, found):  # gsplat inverts the matrices as if their last rows could move
        grads["grad of viewmats"] = grads["grad of viewmats"][:, :3]
    assert not disagreements(found, expected, TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_training_comes_to_what_it_does_on_the_cpu(strategy, ball, tmp_path):
    """The same views in the same order: losses part only as rounding does."""
    found = {}
    for device in ("cpu", "cuda"):
        trainer, metrics = train(tmp_path / device, ball, device, strategy=strategy)
        assert trainer.device.type == device
        found[device] = metrics["test"]["psnr"], metrics["gaussians"]
    (here, count), (there, other) = found["cpu"], found["cuda"]
    assert abs(here - there) < 1.0
    assert abs(count - other) < 0.1 * count


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_frozen_keeps_its_bits(strategy, ball, tmp_path):
    """Fused Adam moves nothing of it; copies and halves have the bits of the Gaussian they come from."""
    frozen = ("rotation", "feature_rest", "feature_dc")
    config = TrainConfig(
        scene=ball,
        output=tmp_path / "run",
        **{"iterations": 200, "device": "cuda", "strategy": strategy, "freeze": frozen, "quiet": True},
    )
    trainer = Trainer(config)
    before = {name: getattr(trainer.model, name).detach().flatten(1).clone() for name in frozen}
    xyz = trainer.model.xyz.detach().clone()
    trainer.train()
    assert trainer.model.xyz.shape != xyz.shape or not torch.equal(trainer.model.xyz, xyz)
    for name, rows in before.items():
        after = getattr(trainer.model, name).detach().flatten(1)
        known, both = rows.unique(dim=0), torch.cat([rows, after]).unique(dim=0)
        assert torch.equal(known, both), name
        assert getattr(trainer.model, name).grad is None
        assert getattr(trainer.model, name) not in trainer.optimizer.state


def waits(trainer: Trainer) -> Counter[str]:
    """Files of ours that let one step wait for the device, as torch reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    seen = (Path(w.filename) for w in caught if "called a synchronizing" in str(w.message))
    return Counter(path.name for path in seen if "gsopt" in path.parts)


def test_a_step_waits_once_for_the_device(ball, tmp_path):
    """What `test_meta` counts on a CPU is what torch reports; `mcmc` waits more often, see there."""
    config = TrainConfig(scene=ball, output=tmp_path / "run", iterations=200, device="cuda", quiet=True)
    trainer = Trainer(replace(config, strategy="default", coarse_to_fine=False))
    for _ in range(3):
        trainer.train_step()
    assert [waits(trainer) for _ in range(3)] == [Counter({"guards.py": 1})] * 3


def test_a_resumed_run_goes_on(ball, tmp_path):
    """Atomic sums differ in their last bits from run to run; all else is restored."""
    _, whole = train(tmp_path / "whole", ball)
    trainer, _ = train(tmp_path / "parts", ball, iterations=100, schedule_iterations=200)
    resumed = Trainer(replace(TrainConfig.of_run(trainer.config.output), iterations=200))
    assert resumed.step == 100
    assert abs(resumed.train()["test"]["psnr"] - whole["test"]["psnr"]) < 0.5
