"""The viewer of a run, seen from the other end of its connection; without a browser."""

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import scenes
import torch
from acting import assert_same_bits, bits
from viewing import Page

from gsopt.commands import main
from gsopt.commands.train import watched
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.rundir import read_json
from gsopt.trainer import Trainer
from gsopt.viewer.live import LiveViewer

FOREVER = 1_000_000  # iterations, until it is told to stop


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("viewer") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=FOREVER,
        schedule_iterations=2_000,
        test_iterations=(),
        save_iterations=(),
        strategy="none",
        fit_rates=False,  # rates that stay where they are until the page moves them
        sh_degree=1,
        device="cpu",
        quiet=True,
        viewer=True,
        viewer_port=0,
    )


@contextmanager
def training(config, ball):
    """A run in a thread of its own, with its viewer and a page that looks at it; it ends with the block."""
    trainer, ended = Trainer(config, ball), []

    def train():
        try:
            trainer.train()
        except KeyboardInterrupt:
            ended.append("interrupted")

    with watched(trainer) as viewer:
        thread = threading.Thread(target=train)
        thread.start()
        try:
            with Page(viewer.address, ball.train[0].camera) as page:
                yield trainer, viewer, page
        finally:
            trainer.config = replace(trainer.config, iterations=1)  # it is beyond that
            trainer.by_hand.go_on()
            thread.join()


def test_a_page_gets_the_picture_that_the_rasterizer_makes(ball, config):
    with training(config, ball) as (trainer, _viewer, page):
        page.set("Pause")
        page.wait(lambda: page.value("Pause", "label") == "Go on")
        camera = ball.train[3].camera
        page.look_from(camera)
        fitted = camera.fitted(80, 60)
        image, _ = trainer.joint.render(fitted, trainer.background, None, sh_degree=trainer.sh_degree)
        assert image.std() > 0.05

        def shows_it():
            if not page.pictures or page.pictures[-1].shape != (60, 80, 3):
                return False
            shown = torch.from_numpy(page.pictures[-1].copy()).float() / 255
            return (shown - image.clamp(0, 1)).abs().mean() < 0.01

        page.wait(shows_it, "the picture from there")


def test_pictures_are_small_while_the_camera_moves_and_whole_when_it_rests(ball, config):
    with training(config, ball) as (_trainer, viewer, page):
        render = viewer._render
        viewer._render = lambda camera: (time.sleep(1e-4 * camera.width * camera.height), render(camera))[1]
        sizes = []
        for number in (1, 2, 3):
            shown = len(page.pictures)
            page.look_from(ball.train[number].camera)
            page.wait(lambda shown=shown: len(page.pictures) > shown, "a picture on the way")
            sizes.append(page.pictures[shown].shape)
        assert max(height for height, _, _ in sizes[1:]) <= 30  # the first may be of a camera at rest
        page.wait(lambda: page.pictures[-1].shape == (60, 80, 3), "the whole picture")


def test_a_still_page_gets_new_pictures_rarely_and_none_of_a_model_that_stands_still(ball, config):
    with training(config, ball) as (trainer, viewer, page):
        page.wait(lambda: viewer.screen.pictures >= 4)
        seconds, pictures = trainer.clock.read()["train"], viewer.screen.seconds
        first = trainer.step
        page.wait(lambda: trainer.step > first + 300)
        passed = trainer.clock.read()["train"] - seconds
        assert viewer.screen.seconds - pictures < 0.1 * passed + 0.05
        page.set("Pause")
        page.wait(lambda: trainer.by_hand.paused)
        page.wait(lambda: page.value("Pause", "label") == "Go on")
        looked = threading.Event()
        look = viewer.look

        def counting(*about):
            look(*about)
            counting.looks += 1
            if counting.looks > 6:
                looked.set()

        counting.looks = 0
        viewer.look = counting
        shown = viewer.screen.pictures
        assert looked.wait(10)
        assert viewer.screen.pictures <= shown + 1


def test_the_switches_of_the_panel_do_what_they_say(ball, config):
    with training(config, ball) as (trainer, _viewer, page):
        hand, groups = trainer.by_hand, {group["name"]: group for group in trainer.optimizer.param_groups}
        page.set("xyz")
        page.wait(lambda: hand.frozen == {"xyz": True}, "the freeze")
        xyz, step = trainer.model.xyz.detach().clone(), trainer.step
        page.wait(lambda: trainer.step > step + 20)
        assert torch.equal(trainer.model.xyz, xyz)
        page.set("xyz", False)
        page.wait(lambda: hand.frozen == {"xyz": False}, "the thaw")
        page.wait(lambda: not torch.equal(trainer.model.xyz, xyz), "the first step of xyz")
        page.set("Save")
        page.wait(lambda: list(trainer.run.checkpoints.glob("*.pt")), "a checkpoint")
        page.wait(trainer.run.saved_iterations, "a PLY")
        page.set("Lock what is inside")
        page.wait(lambda: trainer.model.locked is not None, "a lock")
        assert trainer.model.locked.sum() < trainer.model.num_gaussians
        page.set("Unlock all")
        page.wait(lambda: trainer.model.locked is None, "the end of the lock")
        before = groups["opacity"]["lr"]
        page.set("opacity rate", -1.0)
        page.wait(lambda: hand.factors == {"opacity": pytest.approx(0.1)}, "the rate")
        assert groups["opacity"]["lr"] == pytest.approx(before / 10)
        page.set("Pause")
        page.wait(lambda: hand.paused, "the pause")
        page.wait(lambda: page.value("One step", "disabled") is False)
        step = trainer.step
        page.set("One step")
        page.wait(lambda: trainer.step == step + 1, "one step")
    what = [entry["what"].split(":")[0] for entry in read_json(trainer.run.by_hand)]
    assert what == ["xyz frozen", "xyz thawed", what[2], "unlocked all", "rate of opacity x0.1"]
    assert what[2].startswith("locked box")


def test_what_is_refused_is_said_and_the_switch_goes_back(ball, config):
    others = ("feature-dc", "feature-rest", "scaling", "rotation", "opacity")
    with training(replace(config, freeze=others), ball) as (_trainer, _viewer, page):
        page.set("xyz")
        page.wait(lambda: page.of_type("NotificationShowMessage"), "a notification")
        assert "nothing else is trained" in str(page.of_type("NotificationShowMessage")[-1])
        page.wait(lambda: page.value("xyz") is False, "the switch to go back")


def test_cameras_are_shown_with_photos_and_a_click_goes_there(ball, config):
    with training(config, ball) as (_trainer, _viewer, page):
        page.wait(lambda: len(page.of_type("CameraFrustumMessage")) == len(ball.train), "the cameras")
        page.click("/cameras/2")
        page.wait(lambda: page.moves, "the move")
        assert torch.allclose(torch.tensor(page.moves[-1]), ball.train[2].camera.center, atol=1e-5)
        frustum = page.of_type("CameraFrustumMessage")[2]["props"]
        assert frustum["aspect"] == pytest.approx(1)
        assert len(frustum["_image_data"]) > 100


def test_browsers_may_draw_the_gaussians_themselves(ball, config):
    with training(config, ball) as (_trainer, _viewer, page):
        page.wait(lambda: page.pictures, "a picture")
        page.set("draw in the browser")
        page.wait(lambda: page.of_type("GaussianSplatsMessage"), "Gaussians")
        page.wait(lambda: page.of_type("BackgroundImageMessage")[-1]["rgb_data"] is None, "no picture")
        shown = len(page.pictures)
        page.set("draw in the browser", False)
        page.wait(lambda: len(page.pictures) > shown, "pictures again")


def test_a_run_goes_on_when_the_browser_leaves(ball, config):
    with training(config, ball) as (trainer, viewer, page):
        page.wait(lambda: page.pictures)
        page._socket.close()
        page.wait(lambda: not viewer.screen.watched, "the end of the connection")
        step = trainer.step
        page.wait(lambda: trainer.step > step + 20, "more steps")


def test_a_run_that_is_watched_has_the_bits_of_one_that_is_not(ball, config):
    length = {"iterations": 60, "schedule_iterations": 60, "strategy": "default"}
    plain = Trainer(replace(config, **length, viewer=False, output=config.output.with_name("plain")), ball)
    plain.train()
    trainer = Trainer(replace(config, **length), ball)
    with watched(trainer) as viewer, Page(viewer.address, ball.train[0].camera) as page:
        page.wait(lambda: viewer.screen.watched)
        trainer.train()
        assert viewer.screen.pictures
    assert_same_bits(bits(trainer), bits(plain))
    assert trainer.run.config.read_text().replace("/run", "/plain") == plain.run.config.read_text()


def test_a_port_in_use_and_other_addresses_that_cannot_be_had(ball, config, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        argv = ["train", "--scene", str(ball.path), "--output", str(tmp_path / "run"), "--viewer"]
        assert main([*argv, "--viewer-port", str(port)]) == 2
        assert capsys.readouterr().err == (
            f"gsopt: error: --viewer-port {port}: in use by another program on 127.0.0.1; give another, or 0 "
            "for one that is free\n"
        )
    for flags, message in (
        (["--viewer-host", "203.0.113.7"], "--viewer-host 203.0.113.7"),
        (["--viewer-port", "70000"], "--viewer-port 70000: expected 1 to 65535, or 0"),
        (["--viewer-resolution", "1"], "--viewer-resolution 1: expected 64 to 4096 pixels"),
    ):
        assert main([*argv, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--viewer-port", "0"], "--viewer-port: without effect, without --viewer"),
        (["--viewer-splats"], "--viewer-splats: without effect, without --viewer"),
        (["--forget-by-hand"], "--forget-by-hand: without effect, without --resume"),
    ],
)
@pytest.mark.filterwarnings("always")
def test_flags_without_effect(ball, tmp_path, capsys, flags, message):
    argv = ["train", "--scene", str(ball.path), "--iterations", "1", "--quiet", *flags]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 0
    assert message in capsys.readouterr().err


def test_a_sweep_has_no_viewer(ball, tmp_path, capsys):
    argv = ["freeze-sweep", "--scene", str(ball.path), "--output", str(tmp_path / "sweep"), "--no-plot"]
    assert main([*argv, "--freeze", "none", "xyz", "--", "--viewer"]) == 2
    assert "--viewer: shows one run, and a sweep has many" in capsys.readouterr().err


def test_without_viser_the_extra_is_named(ball, config, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    with pytest.raises(Exception, match=r'pip install "gsopt\[viewer\]"'):
        LiveViewer(Trainer(config, ball))
