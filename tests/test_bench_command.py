"""`gsopt bench` as a user runs it: a file that can be read back and compared with, refusals that help."""

import json

import pytest
import scenes
import torch

from gsopt import native
from gsopt.bench import report, studies
from gsopt.commands import main

pytestmark = pytest.mark.usefixtures("small_probes")
TINY = "300@40x24"
QUICK = ("--device", "cpu", "--rounds", "2", "--steps", "2")


def bench(*words) -> int:
    return main(["bench", *map(str, words), *QUICK])


def written(path, *words) -> dict:
    assert bench("--json", path, *words) == 0
    return json.loads(path.read_text())


def test_the_file_has_every_number_and_can_be_compared_with(tmp_path, capsys):
    path = tmp_path / "a.json"
    found = written(path, "--sizes", TINY, "200@16x16", "--threads", 1, 2, "--freeze-sets")
    assert (found["format"], found["version"]) == (report.FORMAT, report.VERSION)
    for key in ("cpu", "isa", "threads", "torch", "gsopt", "date", "cores", "kernel"):
        assert found["machine"][key], key
    assert found["machine"]["threads"] == 2
    assert [case["name"] for case in found["cases"]] == [TINY, "200@16x16"]
    for case in found["cases"]:
        assert [len(steps) for steps in case["rounds"]] == [2, 2]
        assert len(case["speeds"]) == 2
        assert all(speed["fma_flops_per_second"] > 0 for speed in case["speeds"])
        assert set(native.stage_seconds()) <= set(case["stage_seconds"])
        assert case["per_matmul"] > 0
        assert case["raster_of_peak"] > 0
    assert set(found["threads"]) == {"1", "2"}
    assert [row["frozen"] for row in found["freeze_sets"]] == [list(row[0]) for row in studies.FREEZE_SETS]
    assert report.read_report(path) == found
    capsys.readouterr()
    again = written(tmp_path / "b.json", "--sizes", TINY, "--threads", 1, "--compare", path)
    (ratio,) = again["compared"]["ratios"]
    then = found["cases"][0]
    assert ratio["median"] == pytest.approx(again["cases"][0]["median_seconds"] / then["median_seconds"])
    assert ratio["normalised"] == pytest.approx(again["cases"][0]["per_matmul"] / then["per_matmul"])
    out = capsys.readouterr().out
    for word in ("300 Gaussians, 40x24", "of peak", "now / then (a.json)", "step / matrix product", "glue"):
        assert word in out
    assert "device CPU, 2 threads -> CPU, 1 thread" in out


def test_what_tensorboard_costs(tmp_path, capsys):
    cost = written(tmp_path / "a.json", "--sizes", TINY, "--monitor")["monitor"]
    assert cost["share"] == pytest.approx(cost["writing"] / cost["without"] - 1)
    assert "writing TensorBoard events: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("bench") / "ball", points=60)


def test_a_scene_and_its_time_to_quality(ball, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--iterations", 12, "--test-every-steps", 5, "--time-to-quality", 1, 99)
    found = written(tmp_path / "a.json", "--scene", ball, *flags)
    (case,) = found["cases"]
    assert (case["name"], case["gaussians"], case["width"]) == ("scene ball", 60, 24)
    reached, never = found["time_to_quality"]["targets"]
    assert (reached["psnr"], reached["iteration"]) == (1.0, 5)
    assert reached["seconds"] > 0
    assert never == {"psnr": 99.0, "iteration": None, "seconds": None}
    history = found["time_to_quality"]["history"]
    assert [entry["iteration"] for entry in history] == [5, 10, 12]
    assert [entry["seconds"] for entry in history] == sorted(entry["seconds"] for entry in history)
    assert all(set(entry) >= {"psnr", "ssim", "gaussians"} for entry in history)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def report_with(**changes) -> str:
    case = {
        "name": "small",
        **{"gaussians": 1, "width": 2, "height": 3, "per_matmul": None},
        **{"median_seconds": 1.0, "least_seconds": 1.0, "stage_seconds": {"sh": 0.5}},
    }
    whole = {"format": report.FORMAT, "version": report.VERSION, "machine": {}, "cases": [case]}
    case |= changes.pop("case", {})
    return json.dumps(whole | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a report of gsopt bench, found other JSON"),
        (report_with(format="other"), "expected a report of gsopt bench, found other JSON"),
        (report_with(version=99), f"expected version {report.VERSION}, found 99"),
        (report_with(cases=3), "damaged report"),
        (report_with(machine=None), "damaged report"),
        (report_with(case={"median_seconds": 0.0}), "damaged report"),
        (report_with(case={"median_seconds": "1"}), "damaged report"),
        (report_with(case={"per_matmul": "1"}), "damaged report"),
        (report_with(case={"stage_seconds": None}), "damaged report"),
    ],
)
def test_what_cannot_be_compared_with_is_refused(tmp_path, capsys, text, message):
    path = tmp_path / "old.json"
    path.write_text(text)
    assert bench("--sizes", TINY, "--compare", path) == 2
    out, err = capsys.readouterr()
    assert out == ""  # before anything is measured
    assert message in err
    assert str(path) in err
    assert err.count("\n") == 1


def test_a_whole_report_is_read(tmp_path):
    (tmp_path / "old.json").write_text(report_with())
    old = report.read_report(tmp_path / "old.json")
    assert report.compare(old, old) == [
        {"name": "small", "median": 1.0, "least": 1.0, "normalised": None, "stages": {"sh": 1.0}}
    ]
    other = json.loads(report_with(case={"gaussians": 2}))
    assert report.compare(old, other) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "huge"], "--sizes huge: expected small, medium, large or GAUSSIANS@WIDTHxHEIGHT"),
        (["--sizes", "0@8x8"], "--sizes 0@8x8: expected"),
        (["--sizes", "10@8"], "--sizes 10@8: expected"),
        (["--sizes", TINY, "--threads", "0"], "--threads 0: expected 1 or more"),
        (["--sizes", TINY, "--test-every-steps", "0"], "--test-every-steps 0: expected 1 or more"),
        (["--sizes", TINY, "--time-to-quality", "20"], "--time-to-quality: is of a scene, found none"),
        (["--sizes", TINY, "--strategies"], "--strategies: is of a scene, found none; give --scene DIR"),
        (
            ["--sizes", TINY, "--trainings", "strategy=none"],
            "--trainings: is about the table of --strategies",
        ),
        (["--sizes", TINY, "--results", "a.json"], "--results: is about the table of --strategies"),
        (["--sizes", TINY, "--seeds", "1", "1"], "--seeds 1 1: expected one or more, each once"),
        (["--sizes", TINY, "--init", "a.ply"], "--init: is of a scene, found none"),
        (["--sizes", TINY, "--json", "no/such/folder.json"], "--json no/such/folder.json: no folder no/such"),
        (["--sizes", TINY, "--compare", "no.json"], "no.json: cannot be read"),
    ],
)
def test_refusals(words, message, capsys):
    assert bench(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gsopt: error: {message}")
    assert err.count("\n") == 1


def test_cuda_is_refused_in_one_line_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("gsopt: error: --device cuda: torch finds no CUDA device here;")


@pytest.mark.slow
def test_tables_of_the_kernel_at_a_real_size(tmp_path, capsys):
    flags = ("--isas", "--freeze-sets", "--threads", 1, 2)
    found = written(tmp_path / "a.json", "--sizes", "small", *flags)
    assert list(found["isas"]) == native.available_isas()
    rows = {tuple(row["frozen"]): row["median_seconds"] for row in found["freeze_sets"]}
    assert rows["xyz", "scaling", "rotation", "opacity"] < rows[()]
    out = capsys.readouterr().out
    for title in ("threads (30,000", "frozen attributes (30,000", "instruction sets (30,000"):
        assert title in out


@pytest.mark.slow
def test_growth_at_real_sizes(tmp_path):
    found = written(tmp_path / "a.json", "--sizes", TINY, "--growth")
    by_gaussians, by_pixels = found["growth_of_gaussians"], found["growth_of_pixels"]
    assert 0.3 < by_gaussians["exponents"]["step"] < 1.2
    assert by_pixels["exponents"]["loss"] == pytest.approx(1.0, abs=0.25)
    assert by_gaussians["bytes_each"] > 0
    assert by_pixels["bytes_each"] > 0
