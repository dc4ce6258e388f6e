"""What TensorBoard's own reader finds in a run's events."""

import io
import os
import time

import pytest
import scenes
import torch
from optimizing import fill_gradients, train
from PIL import Image

from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.groups import GroupSpec, build_groups, build_scheduler, gaussian_specs
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.monitor import NORMS_EVERY, Monitor
from gsopt.optim import build_optimizer
from gsopt.trainer import Trainer


def near(value):
    return pytest.approx(value, rel=1e-5)  # events hold float32


def read(folder):
    """Everything in a folder's event files, nothing left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    return events


def series(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


@pytest.fixture
def optimizer():
    a, b = torch.nn.Parameter(torch.full((4, 3), 2.0)), torch.nn.Parameter(torch.ones(5))
    groups = [
        {"name": "xyz", "params": [("xyz", a)], "lr": 0.1, "frozen": False},
        {"name": "opacity", "params": [("opacity", b)], "lr": 0.2, "frozen": True},
    ]
    a.grad = torch.full_like(a, 0.5)
    b.requires_grad_(False)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def test_losses_have_the_original_tags(tmp_path):
    monitor = Monitor(tmp_path)
    for step in (10, 20):
        monitor.losses({"l1": 0.5 / step, "ssim": 0.9, "total": 1.0 / step}, 12.5, 1000 + step, step)
    monitor.close()
    assert series(tmp_path, "train_loss_patches/total_loss") == [(10, near(0.1)), (20, near(0.05))]
    assert series(tmp_path, "train_loss_patches/l1_loss") == [(10, near(0.05)), (20, near(0.025))]
    assert series(tmp_path, "iter_time") == [(10, 12.5), (20, 12.5)]
    assert series(tmp_path, "total_points") == [(10, 1010.0), (20, 1020.0)]


def test_groups_and_norms(tmp_path, optimizer):
    monitor = Monitor(tmp_path)
    monitor.groups(optimizer, NORMS_EVERY)
    with monitor.norms(optimizer, NORMS_EVERY):
        optimizer.step()
    monitor.close()
    expected = {
        "lr/xyz": 0.1,
        "lr/opacity": 0.2,
        "frozen/xyz": 0.0,
        "frozen/opacity": 1.0,
        "grad_norm/xyz": 0.5 * 12**0.5,
        "grad_norm/opacity": 0.0,
        "update_norm/xyz": 0.05 / 2.0,  # lr x gradient over the parameter, all entries equal
        "update_norm/opacity": 0.0,
        "moment_norm/xyz": 0.5 * 12**0.5,
        "moment_norm/opacity": 0.0,
    }
    for tag, value in expected.items():
        [(step, found)] = series(tmp_path, tag)
        assert (step, found) == (NORMS_EVERY, near(value)), tag


OPTIMIZERS = {  # name and options: the entry of its state that is a first moment, None where it has none
    "adam": ({}, "exp_avg"),
    "adamw": ({}, "exp_avg"),
    "sgd": ({"momentum": 0.9}, "momentum_buffer"),
    "sgd without momentum": ({}, None),
    "adagrad": ({}, None),
}
PER_GROUP = ("lr", "frozen", "grad_norm", "update_norm", "moment_norm")


def norm(tensor: torch.Tensor) -> float:
    return tensor.detach().double().square().sum().sqrt().item()


@pytest.mark.parametrize("case", OPTIMIZERS)
@pytest.mark.parametrize("native", [False, True])
def test_every_group_has_every_tag(tmp_path, case, native):
    """Two models in one optimizer, one group frozen, one excluded: all values, written by each optimizer."""
    options, moment = OPTIMIZERS[case]
    models = {"scene": GaussianModel(20), "poses": torch.nn.Embedding(3, 6)}
    with torch.no_grad():
        for parameter in models["scene"].parameters():
            parameter.copy_(torch.randn(parameter.shape))
    specs = gaussian_specs(extent=1.0, iterations=100) | {"poses": GroupSpec(0.5)}
    specs |= {"scaling": GroupSpec(0.1, frozen=True), "rotation": GroupSpec(0.1, optimize=False)}
    optimizer = build_optimizer(case.split()[0], build_groups(models, specs), native=native, **options)
    train(optimizer, steps=2)
    scheduler = build_scheduler(optimizer, specs)

    monitor = Monitor(tmp_path)
    fill_gradients(optimizer, torch.Generator().manual_seed(5))
    before = {group["name"]: group["params"][0].detach().clone() for group in optimizer.param_groups}
    with monitor.norms(optimizer, NORMS_EVERY):
        optimizer.step()
    monitor.groups(optimizer, NORMS_EVERY)
    monitor.close()

    expected = {}
    for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        name, parameter = group["name"], group["params"][0]
        state = optimizer.state.get(parameter, {})
        frozen = name == "scene.scaling"
        values = {
            "lr": lr,
            "frozen": float(frozen),
            "grad_norm": 0.0 if frozen else norm(parameter.grad),
            "update_norm": norm(parameter - before[name]) / norm(before[name]),
            "moment_norm": norm(state[moment]) if moment and not frozen else 0.0,
        }
        assert frozen == (values["update_norm"] == 0)
        expected |= {f"{tag}/{name}": value for tag, value in values.items()}
    found = {tag: read(tmp_path).Scalars(tag) for tag in read(tmp_path).Tags()["scalars"]}
    assert len(expected) == 6 * len(PER_GROUP)  # five of the scene's six and the poses
    assert found.keys() == expected.keys()
    for tag, value in expected.items():
        assert [(event.step, event.value) for event in found[tag]] == [(NORMS_EVERY, near(value))], tag


def test_an_update_of_zeros_has_no_relative_norm(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer("sgd", build_groups({"poses": parameter}, {"poses": GroupSpec(0.1)}))
    parameter.grad = torch.ones(3)
    monitor = Monitor(tmp_path)
    with monitor.norms(optimizer, NORMS_EVERY):
        optimizer.step()
    monitor.close()
    assert series(tmp_path, "update_norm/poses") == [(NORMS_EVERY, 0.0)]
    assert parameter.abs().max() > 0


def test_a_run_writes_them(tmp_path):
    ball = load_scene(scenes.write_nerf_synthetic(tmp_path / "ball", points=40))
    config = TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=2 * NORMS_EVERY,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="none",
        accumulate=2,
        freeze=("xyz",),
        exclude=("opacity",),
    )
    Trainer(config, scene=ball).train()
    names = set(ATTRIBUTES) - {"opacity"}
    tags = set(read(config.output).Tags()["scalars"])
    assert {tag for tag in tags if tag.startswith(tuple(f"{kind}/" for kind in PER_GROUP))} == {
        f"{kind}/{name}" for kind in PER_GROUP for name in names
    }
    for name in names:
        frozen = name == "xyz"
        assert series(config.output, f"frozen/{name}") == [(step, frozen) for step in range(10, 101, 10)]
        for kind in ("grad_norm", "update_norm", "moment_norm"):
            values = series(config.output, f"{kind}/{name}")
            assert [step for step, _ in values] == [NORMS_EVERY, 2 * NORMS_EVERY]
            moved = [value > 0 for _, value in values]
            assert moved == [not frozen] * 2 or name == "feature_rest"  # whose bands come into play at 100


def test_norms_between_the_intervals_cost_nothing(tmp_path, optimizer):
    monitor = Monitor(tmp_path)
    with monitor.norms(optimizer, NORMS_EVERY + 1):
        optimizer.step()
    monitor.close()
    assert read(tmp_path).Tags()["scalars"] == []


def test_evaluation_pictures_and_histograms(tmp_path):
    monitor = Monitor(tmp_path)
    render, photo = torch.zeros(6, 8, 3), torch.full((6, 8, 3), 1.5)
    for step in (100, 200):
        monitor.evaluation("test", {"psnr": 25.0, "ssim": 0.8, "l1": 0.03}, step)
        monitor.evaluation("train", {"psnr": None, "ssim": None, "l1": None}, step)
        monitor.picture("test", "train/r_0.png", render, photo, step)
        monitor.histograms(torch.rand(50), torch.rand(50, 3) + 0.1, step)
    monitor.refinement({"cloned": 3, "split": 2, "pruned": 1}, 54, torch.tensor([0.0, 0.01, 1.0]), 100)
    monitor.refinement({"cloned": 0}, 54, torch.zeros(3), 200)
    Monitor(None).refinement({"cloned": 0}, 54, torch.ones(3), 200)
    monitor.close()
    events = read(tmp_path)
    assert series(tmp_path, "test/loss_viewpoint - psnr") == [(100, 25.0), (200, 25.0)]
    assert series(tmp_path, "test/loss_viewpoint - l1_loss") == [(100, near(0.03)), (200, near(0.03))]
    assert "train/loss_viewpoint - psnr" not in events.Tags()["scalars"]
    counts = [series(tmp_path, f"gaussians/{what}")[0] for what in ("cloned", "split", "pruned", "total")]
    assert counts == [(100, 3), (100, 2), (100, 1), (100, 54)]
    [scores] = events.Histograms("gaussians/score_log10")
    assert (scores.histogram_value.num, scores.histogram_value.min, scores.histogram_value.max) == (2, -2, 0)
    assert [h.step for h in events.Histograms("scene/opacity_histogram")] == [100, 200]
    assert [i.step for i in events.Images("test_view_train_r_0/render")] == [100, 200]
    [truth] = events.Images("test_view_train_r_0/ground_truth")  # once is enough
    picture = Image.open(io.BytesIO(truth.encoded_image_string))
    assert picture.size == (8, 6)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_going_on_hides_what_came_after_the_checkpoint(tmp_path):
    """A run that was killed at step 30 and goes on from its checkpoint at 20 shows each step once."""
    first = Monitor(tmp_path)
    for step in (10, 20, 30):
        first.scalars({"x": 1.0}, step)
    first.close()
    second = Monitor(tmp_path, first_step=21)
    for step in (30, 40):
        second.scalars({"x": 2.0}, step)
    second.close()
    assert series(tmp_path, "x") == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]


def test_gaussians_of_no_size_are_left_out(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.histograms(torch.rand(3), torch.tensor([[0.0, 0, 0], [0.1, 0.01, 0], [10.0, 0, 0]]), 10)
    monitor.histograms(torch.rand(3), torch.zeros(3, 3), 20)
    monitor.close()
    (histogram,) = read(tmp_path).Histograms("scene/scale_histogram")
    assert histogram.histogram_value.num == 2
    assert histogram.histogram_value.sum == pytest.approx(0.0)  # log10 of 0.1 and 10


def test_without_a_folder_nothing_is_written(optimizer):
    monitor = Monitor(None)
    monitor.losses({"total": 1.0}, 1.0, 1, 10)
    monitor.picture("test", "a.png", torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), 10)
    monitor.histograms(torch.rand(3), torch.rand(3, 3), 10)
    with monitor.norms(optimizer, NORMS_EVERY):
        optimizer.step()
    monitor.flush()
    monitor.close()


def test_events_of_a_session_come_after_those_of_the_one_before(tmp_path, monkeypatch):
    """Also within one second, where the names of their files differ in the numbers of processes only."""
    for step in (1, 2, 3):
        monkeypatch.setattr(os, "getpid", lambda step=step: 500 - step)
        monitor = Monitor(tmp_path, first_step=step)
        monitor.scalars({"a": step}, step)
        monitor.close()
    assert series(tmp_path, "a") == [(1, 1), (2, 2), (3, 3)]


def test_a_clock_that_was_set_back_is_told(tmp_path):
    (tmp_path / f"events.out.tfevents.{int(time.time()) + 1000}.host.1.0").touch()
    with pytest.warns(UserWarning, match="the clock was .* seconds ahead.*may show steps twice"):
        Monitor(tmp_path).close()
