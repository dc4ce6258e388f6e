"""What Gaussians contribute to pictures, and `gsopt convert --prune-opacity`, `--prune-count`."""

import pytest
import scenes
import torch
from splats import random_splat

from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.editing import merge
from gsopt.formats import Splat, read, write
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.native import get_num_threads, set_num_threads
from gsopt.pruning import contributions, largest
from gsopt.render import rasterization
from gsopt.trainer import Trainer

ABOVE = torch.tensor([0.0, 0.0, 1e4])  # where no camera looks


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("pruning") / "ball", points=60))


@pytest.fixture(scope="module")
def trained(ball, tmp_path_factory):
    config = TrainConfig(
        *(ball.path, tmp_path_factory.mktemp("trained") / "run"),
        iterations=30,
        strategy="none",
        device="cpu",
        quiet=True,
    )
    trainer = Trainer(config, scene=ball)
    return trainer.model, trainer.train()


def some(model: GaussianModel, count: int) -> GaussianModel:
    """The first `count` Gaussians."""
    part = GaussianModel(count, model.max_sh_degree)
    with torch.no_grad():
        for name in ATTRIBUTES:
            part.get_parameter(name).copy_(model.get_parameter(name)[:count])
    return part


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_contributions_are_the_sums_of_the_blending_weights(ball, trained, mode):
    """With a colour channel for each Gaussian, that is 1 for it alone, the picture is its weights."""
    model, cameras = some(trained[0], 30), [view.camera for view in ball.train]
    found = contributions(model, cameras, rasterize_mode=mode)
    shapes = [t.detach() for t in (model.means, model.quats, model.scales, model.opacities)]
    expected, alphas = torch.zeros(30, dtype=torch.float64), 0.0
    for camera in cameras:
        view = (camera.viewmat[None], camera.K[None], camera.width, camera.height)
        image, alpha, _ = rasterization(*shapes, torch.eye(30), *view, rasterize_mode=mode)
        expected += image.double().sum(dim=(0, 1, 2))
        alphas += alpha.double().sum().item()
    assert (expected > 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.sum().item() == pytest.approx(alphas, rel=1e-5)  # all weights of a pixel are its opacity
    reference = contributions(model.double(), cameras, rasterize_mode=mode, backend="reference")
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-4)


def test_what_is_never_seen_contributes_nothing(ball, trained):
    model, cameras = some(trained[0], 20), [view.camera for view in ball.train]
    with torch.no_grad():
        model.xyz[3] = ABOVE
    found = contributions(model, cameras)
    assert found[3] == 0
    assert (found[4:] > 0).all()
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_bits_do_not_depend_on_the_number_of_threads(ball, trained):
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            found.append(contributions(trained[0], [view.camera for view in ball.train]))
    finally:
        set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([3.0, 1.0, 2.0], 2, [True, False, True]),
        ([1.0, 1.0, 1.0], 2, [True, True, False]),
        ([0.0, 5.0], 9, [True, True]),
    ],
)
def test_the_largest_and_of_equal_ones_the_first(values, count, expected):
    assert largest(torch.tensor(values), count).tolist() == expected


# ---------------------------------------- the command


@pytest.fixture
def files(ball, trained, tmp_path, monkeypatch):
    """a.ply: the trained Gaussians, and behind them ten that nobody sees, as b.ply has them alone."""
    monkeypatch.chdir(tmp_path)
    trained[0].save_ply(tmp_path / "trained.ply")
    far = random_splat(10, seed=1)
    far.tensors["xyz"] += ABOVE
    write(tmp_path / "far.ply", far)
    write(tmp_path / "a.ply", merge([read(tmp_path / "trained.ply"), read(tmp_path / "far.ply")]))
    return tmp_path


def convert(*words) -> int:
    return main(["convert", *map(str, words)])


def test_those_that_show_least_go_and_cost_what_is_told(files, ball, trained, capsys):
    psnr = f"{trained[1]['test']['psnr']:.2f}"
    assert convert("a.ply", "out.ply", "--prune-count", 60, "--scene", ball.path) == 0
    out = capsys.readouterr().out
    count = len(ball.train)
    assert f"prune     60 of 70 Gaussians have 100.00 % of what shows in the {count} training views" in out
    assert f"lost      {psnr} dB before, {psnr} after: +0.00 (test views)" in out
    assert (files / "out.ply").read_bytes() == (files / "trained.ply").read_bytes()

    assert convert("a.ply", "--scene", ball.path, "--prune-count", 40, "less.ply") == 0
    shown = contributions(trained[0], [view.camera for view in ball.train])
    expected = trained[0].xyz.detach()[largest(shown, 40)]
    assert torch.equal(read(files / "less.ply").tensors["xyz"], expected)
    told = capsys.readouterr().out.split("dB before, ")[1].split(" after")[0]
    assert main(["evaluate", "less.ply", "--scene", str(ball.path)]) == 0
    assert f"PSNR {told} dB" in capsys.readouterr().out


def test_faint_ones_go_before_a_crop_and_with_or_without_a_scene(files, ball, capsys):
    opacities = read(files / "a.ply").tensors["opacity"][:, 0].sigmoid()
    limit = opacities.median().item()
    assert convert("a.ply", "out.ply", "--prune-opacity", limit, "--crop", "sphere:0,0,0,100") == 0
    out = capsys.readouterr().out
    count = int((opacities >= limit).sum())
    assert f"prune     {count} of 70 Gaussians have an opacity of {limit:g} or more" in out
    assert "lost" not in out
    assert read(files / "out.ply").count == int((opacities[:60] >= limit).sum())
    assert convert("a.ply", "b.ply", "--prune-opacity", limit, "--scene", ball.path, "--prune-count", 20) == 0
    out = capsys.readouterr().out
    assert f"prune     20 of {count} Gaussians" in out
    assert "lost" in out
    assert read(files / "b.ply").count == 20


def test_moments_go_along(files, ball, capsys):
    """Of a checkpoint, with the rows that stay."""
    splat = read(files / "a.ply")
    moments = {"xyz": {"exp_avg": torch.arange(70.0)[:, None].repeat(1, 3), "step": torch.tensor(3.0)}}
    from gsopt.commands.pruning import PruneOptions, prune

    kept = prune(Splat(splat.tensors, "test", moments=moments), PruneOptions(None, 60, ball.path))
    assert kept.moments["xyz"]["exp_avg"][:, 0].tolist() == list(range(60))
    assert kept.moments["xyz"]["step"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prune-opacity 1", "--prune-opacity 1: expected more than 0 and less than 1"),
        ("--prune-opacity nan", "--prune-opacity nan: expected more than 0"),
        ("--prune-opacity 0.9999999", "no Gaussian is that opaque; lower it"),
        ("--prune-count 0 --scene .", "--prune-count 0: expected 1 or more"),
        ("--prune-count 5", "--prune-count 5: which Gaussians show least is for the training views to say"),
        ("--scene .", "--scene .: nothing to prune by it; give --prune-opacity or --prune-count"),
        ("--prune-count 5 --scene nowhere", "nowhere"),
        ("--prune-count 5 --scene . --threads 0", "--threads 0: expected 1 or more"),
    ],
)
def test_refusals(files, words, message, capsys):
    assert convert("a.ply", "out.ply", *words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("gsopt: error: ")
    assert len(error.splitlines()) == 1
    assert not (files / "out.ply").exists()
