"""What a sweep makes of known metrics: means, tables, curves, a picture, events for TensorBoard."""

import csv
import io
import statistics

import pytest
import sweeping
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from gsopt.sweep import hparams, plot, table
from gsopt.sweep.progress import SweepProgress
from gsopt.sweep.results import DONE, FAILED, WAITING, Mean, Result, difference, mean

PSNR = {"none": (30.0, 31.0), "xyz": (28.0, 28.5)}  # seeds 0 and 1


@pytest.fixture
def results(tmp_path):
    return [
        sweeping.finished(run, PSNR[run.configuration.name][run.seed], seconds=4.0 + run.seed)
        for run in sweeping.runs(tmp_path)
    ]


@pytest.fixture
def cells(results):
    return [result.run.configuration for result in results[:2]]


def test_a_result_is_what_metrics_json_says(results):
    assert (results[0].status, results[0].split) == (DONE, "test")
    assert results[0].values == {
        **{"psnr": 30.0, "ssim": 0.75, "l1": 1 / 30, "gaussians": 3000},
        **{"train_seconds": 4.0, "total_seconds": 5.0},
        **{"step_ms": 40.0, "last_step_ms": 60.0},  # 4 s of 100 steps; 3 s of the last 50
    }


def test_one_test_says_nothing_about_the_last_steps(tmp_path):
    (run,) = sweeping.runs(tmp_path, ["none"], seeds=[0])
    history = sweeping.metrics(30.0)["history"][1:]
    result = sweeping.finished(run, 30.0, history=history)
    assert result.values["last_step_ms"] is None


def test_without_test_views_it_is_about_training_views(tmp_path):
    (run,) = sweeping.runs(tmp_path, ["none"], seeds=[0])
    result = sweeping.finished(run, 30.0, split="train")
    assert (result.split, result.values["psnr"]) == ("train", 30.0)
    text = table.markdown([result], [run.configuration], run.configuration, {})
    assert "of the train views" in text
    assert "Differences" not in text  # to what?


@pytest.mark.parametrize(
    ("values", "average", "spread"),
    [
        ([], None, None),
        ([None], None, None),
        ([5.0], 5.0, None),
        ([1.0, 3.0], 2.0, 2**0.5),
        ([1.0, 3.0, None, float("inf")], 2.0, 2**0.5),
    ],
)
def test_mean_and_sample_standard_deviation(values, average, spread):
    assert Mean.of(values) == Mean(average, pytest.approx(spread) if spread else None)


def test_differences_are_seed_by_seed(results, cells):
    none, xyz = cells
    assert mean(results, none, "psnr") == Mean(30.5, statistics.stdev(PSNR["none"]))
    assert difference(results, xyz, none, "psnr") == Mean(-2.25, statistics.stdev([-2.0, -2.5]))
    assert difference(results[:3], xyz, none, "psnr") == Mean(-2.0, None)  # seed 1 of xyz is not there


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (Mean(None, None), 2, "", "-"),
        (Mean(31.247, None), 2, "", "31.25"),
        (Mean(31.247, 0.066), 2, "", "31.25 ± 0.07"),
        (Mean(0.9, 0.0), 4, "", "0.9000 ± 0.0000"),
        (Mean(123456.4, None), 0, "", "123,456"),
        (Mean(0.123456, None), 5, "+", "+0.12346"),
        (Mean(-0.001, None), 2, "+", "+0.00"),
    ],
)
def test_a_number_of_the_table(value, digits, sign, text):
    assert table.shown(value, digits, sign) == text


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table(results, cells, tmp_path):
    text = table.markdown(results, cells, cells[0], {"scene": "ball"}, tmp_path / "sweep.png")
    header, _, none, xyz, again, _, zero, less = rows_of(text)
    assert header[:5] == ["configuration", "runs", "PSNR, dB", "SSIM", "L1"]
    spread = statistics.stdev([1 / 30, 1 / 31])
    assert none == [
        *("none", "2", "30.50 ± 0.71", "0.7625 ± 0.0177", f"{(1 / 30 + 1 / 31) / 2:.5f} ± {spread:.5f}"),
        *("3,050 ± 71", "4.5 ± 0.7", "5.5 ± 0.7", "45.00 ± 7.07", "67.50 ± 10.61"),
    ]
    assert xyz[:3] == ["xyz", "2", "28.25 ± 0.35"]
    assert again == header[:1] + header[2:]
    assert zero == ["none", *[""] * 8]
    assert less[:3] == ["xyz", "-2.25 ± 0.35", "-0.0563 ± 0.0088"]
    assert less[5] == "+0.0 ± 0.0"
    for part in ("- scene: ball", "sample standard deviation, of the test views", "](sweep.png)"):
        assert part in text


def test_runs_that_are_not_there_are_told(results, cells):
    states = [results[0], Result(results[1].run, FAILED, "xyz | is\nnot finite"), results[2]]
    states.append(Result(results[3].run, WAITING))
    text = table.markdown(states, cells, cells[0], {})
    xyz = rows_of(text)[3]
    assert xyz == ["xyz", "0 of 2 (1 failed, 1 waiting)", *["-"] * 8]
    assert f"- xyz, seed 0: xyz \\| is not finite ({results[1].run.log})" in text
    rows = list(csv.DictReader(io.StringIO(table.csv_text(states))))
    assert [row["status"] for row in rows] == ["done", "failed", "done", "waiting"]
    assert (rows[1]["psnr"], rows[1]["message"]) == ("", "xyz | is\nnot finite")


def test_the_csv_has_every_digit_and_a_column_for_each_axis(tmp_path):
    runs = sweeping.runs(tmp_path, vary=["optimizer=adam,sgd"], seeds=[3])
    results = [sweeping.finished(run, 30 + 1 / (3 + index)) for index, run in enumerate(runs)]
    rows = list(csv.DictReader(io.StringIO(table.csv_text(results))))
    assert [(row["freeze"], row["optimizer"]) for row in rows] == [
        (frozen, name) for frozen in ("none", "xyz") for name in ("adam", "sgd")
    ]
    assert [float(row["psnr"]) for row in rows] == [result.values["psnr"] for result in results]
    assert {row["seed"] for row in rows} == {"3"}
    assert {row["steps"] for row in rows} == {"100"}
    assert rows[2]["folder"] == str(runs[2].folder.path)


def test_a_curve_is_the_mean_over_seeds(results, cells):
    spread = statistics.stdev(PSNR["none"])
    assert plot.curve(results, cells[0]) == [
        (50, 1.125, Mean(25.5, spread)),
        (100, 4.5, Mean(30.5, spread)),
    ]
    assert plot.curve(results[1:2], cells[0]) == []


def test_a_curve_has_the_tests_that_all_seeds_have(results, cells):
    lost = Result(**vars(results[2]) | {"history": results[2].history[1:]})
    assert [point[0] for point in plot.curve([results[0], lost], cells[0])] == [100]


def test_the_picture(results, cells, tmp_path):
    plot.draw([*results[:3], Result(results[3].run, WAITING)], cells, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == tuple(round(inches * plot.DPI) for inches in plot.SIZE)
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colors  # a line of each configuration


def hparams_of(folder):
    """What TensorBoard reads of a run: its scalars, and the messages of the HParams tab."""
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.PluginTagToContent("hparams")
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    start = metadata.parse_session_start_info_plugin_data(content["_hparams_/session_start_info"])
    return scalars, metadata.parse_experiment_plugin_data(content["_hparams_/experiment"]), start


def test_tensorboard_reads_the_hparams(tmp_path):
    vary = ["groups.xyz.lr=1e-4,2e-4", "antialiased=true"]
    runs = sweeping.runs(tmp_path, vary=vary, seeds=[0, 7])
    results = [sweeping.finished(run, 30.0 + index) for index, run in enumerate(runs[:-1])]
    results.append(Result(runs[-1], FAILED))
    for _ in range(2):  # a sweep that goes on writes them again
        hparams.write_hparams(results)
    scalars, experiment, start = hparams_of(runs[6].folder.path)
    chosen = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert chosen == {"freeze": "xyz", "groups.xyz.lr": 1e-4, "antialiased": "true", "seed": 7.0}
    assert scalars.keys() == {f"hparam/{name}" for name in table.MEASURES}
    for name in table.MEASURES:
        (event,) = scalars[f"hparam/{name}"]
        assert (event.step, event.value) == (100, pytest.approx(results[6].values[name]))
    domains = {info.name: list(info.domain_discrete.values) for info in experiment.hparam_infos}
    assert [value.string_value for value in domains["freeze"]] == ["none", "xyz"]
    assert [value.number_value for value in domains["groups.xyz.lr"]] == [1e-4, 2e-4]
    assert {info.name.tag for info in experiment.metric_infos} == scalars.keys()
    assert not list(runs[-1].folder.path.glob("events.*"))  # it failed


def test_a_line_of_text_after_each_run(capsys):
    progress = SweepProgress(3, 1, 2)
    progress.show(["none, seed 0: iteration 10 of 20"])
    progress.advance("none, seed 0: PSNR 30.00 dB")
    progress.close()
    assert capsys.readouterr() == ("[2/3] none, seed 0: PSNR 30.00 dB\n", "")


def test_the_display_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    progress = SweepProgress(3, 1, 2)
    progress.show(["none, seed 0: iteration 10 of 20", "xyz, seed 0: starts"])
    progress.advance("none, seed 0: PSNR 30.00 dB")
    progress.close()
    for part in ("1/3", "none, seed 0: iteration 10 of 20", "xyz, seed 0: starts", "[2/3] none", "2/3"):
        assert part in terminal.getvalue()
