"""`gsopt prepare` killed again and again: it goes on, and ends with the bits of an undisturbed call."""

import random
import shutil
import time
from pathlib import Path

import preparing
import pytest

from gsopt import load_scene
from gsopt.errors import InputError
from gsopt.rundir import read_json

STAGES = ("photos", "features", "matches", "models", "scene")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The photos, and the contents of their scene; seconds the command takes."""
    folder = tmp_path_factory.mktemp("killed")
    preparing.make_untidy(folder / "photos", preparing.draw_photos(folder / "photos"))
    start = time.monotonic()
    finish(folder / "photos", folder / "scene")
    return folder / "photos", preparing.contents(folder / "scene"), time.monotonic() - start


def finish(photos: Path, scene: Path) -> None:
    process = preparing.start("--images", photos, "--output", scene)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def kill(photos: Path, scene: Path, ready) -> bool:
    """Start the command and kill it when `ready()`; whether it was not done by then."""
    process = preparing.start("--images", photos, "--output", scene)
    while process.poll() is None and not ready():
        time.sleep(0.002)
    process.kill()
    _, err = process.communicate(timeout=60)
    assert err == "" or process.returncode == -9, err
    return process.returncode == -9


def check_unfinished(scene: Path, bits: dict[str, bytes]) -> None:
    """It is no scene, or it is the whole scene."""
    if (scene / "sparse").exists():
        found = preparing.contents(scene)
        assert {name: found.get(name) for name in bits} == bits
        return
    assert not (scene / "prepare.json").exists()
    if scene.exists():
        with pytest.raises(InputError, match=r"no scene"):
            load_scene(scene)


def done(scene: Path) -> list[str]:
    state = scene / ".prepare" / "state.json"
    return list(read_json(state)["stages"]) if state.is_file() else []


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_each_stage(straight, tmp_path, stage):
    """As soon as the stage has begun, and a little later: what was done before stays done."""
    photos, bits, _ = straight
    scene = tmp_path / "scene"
    part = scene / ".prepare" / f"{stage}.part"
    before = list(STAGES[: STAGES.index(stage)])
    for delay in (0.0, 0.3):
        begun: list[float] = []

        def ready(begun=begun, delay=delay) -> bool:
            if part.exists() and not begun:
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() - begun[0] >= delay

        if not kill(photos, scene, ready):
            break
        assert done(scene)[: len(before)] == before
        check_unfinished(scene, bits)
    finish(photos, scene)
    assert preparing.contents(scene) == bits


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_times(straight, tmp_path, seed):
    photos, bits, seconds = straight
    scene = tmp_path / "scene"
    draw = random.Random(seed)
    for _ in range(6):
        end = time.monotonic() + draw.uniform(0.5, seconds)
        killed = kill(photos, scene, lambda end=end: time.monotonic() >= end)
        check_unfinished(scene, bits)
        if not killed:
            break
    finish(photos, scene)
    assert preparing.contents(scene) == bits
    assert not (scene / ".prepare").exists()


@pytest.mark.slow
def test_each_state_while_the_scene_is_published(straight, tmp_path, monkeypatch):
    """Moved one after another, the model last; ended after each, it goes on."""
    from gsopt.prepare import PrepareConfig, prepare

    photos, bits, _ = straight
    scene, states = tmp_path / "scene", tmp_path / "states"
    replace = Path.replace

    def copying(path: Path, target: Path) -> Path:
        result = replace(path, target)
        if target.parent == scene:
            shutil.copytree(scene, states / target.name, symlinks=True)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", copying)
        prepare(PrepareConfig(images=photos, output=scene))
    names = [*("images", "images_2", "images_4", "images_8", "sparse"), "prepare.json"]
    assert [path.name for path in sorted(states.iterdir(), key=lambda path: path.stat().st_ctime)] == names
    for name in names:
        check_unfinished(states / name, bits)
        finish(photos, states / name)
        assert preparing.contents(states / name) == bits
