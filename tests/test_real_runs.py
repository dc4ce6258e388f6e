"""Every real scene trains and exports; so does one that starts from a cloud of points."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from gsopt import GaussianModel, TrainConfig, Trainer
from gsopt.datasets import load_scene, read_splat
from gsopt.evaluation import evaluate_scene
from gsopt.joint import Joint

SCENES = (
    *("fox", "fox_transforms", "fox_transforms/transforms_with_missing.json", "fox_opencv_txt"),
    *("banana", "brighton_aerial", "lego"),
)
NORMALIZED = ("fox_transforms", "brighton_aerial")  # trained so, to be looked at in their own world


def trained(scene: Path, output: Path, iterations: int, resolution: int, **settings) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of a run, whose PLY must be of the scene."""
    config = TrainConfig(
        scene=scene,
        output=output,
        iterations=iterations,
        resolution=resolution,
        device="cpu",
        quiet=True,
        coarse_to_fine=False,  # losses of one size can be compared
        test_iterations=(),
        save_iterations=(),
        **settings,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*photos are not in")
        trainer = Trainer(config)
        losses, step = [], trainer.train_step

        def remembered():
            result = step()
            losses.append(result.loss.item())
            return result

        trainer.train_step = remembered
        metrics = trainer.train()
        plain = load_scene(scene, resolution=resolution)
    assert len(read_splat(trainer.run.ply(iterations))["xyz"]) == metrics["gaussians"]
    model = GaussianModel.load_ply(trainer.run.ply(iterations))
    again = evaluate_scene(Joint(model).render, plain, config.plain_background(plain))["test"]["psnr"]
    assert again == pytest.approx(metrics["test"]["psnr"], abs=0.02)
    count = max(1, iterations // 10)
    return float(np.mean(losses[:count])), float(np.mean(losses[-count:]))


def world_of(name: str) -> str:
    return "up" if name in NORMALIZED else "none"


@pytest.mark.parametrize("name", SCENES)
def test_a_few_steps_on_every_scene(shared, tmp_path, name):
    path = shared / "scenes" / name
    first, last = trained(path, tmp_path / "run", 30, 64, normalize=world_of(name))
    assert last < 0.95 * first


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_500_steps_on_every_scene(shared, tmp_path, name):
    path = shared / "scenes" / name
    first, last = trained(path, tmp_path / "run", 500, 240, normalize=world_of(name))
    assert last < 0.6 * first


@pytest.mark.parametrize(
    "settings", [{"init": "cloud.npz", "init_max": 2000}, {"init_points": 2000}], ids=str
)
def test_points_of_another_file_or_none(shared, tmp_path, settings):
    path = shared / "scenes" / "fox"
    points = load_scene(path, resolution=32).points
    np.savez(tmp_path / "cloud.npz", xyz=points.xyz, rgb=(255 * points.rgb).round().to(torch.uint8))
    settings = {key: tmp_path / value if key == "init" else value for key, value in settings.items()}
    first, last = trained(path, tmp_path / "run", 30, 64, **settings)
    assert last < 0.95 * first
