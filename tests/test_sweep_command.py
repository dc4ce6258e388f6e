"""`gsopt freeze-sweep` as a user runs it: a grid of real runs, interrupted, continued, with failures."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import scenes
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.progress import Progress
from gsopt.recorder import Recorder
from gsopt.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
REST = ("--", "--device", "cpu", "--strategy", "none")


def sweep(*words) -> int:
    return main(["freeze-sweep", *map(str, words), *REST])


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return {(row["configuration"], row["seed"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("sweep") / "ball", points=60)


@pytest.fixture(scope="module")
def flags(ball, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    grid = ("--freeze", "none", "xyz+scaling", "exclude:opacity", "--seeds", 4, "--tests", 3)
    return ["--scene", ball, *grid, "--iterations", 12, "--output", folder]


@pytest.fixture(scope="module")
def interrupted(flags):
    """The folder of a sweep that was ended by Ctrl-C after its first run; what that printed."""
    command = [sys.executable, ROOT / "scripts" / "freeze_sweep.py", *flags, *REST]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = flags[-1] / "runs" / "none" / "seed-4" / "metrics.json"
    deadline = time.monotonic() + 60
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, {key: row["status"] for key, row in rows_of(flags[-1]).items()}


def test_an_interrupted_sweep_has_saved_everything(interrupted, flags):
    code, out, err, states = interrupted
    assert code == 130
    assert "Traceback" not in out + err
    assert re.search(r"gsopt: interrupted: SIGINT after \d of 3 runs, all saved; go on with: gsopt", err)
    assert f"--output {flags[-1]} -- --device cpu --strategy none" in err
    assert states["exclude:opacity", "4"] == "waiting"
    assert set(states.values()) <= {"done", "waiting"}


@pytest.fixture(scope="module")
def done(interrupted, flags):
    """The same sweep gone on with, after its last run has got half way by itself; the first run's metrics."""
    folder = flags[-1]
    half = folder / "runs" / "exclude-opacity" / "seed-4"
    first = (folder / "runs" / "none" / "seed-4" / "metrics.json").stat().st_mtime_ns
    common = {"scene": flags[1], "device": "cpu", "strategy": "none", "iterations": 12, "seed": 4}
    config = TrainConfig(**common, exclude=["opacity"], threads=1, test_iterations=[4, 8, 12], quiet=True)
    trainer = Trainer(replace(config, output=half))
    recorder = Recorder(trainer)
    recorder.begin()
    progress = Progress(0, 12, quiet=True)
    with trainer.clock("train"):
        while trainer.step < 6:
            recorder.after(trainer.train_step(), progress)
    recorder.save()
    recorder.close()
    assert sweep(*flags[:-1], folder, "--jobs", 2) == 0
    whole = Trainer(replace(config, output=folder.parent / "whole")).train()
    return folder, first, whole


def test_it_goes_on_where_it_was(done):
    folder, first, whole = done
    assert (folder / "runs" / "none" / "seed-4" / "metrics.json").stat().st_mtime_ns == first
    half = folder / "runs" / "exclude-opacity" / "seed-4"
    assert ", from iteration 6" in (half / "train.log").read_text()
    metrics = json.loads((half / "metrics.json").read_text())
    assert metrics["test"] == whole["test"]  # the bits of a run by the same flags, undisturbed
    assert [test["iteration"] for test in metrics["history"]] == [4, 8, 12]
    assert [test["psnr"] for test in metrics["history"]] == [test["psnr"] for test in whole["history"]]


def test_what_a_sweep_leaves(done):
    folder = done[0]
    rows = rows_of(folder)
    assert list(rows) == [("none", "4"), ("xyz+scaling", "4"), ("exclude:opacity", "4")]
    for row in rows.values():
        metrics = json.loads((Path(row["folder"]) / "metrics.json").read_text())
        assert row["status"] == "done"
        assert float(row["psnr"]) == metrics["test"]["psnr"]
        assert float(row["train_seconds"]) == metrics["seconds"]["train"]
        events = EventAccumulator(row["folder"])
        events.Reload()
        assert events.Scalars("hparam/psnr")[0].value == pytest.approx(metrics["test"]["psnr"])
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    configs = [json.loads((Path(row["folder"]) / "config.json").read_text()) for row in rows.values()]
    assert [config["freeze"] for config in configs] == [[], ["xyz", "scaling"], []]
    assert [config["exclude"] for config in configs] == [[], [], ["opacity"]]
    text = (folder / "sweep.md").read_text()
    for part in ("xyz+scaling", "Differences to none", "12 iterations", "![PSNR", "--strategy none"):
        assert part in text
    with Image.open(folder / "sweep.png") as picture:
        assert picture.format == "PNG"


def test_a_finished_sweep_runs_nothing(done, flags, capsys):
    begin = time.time()
    assert sweep(*flags) == 0
    assert "3 runs, 3 done" in capsys.readouterr().out
    assert all(log.stat().st_mtime < begin for log in done[0].rglob("train.log"))


def test_other_settings_in_the_same_folder_are_refused(done, flags, capsys):
    assert sweep(*flags, "--iterations", 13) == 2
    assert "has --iterations 12, and the sweep asks for 13; give" in capsys.readouterr().err


def test_failed_runs_are_named_and_the_others_go_on(ball, tmp_path, capsys):
    """Diverged: found when it is to be saved. The sweep ends with 2, and tries it again when it goes on."""
    grid = ("--vary", "groups.scaling.lr=1e30,5e-3", "--seeds", 0, "--no-plot")
    words = ("--scene", ball, *grid, "--iterations", 6, "--jobs", 2, "--output", tmp_path / "a")
    assert sweep(*words) == 2
    out, err = capsys.readouterr()
    assert re.search(r"gsopt: error: 1 of 2 runs failed.*lr=1e30, seed 0: iteration \d+: \w+ is not", err)
    assert err.count("\n") == 1
    bad, good = rows_of(tmp_path / "a").values()
    assert (bad["status"], bad["psnr"], good["status"]) == ("failed", "", "done")
    assert "the training has diverged" in bad["message"]
    assert "0 of 1 (1 failed)" in out
    log = tmp_path / "a" / "runs" / "groups.scaling.lr=1e30" / "seed-0" / "train.log"
    assert str(log) in (tmp_path / "a" / "sweep.md").read_text()
    assert "not finite" in log.read_text()
    assert not (tmp_path / "a" / "sweep.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze", "none", "xzy"], "xzy: --freeze xzy: no attribute is called 'xzy'"),
        (["--vary", "nonsense=1,2"], "Unrecognized options: --nonsense"),
        (["--vary", "strategy=none,magic"], "'magic'"),
        (["--vary", "optimizer=adam,lbfgs"], "optimizer=lbfgs: --optimizer lbfgs: cannot train Gaussians"),
        (["--vary", "groups.xyz.schedule=cosinus"], '"cosinus" is not a schedule'),
        (["--freeze", "none", "--resolution", "9"], "flags of gsopt train go after --"),
        (["--freeze", "none", "--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["--freeze", "none", "--seeds", "1", "1"], "--seeds 1 1: expected one or more, each once"),
        (["--freeze", "none", "--baseline", "xyz"], "--baseline xyz: no such configuration"),
        (
            ["--freeze", "none", "--", "--seed", "3"],
            "--seed after --: the sweep says it to train; give --seeds",
        ),
        (["--freeze", "none", "--", "--exclude", "xyz"], "--exclude after --: it is varied"),
        (["--vary", "sh-degree=1", "--", "--sh-degree", "2"], "--sh-degree after --: it is varied"),
        (["--freeze", "none", "--scene", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(ball, tmp_path, capsys, words, message):
    words = ["freeze-sweep", "--scene", ball, "--iterations", 5, "--output", tmp_path / "a", *words]
    assert main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("gsopt: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_folder_of_something_else_is_refused(ball, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert sweep("--scene", ball, "--freeze", "none", "--output", tmp_path) == 2
    assert "there is something here already, and it is no sweep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_matplotlib_it_says_which_extra_before_anything_is_run(ball, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    assert sweep("--scene", ball, "--freeze", "none", "--output", tmp_path / "a") == 2
    err = capsys.readouterr().err
    assert 'pip install "gsopt[plots]"' in err
    assert "--no-plot" in err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_grid_of_the_readme_on_the_builtin_scene(builtin_scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--scene", builtin_scene, "--freeze", "none", "xyz", "scaling+rotation", "--seeds", 0, 1]
    assert main(["freeze-sweep", *map(str, [*words, "--iterations", 300, "--", "--resolution", 100])]) == 0
    (folder,) = (tmp_path / "output").iterdir()
    assert folder.name.startswith("scene-sweep-2")
    psnr = {key: float(row["psnr"]) for key, row in rows_of(folder).items()}
    assert len(psnr) == 6
    assert all(psnr["none", seed] > psnr["xyz", seed] for seed in ("0", "1"))
