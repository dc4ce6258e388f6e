"""The viewer in a real browser: what it shows, what a click does. Skipped without Chromium or playwright."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import browser, dismiss, open_page
from PIL import Image
from test_viewer_live import training

from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.viewer.lens import Pose, camera_of

PICTURE = os.environ.get("GSOPT_VIEWER_PNG")  # where to keep a screenshot for the documents


@pytest.fixture(scope="module")
def session(builtin_scene, tmp_path_factory):
    """A run of the built-in scene with its viewer, and the page that a browser has of it."""
    with browser() as chromium:
        scene = load_scene(builtin_scene, resolution=256 if PICTURE else 96)
        config = TrainConfig(
            scene=builtin_scene,
            output=tmp_path_factory.mktemp("browser") / "still life",
            iterations=1_000_000,
            schedule_iterations=2_000,
            test_iterations=(),
            save_iterations=(),
            max_gaussians=30_000 if PICTURE else 6_000,
            device="cpu",
            quiet=True,
            viewer=True,
            viewer_port=0,
        )
        with training(config, scene) as (trainer, viewer, _):
            page = open_page(chromium, viewer.address, *((1400, 800) if PICTURE else (900, 500)))
            yield trainer, viewer, page
            assert page.errors == []


def reach(page, until, seconds: float = 30.0) -> None:
    """Wait until something is so, while the browser goes on."""
    for _ in range(int(seconds / 0.05)):
        if until():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"waited {seconds:g} s")


def switch(page, label: str):
    """The checkbox of a label."""
    row = page.get_by_text(label, exact=True).first.locator("xpath=ancestor::*[.//input][1]")
    return row.locator("input").first


def shown(page) -> np.ndarray:
    """What is on the screen. uint8 [H, W, 3]"""
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def test_a_click_on_a_switch_freezes_and_another_thaws(session):
    trainer, _, page = session
    reach(page, lambda: trainer.step > 300)
    assert not switch(page, "xyz").is_checked()
    switch(page, "xyz").click()
    reach(page, lambda: trainer.by_hand.frozen.get("xyz"))
    count, xyz, step = trainer.model.num_gaussians, trainer.model.xyz.detach().clone(), trainer.step
    reach(page, lambda: trainer.step > step + 20)
    same = trainer.model.xyz[:10]  # rows may be pruned, those that stay are what they were
    assert trainer.model.num_gaussians != count or torch.equal(trainer.model.xyz, xyz)
    assert torch.isin(same, xyz).all()
    switch(page, "xyz").click()
    reach(page, lambda: trainer.by_hand.frozen.get("xyz") is False)
    reach(page, lambda: not torch.isin(trainer.model.xyz[:10], xyz).all())


def test_it_shows_what_the_rasterizer_renders(session):
    """Also the place for the picture in the documents: GSOPT_VIEWER_PNG=docs/images/viewer.png."""
    trainer, viewer, page = session
    reach(page, lambda: trainer.step > (1900 if PICTURE else 400), 200.0)
    dismiss(page)
    if PICTURE:
        page.wait_for_timeout(1500)
        Path(PICTURE).write_bytes(page.screenshot())
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Go on", exact=True).wait_for()
    assert trainer.by_hand.paused
    step = trainer.step
    page.get_by_text("View", exact=True).click()
    page.get_by_text("cameras", exact=True).wait_for()
    switch(page, "cameras").click()
    page.wait_for_timeout(1000)
    dismiss(page)
    page.wait_for_timeout(500)
    assert trainer.step == step
    handle = max(viewer.server.get_clients().values(), key=lambda client: client.camera.image_width)
    seen = handle.camera
    pose = Pose(tuple(seen.wxyz.tolist()), tuple(seen.position.tolist()), seen.fov)
    camera = camera_of(pose, seen.image_width, seen.image_height)
    expected = viewer._render(camera).clamp(0, 1)
    there = torch.from_numpy(shown(page).copy()).float()[: seen.image_height, : seen.image_width] / 255
    assert expected.std() > 0.1
    assert -10 * (there - expected).square().mean().log10() > 22  # dB: JPEG, scaled in the browser


def test_a_step_and_the_end_of_a_pause(session):
    trainer, _, page = session
    assert trainer.by_hand.paused
    step = trainer.step
    page.get_by_role("button", name="One step", exact=True).click()
    reach(page, lambda: trainer.step == step + 1)
    page.get_by_role("button", name="Go on", exact=True).click()
    reach(page, lambda: trainer.step > step + 5)


def test_the_gaussians_drawn_by_the_browser(session):
    _, _, page = session
    before = shown(page)
    switch(page, "draw in the browser").click()
    page.wait_for_timeout(3000)
    after = shown(page)
    width = after.shape[1] // 2
    assert after[:, :width].std() > 20
    assert np.abs(after[:, :width].astype(float) - before[:, :width]).mean() < 60
    switch(page, "draw in the browser").click()


def test_a_run_goes_on_when_the_page_is_closed(session):
    trainer, viewer, page = session
    clients = len(viewer.server.get_clients())
    page.close()
    end = time.monotonic() + 10
    while len(viewer.server.get_clients()) == clients and time.monotonic() < end:
        time.sleep(0.05)
    assert len(viewer.server.get_clients()) == clients - 1
    step = trainer.step
    time.sleep(1)
    assert trainer.step > step
