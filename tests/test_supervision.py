"""Training with masks and depth maps: what they bring, and that what is ignored has no influence."""

from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch
from meta_device import Waits
from test_monitor import read

from gsopt.commands.evaluate import EvaluateConfig
from gsopt.commands.evaluate import run as evaluate
from gsopt.commands.flags import parse
from gsopt.commands.train import opening
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.datasets.pyramid import ViewPyramid
from gsopt.device import Uploader
from gsopt.errors import InputError
from gsopt.feed import PhotoFeed
from gsopt.model import ATTRIBUTES
from gsopt.runtime import ViewOrder
from gsopt.supervision import DepthLoss
from gsopt.trainer import Trainer


def config(folder, **settings) -> TrainConfig:
    settings = {"iterations": 12, "strategy": "none", "device": "cpu", "quiet": True} | settings
    return TrainConfig(output=folder, **{"save_iterations": (), "test_iterations": ()} | settings)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """The ball with a depth map of each training view."""
    folder = scenes.write_nerf_synthetic(tmp_path_factory.mktemp("supervision") / "ball", points=60)
    (folder / "depths" / "train").mkdir(parents=True)
    for number, camera in enumerate(scenes.orbit(8, 24, 24)[:6]):
        np.save(folder / "depths" / "train" / f"r_{number}.npy", scenes.depth(camera))
    return load_scene(folder, depths=True)


def with_masks(scene, spoil=None):
    """Each view ignores a square, which `spoil` [H, W, C] may be painted into."""
    views = []
    for number, view in enumerate((*scene.train, *scene.test)):
        mask, image = torch.ones(view.image.shape[:2], dtype=torch.bool), view.image.clone()
        mask[4 + number : 14 + number, 3:12] = False
        if spoil is not None:
            image[~mask] = spoil[~mask]
        views.append(replace(view, image=image, mask=mask))
    return replace(scene, train=views[: len(scene.train)], test=views[len(scene.train) :])


def bits(trainer):
    return {name: trainer.model.get_parameter(name).detach().clone() for name in ATTRIBUTES}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------- what they bring


def painted(view, number):
    """The view with a red square somewhere, which its mask ignores."""
    generator = torch.Generator().manual_seed(number)
    y, x = torch.randint(10, 34, (2,), generator=generator).tolist()
    image, mask = view.image.clone(), torch.ones(view.image.shape[:2], dtype=torch.bool)
    image[y : y + 20, x : x + 20] = torch.tensor([220, 30, 40, 255], dtype=torch.uint8)
    mask[y : y + 20, x : x + 20] = False
    return replace(view, image=image, mask=mask)


def test_what_moves_through_the_photos_is_forgotten(builtin_scene, tmp_path):
    scene = load_scene(builtin_scene, resolution=64)
    masked = [painted(view, number) for number, view in enumerate(scene.train)]
    views = {"clean": scene.train, "masked": masked, "not": [replace(view, mask=None) for view in masked]}
    psnr = {}
    for name, train in views.items():
        settings = config(tmp_path / name, iterations=200, strategy="default")
        found = Trainer(settings, scene=replace(scene, train=train)).train()
        psnr[name] = found["test"]["psnr"]
    assert psnr["masked"] > psnr["not"] + 5
    assert psnr["masked"] > psnr["clean"] - 2


def test_depth_maps_help_where_there_is_no_texture(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "ball_color", lambda xyz: np.full_like(xyz, 0.5))
    scenes.write_nerf_synthetic(tmp_path / "ball", train=6, test=4, size=48, points=None)
    shots = scenes.orbit(10, 48, 48)
    scene = load_scene(tmp_path / "ball")
    for view, shot in zip(scene.train, shots[:6], strict=True):
        z = torch.from_numpy(scenes.depth(shot))
        view.inverse_depth = torch.where(z > 0, 1 / z, torch.nan)
    errors = {}
    for weight in (0.0, 1.0):
        settings = config(tmp_path / f"{weight}", iterations=300, depth_loss=weight, strategy="default")
        trainer = Trainer(settings, scene=scene)
        trainer.train()
        errors[weight] = [depth_error(trainer, part) for part in (shots[:6], shots[6:])]
    assert errors[1.0][0] < 0.7 * errors[0.0][0]  # of training views
    assert errors[1.0][1] < 0.9 * errors[0.0][1]  # of test views


@torch.no_grad()
def depth_error(trainer, shots):
    """Mean difference of inverse depths on the ball."""
    found = []
    for shot in shots:
        _, info = trainer.joint.render(shot, trainer.background, render_mode="RGB+D")
        z = torch.from_numpy(scenes.depth(shot))
        found.append((info["inverse_depth"] - 1 / z)[z > 0].abs().mean())
    return torch.stack(found).mean().item()


# ---------------------------------------- what has no influence

RUNS = {
    "masks": {},
    "masks through autograd": {"backend": "reference", "iterations": 3},
    "masks and depths": {"depth_loss": 1.0},
    "masks, poses and exposures": {"optimize_poses": True, "exposure": True},
    "masks and batches": {"batch_size": 2},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_ignored_pixels_change_no_bit_of_a_run(ball, tmp_path, settings):
    noise = torch.randint(0, 256, (24, 24, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise[..., 3] = 255
    found = []
    for name, scene in {"a": with_masks(ball), "b": with_masks(ball, noise), "c": ball}.items():
        trainer = Trainer(config(tmp_path / name, **settings), scene=scene)
        metrics = trainer.train()
        found.append((bits(trainer), {split: metrics[split] for split in ("test", "train")}))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert not same(found[0][0], found[2][0])
    assert found[0][1] != found[2][1]


def test_masked_views_take_the_one_call_and_have_its_bits(ball, tmp_path):
    scene, found = with_masks(ball), []
    for name in ("one call", "autograd"):
        trainer = Trainer(config(tmp_path / name), scene=scene)
        assert trainer.direct is not None
        if name == "autograd":
            trainer.direct = None
        for _ in range(12):
            trainer.train_step()
        found.append(bits(trainer))
    assert same(*found)


def test_the_progress_line_counts_used_pixels_only(ball, tmp_path):
    scene = with_masks(ball)
    result = Trainer(config(tmp_path / "run"), scene=scene).train_step()
    assert any(result.mask is view.mask for view in scene.train)


def test_a_view_that_is_ignored_at_a_low_resolution_changes_nothing(ball, tmp_path, monkeypatch):
    """A dotted mask: reduced, no pixel is left to count."""
    monkeypatch.setattr("gsopt.datasets.pyramid.SMALLEST", 6)
    dots = torch.zeros(24, 24, dtype=torch.bool)
    dots[::2, ::2] = True
    scene = replace(ball, train=[replace(view, mask=dots) for view in ball.train])
    trainer = Trainer(config(tmp_path / "run"), scene=scene)
    before = bits(trainer)
    result = trainer.train_step()
    assert result.loss.item() == 0
    assert same(before, bits(trainer))
    trainer.step = 10
    assert trainer.train_step().loss.item() > 0


def test_evaluation_can_use_all_pixels(tmp_path, capsys):
    folder = scenes.write_colmap(tmp_path / "ball")
    (folder / "masks").mkdir()
    used = np.full((24, 32), 255, np.uint8)
    used[8:16, 12:20] = 0
    for number in range(6):
        scenes.Image.fromarray(used).save(folder / "masks" / f"{number:04d}.png")
    trainer = Trainer(config(tmp_path / "run", scene=folder))
    own = trainer.train()["test"]
    assert "masks     ignore a part of 6 of 6 photos (--no-masks)" in opening(trainer)
    again = evaluate(EvaluateConfig(model=tmp_path / "run"))
    assert again["test"] == own
    every = evaluate(EvaluateConfig(model=tmp_path / "run", no_masks=True))
    assert every["test"] != own
    assert every["changed"] == {"no_masks": True}
    capsys.readouterr()


# ---------------------------------------- the depth term


def test_the_depth_term_is_told_and_fades(ball, tmp_path):
    trainer = Trainer(config(tmp_path / "run", depth_loss=2.0, iterations=20), scene=ball)
    assert trainer.direct is None
    assert "depths    of 6 of 6 training photos (--depth-loss 2)" in opening(trainer)
    trainer.train()
    term = [event.value for event in read(tmp_path / "run").Scalars("train_loss_patches/depth")]
    assert len(term) == 2
    assert 0 < term[1] < 0.2 * term[0]


@pytest.mark.parametrize(("step", "weight"), [(0, 3.0), (50, 0.3), (100, 0.03), (150, 0.03)])
def test_its_weight_falls_to_a_hundredth(ball, step, weight):
    view = ball.train[0]
    info = {"inverse_depth": torch.where(view.inverse_depth.isnan(), 7.0, view.inverse_depth + 0.5)}
    loss = DepthLoss(3.0, 100)
    assert loss.terms(info, view, step)["depth"].item() == pytest.approx(0.5 * weight)
    nothing = torch.zeros_like(view.inverse_depth, dtype=torch.bool)
    assert loss.terms(info, replace(view, mask=nothing), step)["depth"].item() == 0
    assert loss.terms(info, replace(view, inverse_depth=None), step)["depth"].item() == 0


def test_views_without_a_map_in_one_step_with_others(ball, tmp_path):
    views = [replace(view, inverse_depth=None) if i % 2 else view for i, view in enumerate(ball.train)]
    settings = config(tmp_path / "run", depth_loss=1.0, batch_size=6)
    result = Trainer(settings, scene=replace(ball, train=views)).train_step()
    assert set(result.terms) == {"l1", "ssim", "depth"}
    assert result.terms["depth"] > 0


def test_depths_of_two_models(ball, tmp_path):
    """A background's Gaussians are in front of what lies behind them."""
    settings = config(tmp_path / "a", iterations=1)
    first = Trainer(settings, scene=ball)
    first.model.save_ply(tmp_path / "ball.ply")
    settings = config(tmp_path / "b", depth_loss=1.0, background_model=tmp_path / "ball.ply")
    trainer = Trainer(settings, scene=ball)
    result = trainer.train_step()
    assert result.terms["depth"] > 0
    _, alone = first.joint.render(ball.train[0].camera, first.background, render_mode="RGB+D")
    _, both = trainer.joint.render(ball.train[0].camera, first.background, render_mode="RGB+D")
    assert both["inverse_depth"].mean() > alone["inverse_depth"].mean()


# ---------------------------------------- devices and flags


def test_maps_are_sent_to_the_device_without_waiting(ball):
    scene, device = with_masks(ball), torch.device("meta")
    feed = PhotoFeed(ViewPyramid(scene.train), ViewOrder(len(scene.train), 0), device)
    assert isinstance(feed._uploader, Uploader)
    with Waits() as waits:
        view, _ = feed.take(0, 1, torch.zeros(3, device=device))
    assert {view.mask.device.type, view.inverse_depth.device.type} == {"meta"}
    assert not waits.by_file


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--masks", "sky", "--no-masks"], "--masks sky: there is --no-masks, too; leave one of them away"),
        (["--depth-loss", "-1"], "--depth-loss -1: expected 0 or more; 1 is the original's"),
        (["--depth-loss", "nan"], "--depth-loss nan: expected 0 or more; 1 is the original's"),
    ],
)
def test_unusable_flags(tmp_path, flags, message):
    settings = parse(TrainConfig, ["--scene", "a", "--output", str(tmp_path / "run"), *flags], "train", "")
    with pytest.raises(InputError) as error:
        settings.check()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, (None, "background", False)),
        ({"masks": "sky", "alpha": "mask"}, ("sky", "mask", False)),
        ({"no_masks": True, "depth_loss": 0.5}, (False, "background", True)),
    ],
)
def test_what_the_scene_is_loaded_with(settings, arguments):
    assert TrainConfig(**settings).supervision == dict(
        zip(("masks", "alpha", "depths"), arguments, strict=True)
    )


def test_masks_of_a_run_are_settled(tmp_path):
    old = config(tmp_path, scene=tmp_path)
    with pytest.raises(
        InputError, match=r"--alpha mask: this run has background, and which pixels and which"
    ):
        replace(old, alpha="mask").check_resume(old)
    replace(old, depth_loss=1.0).check_resume(old)  # a weight may change
