"""`gsopt bench --strategies`: a table of trainings, its cost, and how it goes on after an interruption."""

import json
from dataclasses import replace

import pytest
import scenes

from gsopt.bench import refinement
from gsopt.commands import main
from gsopt.commands.bench import BenchConfig, read_trainings, scene_settings
from gsopt.settings import to_json

pytestmark = pytest.mark.usefixtures("small_probes")
BUDGET = "strategy=budget,max-gaussians=70"


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("bench") / "ball", points=60)


def bench(*words) -> int:
    quick = ("--strategies", "--device", "cpu", "--rounds", "1", "--steps", "1")
    return main(["bench", *map(str, words), *quick])


def test_a_row_for_every_strategy(ball, tmp_path, capsys):
    path = tmp_path / "a.json"
    assert bench("--scene", ball, "--iterations", 12, "--json", path) == 0
    found = json.loads(path.read_text())["strategies"]
    assert [row["training"] for row in found] == [
        f"strategy={name}" for name in ("default", "mcmc", "budget", "none")
    ]
    for row in found:
        spent = sum(row[part] for part in refinement.PARTS)
        assert 0 < spent < row["steps"]
        assert row["share"] == pytest.approx(spent / row["steps"])
        assert row["gaussians"] == row["most"] == 60
        assert row["counts"] == [[0, 60]]
        assert row["peak_memory_bytes"] > 1e8
        assert row["psnr"] > 5
    out = capsys.readouterr().out
    assert "trainings, means over seeds 0" in out
    assert "  strategy=budget: 0: 60" in out


@pytest.fixture
def counted(monkeypatch):
    """Trainings that are not done, but counted; the fourth is interrupted."""
    done = []

    def pretend(training):
        done.append(f"{training.name} {training.config.seed}")
        if len(done) == 4:
            raise KeyboardInterrupt
        row = dict.fromkeys(("steps", "observe", "refine"), 0.1)
        row |= {"seconds": 60.0, "share": 0.005, "psnr": 30.0 + training.config.seed, "ssim": None}
        row |= {"gaussians": 90, "most": 100, "counts": [[0, 60], [5, 100], [7, 90]]}
        row |= {"peak_memory_bytes": 10**9, "settings": to_json(training.config)}
        return {"training": training.name, "seed": training.config.seed, **row}

    monkeypatch.setattr(refinement, "_in_process", pretend)
    return done


def test_an_interrupted_table_goes_on(ball, tmp_path, counted, capsys):
    path = tmp_path / "results.json"
    words = ("--scene", ball, "--seeds", 0, 2, "--results", path, "--trainings", "strategy=none", BUDGET)
    assert bench(*words) == 130
    error = capsys.readouterr().err
    assert f"3 of 4 trainings done; the results of 3 are in {path}: the same command goes on" in error
    assert bench(*words) == 0
    assert counted == ["strategy=none 0", f"{BUDGET} 0", "strategy=none 2", f"{BUDGET} 2", f"{BUDGET} 2"]
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("  strategy=none  "))
    assert row.split() == [
        "strategy=none",
        "31.00",
        "dB",
        "-",
        "90",
        "100",
        "1.00",
        "0.00",
        "1,000",
        "0.50",
        "%",
    ]
    assert "  strategy=none: 0: 60, 5: 100, 7: 90" in out
    assert bench(*words, "--iterations", 3_000) == 0  # other settings: all anew
    assert len(counted) == 9


def test_without_a_file_nothing_is_kept(ball, counted, capsys):
    assert bench("--scene", ball) == 130
    assert "3 of 4 trainings done; nothing of them is kept; with --results FILE" in capsys.readouterr().err


def test_what_trainings_are(ball):
    base = scene_settings(BenchConfig(scene=ball, iterations=700), "cpu", 1)
    texts = ["strategy=mcmc,mcmc.growth=1.1", "antialiased=true,iterations=50"]
    trainings = read_trainings(texts, (4, 5), base)
    assert [(t.name, t.config.seed) for t in trainings] == [(text, seed) for seed in (4, 5) for text in texts]
    mcmc = replace(base.mcmc, growth=1.1)
    assert trainings[0].config == replace(base, seed=4, strategy="mcmc", mcmc=mcmc)
    assert trainings[3].config == replace(base, seed=5, antialiased=True, iterations=50)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trainings", "budget"), "--trainings budget: expected flags of gsopt train with their values"),
        (("--trainings", "strategy=none,"), "--trainings strategy=none,: expected flags"),
        (("--trainings", "strategy=best"), "--trainings strategy=best: "),
        (("--trainings", "iterations=0"), "--trainings iterations=0: --iterations 0: expected 1 or more"),
        (("--results", "old.json"), "--results old.json: expected results of gsopt bench --strategies"),
        (("--results", "no/such.json"), "--results no/such.json: no folder no"),
        (("--trainings", "max-gaussians=5"), "--strategies: max-gaussians=5 failed with exit code"),
    ],
)
def test_refusals(ball, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("[]")
    assert bench("--scene", ball, *words) == 2
    out, error = capsys.readouterr()
    assert (out == "") == ("failed" not in message)  # before anything is measured
    assert error.startswith(f"gsopt: error: {message}")
    assert error.count("\n") == 1
