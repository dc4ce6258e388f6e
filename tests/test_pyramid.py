"""Reduced training views: their pixels, their cameras, and when a run uses them."""

from dataclasses import replace

import pytest
import scenes
import torch

from gsopt.cameras import Camera
from gsopt.commands.flags import parse
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.datasets.pyramid import SMALLEST, ViewPyramid, reduce_view
from gsopt.datasets.scene import View
from gsopt.evaluation import render_view
from gsopt.model import GaussianModel
from gsopt.schedules import reduction
from gsopt.trainer import Trainer


def view(height: int, width: int, channels: int = 3, seed: int = 0) -> View:
    """Random pixels, seen by a camera whose principal point is not the centre."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (height, width, channels), generator=generator, dtype=torch.uint8)
    K = torch.tensor([[30.0, 0, 0.45 * width], [0, 28.0, 0.6 * height], [0, 0, 1]])
    viewmat = torch.eye(4)
    viewmat[2, 3] = 3.0
    return View(Camera("a.png", width, height, K, viewmat), image)


# ---------------------------------------- one view


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(8, 12), (9, 13), (11, 15), (4, 7)], ids=str)
def test_pixels_are_means_and_the_rest_is_cut_off(size, factor):
    full = view(*size)
    small = reduce_view(full, factor)
    height, width = size[0] // factor, size[1] // factor
    assert small.image.dtype == torch.uint8
    assert small.image.shape == (height, width, 3)
    blocks = full.image[: height * factor, : width * factor].double()
    means = blocks.reshape(height, factor, width, factor, 3).mean(dim=(1, 3))
    assert (small.image - means).abs().max() <= 0.5 + 1e-6  # rounded to the nearest
    assert (small.camera.width, small.camera.height) == (width, height)


def test_the_camera_sees_the_same_world():
    full = view(9, 13)
    small = reduce_view(full, 4)
    point = torch.tensor([0.2, -0.3, 1.0])
    torch.testing.assert_close((small.camera.K @ point)[:2], (full.camera.K @ point)[:2] / 4)
    assert small.camera.K[2].tolist() == [0, 0, 1]
    assert torch.equal(small.camera.viewmat, full.camera.viewmat)
    assert small.camera.name == full.camera.name
    assert full.camera.K[0, 0] == 30  # the view itself is as it was
    assert full.image.shape == (9, 13, 3)


def test_transparent_pixels_do_not_bleed_colour():
    full = view(4, 4, 4)
    full.image[:] = torch.tensor([0, 255, 0, 0], dtype=torch.uint8)  # invisible green
    full.image[:2, :1] = torch.tensor([200, 40, 10, 255], dtype=torch.uint8)  # half of the first block
    full.image[2:, 2:, 3] = 100  # visible green
    small = reduce_view(full, 2).image.int()
    assert small[0, 0].sub(torch.tensor([200, 40, 10, 128])).abs().max() <= 2
    assert small[0, 1, 3] == small[1, 0, 3] == 0
    assert small[1, 1].sub(torch.tensor([0, 255, 0, 100])).abs().max() <= 2


def test_a_composited_photo_reduces_to_the_composite_of_the_reduced():
    full, background = view(16, 16, 4), torch.tensor([0.9, 0.2, 0.5])
    expected = full.rgb(background).reshape(8, 2, 8, 2, 3).mean(dim=(1, 3))
    assert (reduce_view(full, 2).rgb(background) - expected).abs().max() < 3 / 255


@pytest.mark.parametrize(("size", "factor"), [((9, 13), 2), ((9, 13), 4), ((8, 12), 4)], ids=str)
def test_a_pixel_counts_where_all_it_came_from_count(size, factor):
    full = view(*size)
    generator = torch.Generator().manual_seed(1)
    full.mask = torch.rand(size, generator=generator) < 0.9
    full.inverse_depth = torch.rand(size, generator=generator)
    full.inverse_depth[torch.rand(size, generator=generator) < 0.1] = torch.nan
    small = reduce_view(full, factor)
    height, width = size[0] // factor, size[1] // factor
    for row in range(height):
        for column in range(width):
            block = slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor)
            assert small.mask[row, column] == full.mask[block].all()
            expected = full.inverse_depth[block].mean()
            torch.testing.assert_close(small.inverse_depth[row, column], expected, equal_nan=True)
    assert small.mask.dtype == torch.bool
    assert 0 < small.inverse_depth.isnan().sum() < height * width
    assert 0 < small.mask.sum() < height * width


@pytest.mark.parametrize("factor", [2, 4])
def test_a_render_by_the_reduced_camera_looks_like_the_reduced_render(factor):
    """Wide Gaussians, so that a pixel's mean is about the value at its centre."""
    generator = torch.Generator().manual_seed(0)
    model = GaussianModel(30, 0)
    with torch.no_grad():
        model.xyz.copy_(1.6 * torch.rand(30, 3, generator=generator) - 0.8)
        model.scaling.fill_(-1.5)
        model.opacity.fill_(0.5)
        model.rotation.copy_(torch.randn(30, 4, generator=generator))
        model.feature_dc.copy_(torch.randn(30, 1, 3, generator=generator))
    full = view(130, 194)  # both leave a rest of 2 at factor 4
    full.camera.K[:2, :2] *= 4.0

    def look(camera: Camera) -> torch.Tensor:
        with torch.no_grad():
            return render_view(model, camera, torch.zeros(3))[0].clone()

    full.image = look(full.camera).clamp(0, 1).mul(255).round().byte()
    assert full.image.float().std() > 15  # there is something to see
    small = reduce_view(full, factor)
    found = look(small.camera).clamp(0, 1) * 255
    assert (found - small.image).abs().mean() < 1.5
    shifted = replace(small.camera, K=small.camera.K + torch.tensor([[0, 0, 1.0], [0, 0, 1], [0, 0, 0]]))
    error = (look(shifted).clamp(0, 1) * 255 - small.image).abs().mean()
    assert error > 2 * (found - small.image).abs().mean()  # a pixel off would be seen


# ---------------------------------------- the views of a scene

SIZES = [  # height, width, factor asked for, factor got
    (10, 4 * SMALLEST, 4, 4),
    (4 * SMALLEST, 10, 4, 4),
    (10, 4 * SMALLEST - 1, 4, 2),
    (2 * SMALLEST, 2 * SMALLEST, 2, 2),
    (2 * SMALLEST, 2 * SMALLEST, 4, 2),
    (2 * SMALLEST - 1, 2 * SMALLEST - 1, 4, 1),
    (SMALLEST, SMALLEST, 2, 1),
    (24, 24, 4, 1),
]


@pytest.mark.parametrize(("height", "width", "asked", "got"), SIZES)
def test_no_view_gets_tiny(height, width, asked, got):
    full = view(height, width)
    small = ViewPyramid([full]).view(0, asked)
    if got == 1:
        assert small is full
    else:
        assert small.image.shape == (height // got, width // got, 3)


def test_each_view_is_reduced_once_and_only_one_factor_is_kept():
    views = [view(8, 480, seed=seed) for seed in range(3)]
    pyramid = ViewPyramid(views)
    assert all(pyramid.view(i, 1) is views[i] for i in range(3))
    quarters = [pyramid.view(i, 4) for i in range(3)]
    assert all(pyramid.view(i, 4) is quarters[i] for i in range(3))
    assert [q.image.shape[1] for q in quarters] == [120] * 3
    assert not torch.equal(quarters[0].image, quarters[1].image)
    half = pyramid.view(1, 2)
    assert half.image.shape[1] == 240
    assert list(pyramid._reduced.values()) == [half]
    again = pyramid.view(1, 4)
    assert again is not quarters[1]
    assert torch.equal(again.image, quarters[1].image)
    assert pyramid.view(1, 1) is views[1]
    assert not pyramid._reduced


# ---------------------------------------- the run


@pytest.mark.parametrize(
    ("iterations", "quarter", "half"),  # the last steps at a quarter and at half of the resolution
    [(10, 1, 3), (100, 10, 30), (1000, 100, 300), (2500, 250, 750), (7000, 250, 750), (30_000, 250, 750)],
)
def test_reduction_over_a_run(iterations, quarter, half):
    steps = {1: 4, quarter: 4, quarter + 1: 2, half: 2, half + 1: 1, iterations: 1}
    assert {step: reduction(step, iterations) for step in steps} == steps


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyramid") / "ball"
    return load_scene(scenes.write_nerf_synthetic(folder, train=2, test=1, size=240, points=40))


@pytest.mark.parametrize(("coarse_to_fine", "sides"), [(True, [120] * 3 + [240] * 7), (False, [240] * 10)])
def test_a_run_begins_with_small_photos(ball, tmp_path, coarse_to_fine, sides):
    config = TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=10,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="none",
        coarse_to_fine=coarse_to_fine,
    )
    trainer = Trainer(config, scene=ball)
    results = [trainer.train_step() for _ in range(10)]
    assert [len(result.photo) for result in results] == sides
    assert all(result.image.shape == result.photo.shape for result in results)


@pytest.mark.parametrize(("flags", "wanted"), [((), True), (("--no-coarse-to-fine",), False)])
def test_the_flag(flags, wanted):
    settings = parse(TrainConfig, ["--scene", "a", "--output", "b", *flags], "gsopt train", "")
    assert settings.coarse_to_fine is wanted
