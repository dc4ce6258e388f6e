"""The commands as a user runs them, on a ball of 24x24 pixels."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scenes
from PIL import Image

from gsopt.commands import COMMANDS, main
from gsopt.datasets import read_splat

ROOT = Path(__file__).resolve().parents[1]
CPU = ("--device", "cpu")
QUICK = (*CPU, "--quiet")


def gsopt(*words) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("commands") / "ball", points=60)


@pytest.fixture(scope="module")
def run(ball, tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "run"
    gsopt("train", "--scene", ball, "--output", folder, "--iterations", 30, *QUICK, "--strategy", "none")
    return folder


def test_train_says_what_it_does(ball, tmp_path, capsys):
    gsopt("train", "--scene", ball, "--output", tmp_path / "a", "--iterations", 5, *CPU)
    out = capsys.readouterr().out
    assert out.startswith("device    CPU, ")
    assert "(not CUDA: " in out.splitlines()[0]
    for word in (
        "6 training, 2 test views",
        "60 Gaussians",
        "640",
        "CPU",
        "PSNR",
        "SSIM",
        "seconds",
        str(tmp_path / "a"),
    ):
        assert word in out
    assert "--accumulate" not in out


def test_train_with_several_views_a_step(ball, tmp_path, capsys):
    flags = ["--iterations", 3, "--accumulate", 2, "--batch-size", 8, "--scale-rates"]
    gsopt("train", "--scene", ball, "--output", tmp_path / "a", *flags, *CPU)
    line = "step      of 16 views: --batch-size 8 x --accumulate 2, all rates x4.00 (--scale-rates)"
    assert line in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["iterations"] == 3


def test_train_says_what_is_frozen_when(ball, tmp_path, capsys):
    windows = ["xyz@0:2", "xyz@3:4", "opacity@4:", "rotation"]
    gsopt("train", "--scene", ball, "--output", tmp_path / "a", "--iterations", 5, "--freeze", *windows, *CPU)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen "))
    assert "xyz in iterations 1 to 2 and in iterations 4 to 4" in line
    assert "opacity from iteration 5 on; rotation throughout" in line


def test_a_run_never_loads_the_compiler_of_torch(ball, tmp_path):
    """It takes longer to load than all the rest."""
    flags = ["train", "--scene", str(ball), "--output", str(tmp_path / "a"), "--iterations", "20", *QUICK]
    program = (
        f"import sys; from gsopt.commands import main; main({flags}); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_train_writes_to_output_by_default(ball, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # also twice within a second
        gsopt("train", "--scene", ball, "--iterations", 2, *QUICK)
    folders = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert len(folders) == 2
    assert all(name.startswith("ball-2") for name in folders)


def test_a_finished_run_says_so(run, capsys):
    before = (run / "metrics.json").read_bytes()
    for flags in ([], ["--iterations", 20]):
        gsopt("train", "--resume", run, *flags)
        assert "finished: 30 iterations" in capsys.readouterr().out
    for flag, value in (("--scene", run), ("--output", run / "other"), ("--seed", 77)):
        assert main(["train", "--resume", str(run), flag, str(value)]) == 2
        assert str(value) in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before


def test_a_finished_run_whose_checkpoints_are_gone_does_not_begin_anew(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(copy), "--iterations", "40"]) == 2
    assert f"{copy}: no checkpoint to go on from" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_evaluating_an_older_model_does_not_unfinish_a_run(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text()) | {"iterations": 7}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    gsopt("train", "--resume", copy)
    assert "finished: 30 iterations" in capsys.readouterr().out


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("flags", "idle", "why"),
    [
        (["--max-gaussians", "90"], "--max-gaussians", "of --strategy none"),
        (
            ["--densify.absgrad", "--densify.refine-every", "9"],
            "--densify.refine-every, --densify.absgrad",
            "of --strategy none",
        ),
        (
            ["--mcmc.noise-lr", "0", "--budget.absgrad"],
            "--mcmc.noise-lr, --budget.absgrad",
            "of --strategy none",
        ),
        (["--scale-rates"], "--scale-rates", "a step has one view"),
        (["--scale-rates", "--accumulate", "2"], None, ""),
        ([], None, ""),
    ],
)
def test_settings_without_effect(run, capsys, flags, idle, why):
    gsopt("train", "--resume", run, *flags)
    err = capsys.readouterr().err
    assert err == (f"gsopt: warning: {idle}: without effect, because {why}\n" if idle else "")


def test_a_finished_run_goes_on_for_longer(ball, tmp_path, capsys):
    gsopt("train", "--scene", ball, "--output", tmp_path / "a", "--iterations", 5, *CPU)
    capsys.readouterr()
    gsopt("train", "--resume", tmp_path / "a", "--iterations", 8, "--freeze", "xyz")
    out = capsys.readouterr().out
    assert "--iterations: 8 (the run had 5)" in out
    assert "--freeze" in out
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["iterations"] == 8
    assert json.loads((tmp_path / "a" / "config.json").read_text())["freeze"] == ["xyz"]


def test_evaluate_finds_what_train_found(run, capsys):
    trained = json.loads((run / "metrics.json").read_text())
    gsopt("evaluate", run)
    measured = json.loads((run / "metrics.json").read_text())
    for split in ("test", "train"):
        assert measured[split] == pytest.approx(trained[split], rel=1e-4)
        assert measured["views"][split].keys() == trained["views"][split].keys()
    assert measured["iterations"] == 30
    assert measured["gaussians"] == trained["gaussians"]
    assert measured["seconds"]["train"] == trained["seconds"]["train"]
    with Image.open(run / "renders" / "comparison" / "test" / "r_0.png") as picture:
        assert picture.size == (3 * 24 + 2 * 4, 24)  # photo | render | error
    assert "PSNR" in capsys.readouterr().out


def test_another_measurement_leaves_that_of_the_run(ball, tmp_path):
    run = tmp_path / "run"
    flags = ("--save-iterations", 2, "--strategy", "none")
    gsopt("train", "--scene", ball, "--output", run, "--iterations", 5, *QUICK, *flags)
    before = json.loads((run / "metrics.json").read_text())
    gsopt("evaluate", run, "--iteration", 2)
    gsopt("evaluate", run, "--resolution", 12)
    assert json.loads((run / "metrics.json").read_text()) == before
    assert json.loads((run / "metrics_2.json").read_text())["iterations"] == 2
    assert json.loads((run / "metrics_changed.json").read_text())["changed"] == {"resolution": 12}
    assert (run / "renders" / "comparison_2" / "test" / "r_0.png").is_file()
    assert not (run / "renders" / "comparison").exists()
    gsopt("evaluate", run, "--iteration", 5, "--resolution", 640, "--scene", ball)  # all as it was
    after = json.loads((run / "metrics.json").read_text())
    assert after.keys() == before.keys()  # also peak_memory_bytes, which only training knows


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("content", ['{"views": ', "[]", '{"seconds": 5}'])
def test_evaluate_replaces_damaged_metrics(run, tmp_path, capsys, content):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "metrics.json").write_text(content)
    gsopt("evaluate", copy)
    err = capsys.readouterr().err
    assert err.startswith("gsopt: warning: ")
    assert "metrics.json" in err
    assert json.loads((copy / "metrics.json").read_text())["iterations"] == 30


def test_render_writes_the_test_views(run):
    gsopt("render", run)
    for index in range(2):
        with Image.open(run / "renders" / "test" / "test" / f"r_{index}.png") as picture:
            assert picture.size == (24, 24)
            assert min(picture.getpixel((0, 0))) > 220  # photos have alpha: white behind
            assert min(min(pixel) for pixel in picture.get_flattened_data()) < 220


def test_evaluate_and_render_a_ply(run, ball, tmp_path):
    ply = run / "point_cloud" / "iteration_30" / "point_cloud.ply"
    gsopt("evaluate", ply, "--scene", ball, "--output", tmp_path / "a", "--device", "cpu")
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert found["iterations"] is None
    assert found["gaussians"] == len(read_splat(ply)["xyz"])
    assert found["test"] == pytest.approx(json.loads((run / "metrics.json").read_text())["test"], rel=1e-4)
    gsopt(
        "render",
        ply,
        "--scene",
        ball,
        "--output",
        tmp_path / "b",
        "--background",
        "black",
        "--path",
        "train",
    )
    pictures = sorted((tmp_path / "b").rglob("*.png"))
    assert len(pictures) == 6
    with Image.open(pictures[0]) as picture:
        assert max(picture.getpixel((0, 0))) < 50


def test_help_and_version(capsys):
    gsopt("--help")
    out = capsys.readouterr().out
    assert all(name.replace("_", "-") in out for name in COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_script_is_the_command(name, tmp_path):
    """From anywhere, without being installed."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{name}.py", "--nonsense"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gsopt: error: ")
    assert "--nonsense" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("file", [*(f"scripts/{name}.py" for name in COMMANDS), "gsopt/__main__.py"])
def test_ctrl_c_while_it_is_loaded(file, monkeypatch, capsys):
    class Stop:
        def find_spec(self, name, *_):
            if name == "gsopt.commands":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "gsopt.commands")
    monkeypatch.setattr(sys, "meta_path", [Stop(), *sys.meta_path])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "gsopt: interrupted\n"


def test_ctrl_c_in_a_terminal(ball, tmp_path):
    """The whole program: exit code 130, everything saved, one line that says how to go on."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        ROOT / "scripts" / "train.py",
        "--scene",
        ball,
        "--output",
        run,
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(run.glob("events.out.tfevents.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.rstrip().splitlines()[-1]
    assert last.startswith("gsopt: interrupted: SIGINT after ")
    assert f"--resume {run}" in last
    assert "Traceback" not in err
    assert list((run / "checkpoints").glob("step_*.pt"))
    assert list(run.glob("point_cloud/iteration_*/point_cloud.ply"))
