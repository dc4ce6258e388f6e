"""What a run meets from outside, in processes of its own: full and read-only disks, signals, no memory."""

import errno
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import resuming
import scenes
import torch

from gsopt import checkpoint
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.trainer import Trainer

FLAGS = ["--device", "cpu", "--quiet", "--checkpoint-every", "4", "--keep", "3", "--threads", "1"]
FLAGS += ["--test-iterations", "10", "--save-iterations", "6", "--sh-degree", "1"]
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from gsopt.commands import main
sys.exit(main(sys.argv[2:]))
"""  # a file may not grow beyond so many bytes: the same error as that of a full disk, but for its number


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("trouble") / "ball", points=60)


def new(ball: Path, run: Path, iterations: int) -> list[str]:
    return ["train", "--scene", str(ball), "--output", str(run), "--iterations", str(iterations), *FLAGS]


def steps(run: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.find(run / "checkpoints")]


def without_room(size: int, *command: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", LIMITED, str(size), *command]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


def test_a_disk_that_gets_full_costs_checkpoints_and_nothing_old(ball, tmp_path):
    """Checkpoints find no room, smaller files do; with room again the run ends as if nothing had been."""
    assert main(new(ball, tmp_path / "straight", 20)) == 0
    run = tmp_path / "run"
    assert main(new(ball, run, 8)) == 0
    old = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    assert steps(run) == [4, 8]
    size = len(old[checkpoint.path_of(run / "checkpoints", 8)]) - 1000
    longer = ["train", "--resume", str(run), "--iterations", "20", "--schedule-iterations", "20"]
    done = without_room(size, *longer)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    for step in (12, 16):
        warning = f"gsopt: warning: the checkpoint of iteration {step} is not written (File too large)"
        assert sum(line.startswith(warning) for line in lines) == 1, done.stderr
    assert lines[-1].startswith(
        f"gsopt: error: {run}: iteration 20 cannot be saved (File too large); make room"
    )
    assert lines[-1].endswith("step_00000008.pt")
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == old
    assert main(["train", "--resume", str(run)]) == 0
    assert steps(run) == [12, 16, 20]
    assert checkpoint.load(checkpoint.latest(run / "checkpoints"))["step"] == 20


def test_without_room_from_the_start_a_run_begins_again(ball, tmp_path):
    """Not even the first checkpoint is written; resumed with room, it is an undisturbed run."""
    assert main(new(ball, tmp_path / "straight", 12)) == 0
    run = tmp_path / "run"
    done = without_room(20_000, *new(ball, run, 12))
    assert done.returncode == 2, done.stderr
    assert "iteration 12 cannot be saved" in done.stderr
    assert steps(run) == []
    assert main(["train", "--resume", str(run)]) == 0
    assert resuming.run_differences(tmp_path / "straight", run) == []


@pytest.fixture(scope="module")
def straight(ball, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight") / "run"
    assert main(new(ball, run, 250)) == 0
    return run


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_that_then_goes_on_to_the_same_bits(ball, straight, tmp_path, name):
    run = tmp_path / "run"
    program = [sys.executable, "-m", "gsopt", *new(ball, run, 250)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not steps(run) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    last = steps(run)[-1]
    assert err == (
        f"gsopt: interrupted: {name} after {last} iterations, all saved; "
        f"go on with: gsopt train --resume {run}\n"
    )
    assert (run / "point_cloud" / f"iteration_{last}" / "point_cloud.ply").is_file()
    assert main(["train", "--resume", str(run)]) == 0
    assert resuming.run_differences(straight, run) == []


def test_an_allocation_that_fails_saves_and_can_be_gone_on_from(ball, tmp_path, monkeypatch, capsys):
    """torch's own error, at step 6 of a run: what is done by then is saved, and told in one line."""
    assert main(new(ball, tmp_path / "straight", 12)) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        backward = Trainer._backward

        def hungry(trainer, *of_view):
            if trainer.step == 6:
                torch.empty(1 << 50, dtype=torch.uint8)
            return backward(trainer, *of_view)

        patch.setattr(Trainer, "_backward", hungry)
        capsys.readouterr()
        assert main(new(ball, run, 12)) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "gsopt: error: iteration 5: out of memory with 60 Gaussians; saved after iteration 5"
    )
    assert error.count("\n") == 1
    assert main(["train", "--resume", str(run)]) == 0
    assert resuming.run_differences(tmp_path / "straight", run) == []


def test_an_output_that_cannot_be_made_is_told_before_the_first_step(ball, capsys):
    assert main(new(ball, Path("/proc/gsopt"), 5)) == 2
    assert capsys.readouterr().err.startswith("gsopt: error: --output /proc/gsopt: cannot make this folder (")


def test_a_run_on_a_disk_that_is_read_only_now_is_told_in_one_line(ball, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert main(new(ball, run, 4)) == 0
    opened = io.open

    def read_only(file, mode="r", *args, **kwargs):
        if mode[0] in "wax" and str(file).startswith(str(run)):
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", read_only)
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--iterations", "8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gsopt: error: {run}/config.json.part: Read-only file system; check the path")
    assert error.count("\n") == 1
    assert steps(run) == [4]


def test_a_photo_that_cannot_be_read_is_told_before_the_first_step(tmp_path, capsys):
    """All photos are read at the start, none in the middle of a run: there it may even be gone."""
    ball = scenes.write_nerf_synthetic(tmp_path / "ball", points=60)
    trainer = Trainer(
        TrainConfig(scene=ball, output=tmp_path / "run", iterations=8, device="cpu", quiet=True)
    )
    photos = sorted(ball.rglob("*.png"))
    for photo in photos:
        photo.write_bytes(b"no picture")
    assert trainer.train()["iterations"] == 8
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "run"), "--iterations", "10"]) == 2
    assert any(photo.name in capsys.readouterr().err for photo in photos)
    assert steps(tmp_path / "run") == [7, 8]
