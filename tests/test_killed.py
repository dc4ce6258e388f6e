"""A run that is killed at any moment goes on from where it was, and ends with the bits of an undisturbed one.

Two ways. Processes that are really killed, at moments that a seed chooses: in any call of a function, in the
writing of a checkpoint, and from outside. And without processes each state that the disk goes through: a copy
of the run's folder before every operation on a file in it is what a kill at that moment leaves.
"""

import itertools
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import killing
import pytest
import resuming
import scenes

from gsopt import checkpoint
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.recorder import Recorder
from gsopt.rundir import read_json
from gsopt.trainer import Trainer

FLAGS = shlex.split(
    "--device cpu --quiet --exposure --background random --freeze opacity@40:60 "
    "--strategy default --densify.refine-start-iter 5 --densify.refine-every 10 --densify.reset-every 40 "
    "--densify.grow-grad2d 1e-5 --test-iterations 31 70 --save-iterations 50 --checkpoint-every 4"
)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("killed") / "ball", points=60)


class Run:
    """One run, each session in a process of its own."""

    def __init__(self, scene: Path, folder: Path, iterations: int) -> None:
        self.folder = folder
        self.new = ["train", "--scene", str(scene), "--output", str(folder), "--iterations", str(iterations)]
        self.new += FLAGS
        self.sessions = itertools.count(1)

    def start(self, where: str = "anywhere", count: int = 0) -> subprocess.Popen:
        """Begin, or go on where there is a run, with other numbers of threads in turn."""
        threads = ["--threads", str(1 + next(self.sessions) % 3)]
        known = (self.folder / "config.json").is_file()
        command = ["train", "--resume", str(self.folder)] if known else self.new
        program = [sys.executable, killing.__file__, where, str(count), *command, *threads]
        return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self) -> list[int]:
        """The last session, which nobody kills; its calls: all, those inside saving, and the checkpoints."""
        process = self.start()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err == ""
        return list(map(int, out.splitlines()[-1].split()))

    def die(self, where: str, count: int) -> None:
        """A session that is killed at a call."""
        process = self.start(where, count)
        _, err = process.communicate(timeout=120)
        assert process.returncode == -9, f"it should have been killed at call {count} ({where}): {err}"
        assert err == ""

    def kill(self, seconds: float) -> int:
        """A session that is killed from outside so long after its next checkpoint; its exit code.

        0 where it was faster and has reached the end.
        """
        newest = checkpoint.latest(self.folder / "checkpoints")
        process = self.start()
        while checkpoint.latest(self.folder / "checkpoints") == newest and process.poll() is None:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
        _, err = process.communicate(timeout=120)
        assert err == ""
        return process.returncode


def kill_and_compare(ball: Path, folder: Path, moments: list[str], iterations: int, seed: int) -> None:
    draw = random.Random(seed)
    straight = Run(ball, folder / "straight", iterations)
    everywhere, saving, saves = straight.finish()
    run = Run(ball, folder / "killed", iterations)
    for moment in moments:
        if moment == "anywhere":
            run.die(moment, draw.randint(1, everywhere // (2 * len(moments))))
        elif moment == "saving":
            run.die(moment, draw.randint(1, 2 * saving // saves))
        else:
            assert run.kill(draw.uniform(0, 0.05)) in (-9, 0)
    run.finish()
    assert resuming.run_differences(straight.folder, run.folder) == []
    left = [path.name for path in run.folder.rglob("*") if path.suffix in (".tmp", ".part", ".damaged")]
    assert left == []


def test_killed_three_times(ball, tmp_path):
    kill_and_compare(ball, tmp_path, ["saving", "anywhere", "outside"], iterations=100, seed=1)


@pytest.mark.slow
def test_killed_twenty_times(ball, tmp_path):
    moments = ["saving"] * 8 + ["anywhere"] * 8 + ["outside"] * 4
    random.Random(2).shuffle(moments)
    kill_and_compare(ball, tmp_path, moments, iterations=400, seed=2)


# ------------------------------------------------------------------------------- each state of the folder

WRITES = os.O_WRONLY | os.O_RDWR
_watch: dict = {}  # the hook cannot be taken away again: it does nothing while this is empty


def _hook(event: str, args: tuple) -> None:
    if not _watch or _watch["busy"]:
        return
    if event == "open":
        paths = [args[0]] if isinstance(args[2], int) and args[2] & WRITES else []
    else:
        paths = args[:2] if event in ("os.rename", "os.link", "os.mkdir", "os.remove") else []
    if any(isinstance(path, str | Path) and Path(path).is_relative_to(_watch["run"]) for path in paths):
        _take_copy()


def _take_copy() -> None:
    _watch["busy"] = True
    if _watch["run"].is_dir():
        shutil.copytree(_watch["run"], _watch["copies"] / f"{next(_watch['count']):03d}")
    _watch["busy"] = False


@pytest.fixture(scope="module")
def states(ball, tmp_path_factory):
    """A short run of all kinds of files, and copies of its folder before each operation on one of them."""
    folder = tmp_path_factory.mktemp("states")
    run, copies = folder / "run", folder / "copies"
    config = TrainConfig(
        **{"scene": ball, "output": run, "iterations": 8, "checkpoint_every": 2, "device": "cpu"},
        **{"test_iterations": (3, 4), "save_iterations": (2, 5), "quiet": True, "exposure": True},
    )
    copies.mkdir()
    sys.addaudithook(_hook)
    with pytest.MonkeyPatch.context() as patch:
        fsync = os.fsync
        patch.setattr(os, "fsync", lambda fd: (_take_copy(), fsync(fd)))
        _watch.update(run=run, copies=copies, count=itertools.count(), busy=False)
        try:
            Trainer(config).train()
        finally:
            _watch.clear()
    return config, run, sorted(copies.iterdir())


def go_on(config: TrainConfig, straight: Path, state: Path) -> list[str]:
    """What differs in the end, if a run goes on from this state, or begins where there is none yet."""
    if (state / "config.json").exists():
        Trainer(TrainConfig.of_run(state)).train()
    else:
        Trainer(replace(config, output=state)).train()
    return resuming.run_differences(straight, state)


def check_states(states, every: int) -> None:
    config, run, copies = states
    found = {copy.name: go_on(config, run, copy) for copy in copies[::every]}
    assert {name: what for name, what in found.items() if what} == {}


def test_each_tenth_state_of_the_folder_can_be_gone_on_from(states):
    check_states(states, every=10)


@pytest.mark.slow
def test_each_state_of_the_folder_can_be_gone_on_from(states):
    check_states(states, every=1)


def test_the_states_are_what_they_say(states):
    """Some are from before the run is one, with a checkpoint half there, with all but metrics.json."""
    _, run, copies = states
    names = [{path.name for path in copy.rglob("*") if path.is_file()} for copy in copies]
    assert len(copies) > 60
    assert any("config.json" not in found for found in names)
    assert any("step_00000004.pt.tmp" in found and "step_00000004.pt" not in found for found in names)
    assert any(
        {"step_00000008.pt", "history.json"} <= found and "metrics.json" not in found for found in names
    )
    assert read_json(run / "metrics.json")["iterations"] == 8


def test_an_extended_run_killed_before_its_end_is_not_taken_for_finished(ball, tmp_path, capsys):
    """Its metrics.json is of the shorter run: once it goes on, that has the name of an older model's."""
    run, flags = tmp_path / "run", ["--device", "cpu", "--quiet"]
    assert main(["train", "--scene", str(ball), "--output", str(run), "--iterations", "3", *flags]) == 0
    trainer = Trainer(replace(TrainConfig.of_run(run), iterations=5))
    recorder = Recorder(trainer)
    recorder.begin()
    while trainer.step < 5:
        trainer.train_step()
    recorder._save_checkpoint()  # and here it is killed
    recorder.close()
    assert read_json(run / "metrics_3.json")["iterations"] == 3
    capsys.readouterr()
    assert main(["train", "--resume", str(run), *flags]) == 0
    assert "is finished" not in capsys.readouterr().out
    assert read_json(run / "metrics.json")["iterations"] == 5
