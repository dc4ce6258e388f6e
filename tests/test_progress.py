"""What a run prints: lines for a person, one line with --quiet, objects with --log-json."""

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import scenes

from gsopt.commands import main
from gsopt.log_json import EVENTS, VERSION, tell
from gsopt.progress import Progress, clock_text

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--iterations",
    "60",
    "--device",
    "cpu",
    "--strategy",
    "default",
    "--densify.refine-every",
    "20",
    "--densify.grow-grad2d",
    "1e-6",
)
EVERY = (
    "--test-iterations",
    "30",
    "--save-iterations",
    "40",
    "--checkpoint-every",
    "50",
    "--log-every",
    "20",
)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("progress") / "ball", points=60)


def objects(text: str) -> list[dict]:
    """Every line of `text`, each one whole object with the fields of its kind in their order."""
    found = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    for each in found:
        assert tuple(each) == ("event", *EVENTS[each["event"]])
    return found


def train(*words) -> int:
    return main(["train", *map(str, words)])


def test_json_lines_of_a_run(ball, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--scene", ball, "--output", run, *FLAGS, *EVERY, "--log-json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = objects(out)
    assert (found[0]["event"], found[0]["version"], found[-1]["event"]) == ("start", VERSION, "end")
    by_kind = {kind: [each for each in found if each["event"] == kind] for kind in EVENTS}
    start, end = found[0], found[-1]
    assert (start["run"], start["train_views"], start["test_views"]) == (str(run), 6, 2)
    assert (start["width"], start["height"], start["step"], start["iterations"]) == (24, 24, 0, 60)
    assert [each["step"] for each in by_kind["progress"]] == [20, 40, 60]
    assert all(each["eta_seconds"] >= 0 for each in by_kind["progress"])
    assert [each["step"] for each in by_kind["refine"]] == [20]
    assert by_kind["refine"][0]["cloned"] + by_kind["refine"][0]["split"] > 0
    assert [each["step"] for each in by_kind["eval"]] == [30, 60]
    assert [each["step"] for each in by_kind["model"]] == [40, 60]
    assert [each["step"] for each in by_kind["checkpoint"]] == [50, 60]
    assert all(Path(each["path"]).is_file() for each in (*by_kind["model"], *by_kind["checkpoint"]))
    metrics = json.loads((run / "metrics.json").read_text())
    assert (end["status"], end["message"], end["run"], end["step"]) == ("done", "", str(run), 60)
    assert {name: end[name] for name in ("gaussians", "test", "train", "seconds")} == {
        name: metrics[name] for name in ("gaussians", "test", "train", "seconds")
    }
    assert by_kind["eval"][-1]["test"] == metrics["test"]

    assert train("--resume", run) == 0  # what is told is a matter of the session
    assert "is finished: 60 iterations" in capsys.readouterr().out
    assert train("--resume", run, "--iterations", "70", "--log-json") == 0
    found = objects(capsys.readouterr().out)
    assert (found[0]["step"], found[-1]["step"], found[-1]["status"]) == (60, 70, "done")
    assert train("--resume", run, "--log-json") == 0
    (end,) = objects(capsys.readouterr().out)
    assert (end["status"], end["step"]) == ("done", 70)
    assert "finished: 70 iterations" in end["message"]


def test_a_run_that_cannot_begin_ends_with_an_object(tmp_path, capsys):
    assert train("--scene", tmp_path / "none", "--log-json") == 2
    out, err = capsys.readouterr()
    (end,) = objects(out)
    assert (end["status"], end["step"]) == ("failed", None)
    assert err == f"gsopt: error: {end['message']}\n"


def test_an_interrupted_run_ends_with_an_object(ball, tmp_path):
    words = ["train", "--scene", ball, "--output", tmp_path / "run", "--iterations", "100000", "--log-json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gsopt", *map(str, words), "--device", "cpu", "--strategy", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    lines = [process.stdout.readline(), process.stdout.readline()]  # start and the first progress
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    *_, end = objects("".join([*lines, out]))
    assert process.returncode == 130
    assert end["status"] == "interrupted"
    assert err == f"gsopt: interrupted: {end['message']}\n"


def test_quiet_is_one_line(ball, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--scene", ball, "--output", run, *FLAGS, "--quiet") == 0
    out, err = capsys.readouterr()
    metrics = json.loads((run / "metrics.json").read_text())
    assert err == ""
    assert re.fullmatch(
        re.escape(f"{run}: 60 iterations, test PSNR {metrics['test']['psnr']:.2f} dB, SSIM ")
        + rf"0\.\d{{4}}, {metrics['gaussians']} Gaussians, \d+\.\d seconds\n",
        out,
    )


def test_lines_for_a_person(ball, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--scene", ball, "--output", run, *FLAGS) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("iteration ") and " of 60 " in line]
    assert len(told) == 6  # one each tenth
    assert all(re.search(r"  loss 0\.\d+  PSNR \S+  \d+ Gaussians  \d+:\d\d left$", line) for line in told)
    end = lines[lines.index(told[-1]) + 1 :]
    words = " ".join(" ".join(end).split())
    for word in ("quality PSNR SSIM L1", " dB", "time seconds", "ms a step", "total", "tensorboard --logdir"):
        assert word in words
    for stage in ("load", "train", "evaluate", "save"):
        assert any(line.startswith(stage) for line in end), stage
    for name, path in (("model", run / "point_cloud"), ("checkpoint", run / "checkpoints"), ("metrics", run)):
        (line,) = [line for line in end if line.startswith(name)]
        assert str(path) in line
        assert re.search(r" \d+(\.\d)? (B|kB|MB)$", line)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--quiet", "--log-json"], "--quiet: one line of text is no JSON object"),
        (["--log-every", "25"], "--log-every 25: expected a multiple of 10"),
        (["--log-every", "0"], "--log-every 0: expected a multiple of 10"),
    ],
)
def test_flags_that_cannot_be(ball, capsys, flags, complaint):
    assert train("--scene", ball, *flags) == 2
    assert complaint in capsys.readouterr().err


def test_on_a_terminal_it_is_one_line():
    """Under a pseudo-terminal: iterations and the time left, written again and again in one line."""
    program = (
        "from gsopt import progress; from gsopt.eta import Ahead, Eta; import time\n"
        "progress.ETA_EVERY = 0\n"
        "eta = Eta(Ahead(40, lambda step: 1000.0, lambda now, count, step, growth: count))\n"
        "line = progress.Progress(0, 40, eta=eta)\n"
        "for step in range(1, 41):\n"
        "    time.sleep(0.02); line.advance()\n"
        "    if step % 10 == 0: line.show(0.5, 20.0, 1234, 60_000.0, 1.0)\n"
        "line.close()"
    )
    main_end, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=side, cwd=ROOT)
    os.close(side)
    text, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            text += os.read(main_end, 4096)
        except OSError:  # all who wrote have ended
            break
    os.close(main_end)
    assert process.wait(timeout=10) == 0
    shown = text.decode()
    assert shown.count("\n") == 1
    assert "20/40" in shown
    assert "20:00 left  0.0 it/s  loss 0.5000  PSNR 20.00  1,234 Gaussians" in shown.replace("\r", "")


def test_the_psnr_shown_is_a_running_mean(capsys):
    line = Progress(0, 20, log_every=10)
    for psnr in (20.0, 30.0):
        for _ in range(10):
            line.advance()
        line.show(0.5, psnr, 7, 2.0, 1.0)
    line.close()
    first, second = objects(capsys.readouterr().out)
    assert (first["psnr"], second["psnr"]) == (20.0, pytest.approx(21.0))
    assert first["eta_seconds"] is None


def test_numbers_that_are_not_finite_are_null(capsys):
    tell("eval", step=1, gaussians=2, seconds=0.5, test={"psnr": float("inf")}, train={"psnr": float("nan")})
    (found,) = objects(capsys.readouterr().out)
    assert (found["test"], found["train"]) == ({"psnr": None}, {"psnr": None})
    with pytest.raises(ValueError, match="model: expected the fields"):
        tell("model", step=1)


def test_the_document_has_every_field():
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for event, fields in EVENTS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{event}` |")]
        assert re.findall(r"`([a-z_0-9]+)`", row.split("|")[3]) == list(fields), event


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text
