"""`gsopt report`: one file that needs nothing else, of one run or several."""

import base64
import io
import json
import re
import shutil
from html import unescape
from xml.etree import ElementTree

import pytest
import scenes
import torch
from PIL import Image

from gsopt.commands import main
from gsopt.report import chart, seen, worst
from gsopt.report.data import read_run, told_apart

FLAGS = ("--iterations", "60", "--device", "cpu", "--quiet")
DENSIFY = ("--strategy", "default", "--densify.refine-every", "20")
GROW = ("--densify.grow-grad2d", "1e-6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene, and two runs on it, the first with a name that is none in HTML."""
    folder = tmp_path_factory.mktemp("report")
    scene = scenes.write_nerf_synthetic(folder / "ball", points=60)
    for name, flags in (
        ("a<b>&'c'", ("--freeze", "xyz@30:50", "--groups.opacity.lr", "0.01")),
        ("plain", ()),
    ):
        words = ["train", "--scene", scene, "--output", folder / name, *FLAGS, *DENSIFY, *GROW, *flags]
        assert main([*map(str, words)]) == 0
    return folder


def report(*words) -> int:
    return main(["report", *map(str, words)])


def read(file) -> str:
    """A report's text, after checks that hold for every one."""
    text = file.read_text(encoding="utf-8")
    assert file.stat().st_size < 5_000_000
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)  # nothing is loaded
    assert "@import" not in text
    assert "url(" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    for data in re.findall(r"<img src=\"data:image/jpeg;base64,([^\"]+)\"", text):
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    return text


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, as text."""
    found = []
    for row in re.findall(r"<tr>(.*?)</tr>", text):
        cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", row)
        found.append([re.sub("<.*?>", "", cell) for cell in cells])
    return found


def test_of_one_run(folder, capsys):
    run = folder / "a<b>&'c'"
    assert report(run) == 0
    assert capsys.readouterr().out.startswith(f"report    {run / 'report.html'} (")
    text = read(run / "report.html")
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"<b>{metrics['test']['psnr']:.2f}<small>dB</small></b>" in text
    assert "<h1>a&lt;b&gt;&amp;&#x27;c&#x27;</h1>" in text
    assert "a<b>" not in text
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    for title in ("Loss", "PSNR", "Gaussians", "Time of a step", "Learning rates", "Updates", "Refinement"):
        assert title in titles
    assert {"Opacity", "Size"} <= set(titles)
    assert text.count("<img ") == 2 * 3  # both test views: photo, render, error
    cells = rows(text)
    assert ["opacity", "0.01", "0.001", "constant@48 then cosine:0.1@12", "–", "–", "adam"] in cells
    (xyz,) = [row for row in cells if row[0] == "xyz"]
    assert (xyz[3], xyz[5]) == ("exp:0.01@60", "in iterations 31 to 50")
    assert float(xyz[1]) > 40 * float(xyz[2])
    assert ["groups.opacity.lr", "0.01", "–"] in cells
    assert ["densify.grow-grad2d", "1e-06", "0.0002"] in cells
    assert not [row for row in cells if row[0] == "densify.refine-stop-iter" and len(row) == 3]  # by default
    assert ["ssim-weight", "0.2"] in cells  # among all of them
    for stage in ("load", "train", "evaluate", "save"):
        assert f'title="{stage}: {metrics["seconds"][stage]:,.1f} s"' in text


def test_the_worst_views_come_first(folder, tmp_path):
    run = folder / "plain"
    metrics = json.loads((run / "metrics.json").read_text())["views"]["test"]
    order = sorted(metrics, key=lambda name: metrics[name]["psnr"])
    assert report(run, "--output", tmp_path / "all.html") == 0
    assert re.findall(r'<div class="head"><strong>(.*?)</strong>', read(tmp_path / "all.html")) == order
    assert report(run, "--views", 1, "--output", tmp_path / "new" / "one.html") == 0
    text = read(tmp_path / "new" / "one.html")
    assert re.findall(r'<div class="head"><strong>(.*?)</strong>', text) == order[:1]
    assert f"{metrics[order[0]]['psnr']:.2f} dB · {metrics[order[0]]['ssim']:.4f}" in text


def test_of_several_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report(folder / "plain", folder / "a<b>&'c'") == 0
    text = read(tmp_path / "report.html")
    cells = rows(text)
    assert ["groups.opacity.lr", "–", "0.01"] in cells
    assert ["freeze", "–", "xyz@30:50"] in cells
    assert not [row for row in cells if row[0] == "seed" and len(row) == 3 and row[1] != "0"]
    assert [row[0] for row in cells if len(row) == 8 and row[0] != "run"] == [
        "plain",
        "a&lt;b&gt;&amp;&#x27;c&#x27;",
    ]
    assert text.count("<img ") == 2 * (1 + 2 + 2)
    data = [json.loads(unescape(each)) for each in re.findall(r'data-chart="(.*?)"', text)]
    loss = data[0]
    assert [line["name"] for line in loss["lines"]] == ["plain", "a<b>&'c'"]
    assert loss["x"] == [0, 60]
    assert "Learning rate of opacity" in text


def test_a_run_that_is_not_finished(folder, tmp_path):
    run = shutil.copytree(folder / "plain", tmp_path / "run")
    (run / "metrics.json").unlink()
    assert report(run, "--views", 0) == 0
    text = read(run / "report.html")
    assert "Not finished: 60 of 60 iterations." in text
    assert "<img " not in text
    assert "Time by stage" not in text


def damaged(run, what):
    """The run with something missing; the words to give, and what is complained of."""
    if what == "no run":
        return [run.parent], f"{run.parent}: not the folder of a run"
    if what == "no events":
        for file in run.glob("events.*"):
            file.unlink()
        return [run], f"{run}: no TensorBoard events (events.out.tfevents.*) in this run"
    if what == "empty events":
        for file in run.glob("events.*"):
            file.write_bytes(b"")
        return [run], f"{run}: no train_loss_patches/total_loss in its events yet"
    if what == "no model":
        shutil.rmtree(run / "point_cloud")
        return [run], "no point_cloud/iteration_N/point_cloud.ply in this run yet"
    if what == "no scene":
        settings = json.loads((run / "config.json").read_text()) | {"scene": str(run / "gone")}
        (run / "config.json").write_text(json.dumps(settings))
        return [run], "--views 0"
    if what == "twice":
        return [run, run.parent / "x" / ".." / run.name], "RUN: found one run twice"
    if what == "none":
        return [], "RUN: expected the folder of a run, found none"
    return [run, "--views", "-1"], "--views -1: expected a number of views, 0 or more"


@pytest.mark.parametrize(
    "what", ["no run", "no events", "empty events", "no model", "no scene", "twice", "none", "views"]
)
def test_what_cannot_be_reported(folder, tmp_path, capsys, what):
    (tmp_path / "x").mkdir()
    words, complaint = damaged(shutil.copytree(folder / "plain", tmp_path / "run"), what)
    assert report(*words) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert len(err.splitlines()) == 1


def test_runs_of_one_name_are_told_apart(folder, tmp_path):
    (tmp_path / "x").mkdir()
    copy = shutil.copytree(folder / "plain", tmp_path / "x" / "plain")
    runs = told_apart([read_run(folder / "plain"), read_run(copy)])
    assert [run.name for run in runs] == [f"{folder.name}/plain", "x/plain"]


def test_rows_are_means_over_the_runs_that_have_a_view():
    photo = torch.full((8, 8, 3), 0.5)
    good, bad = seen(photo + 0.01, photo), seen(photo + 0.2, photo)
    found = worst([{"a": good, "b": bad}, {"b": bad, "c": good}], 2)
    assert [row.name for row in found] == ["b", "a"]
    assert found[1].seen == [good, None]
    assert good.psnr == pytest.approx(40.0, abs=1e-3)


AXES = {  # low, high, log -> ticks
    "units": (0, 10, False, [0, 2, 4, 6, 8, 10]),
    "thousands": (0, 3000, False, [0, 1000, 2000, 3000]),
    "decades": (1e-4, 1.0, True, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
    "within a decade": (0.02, 0.6, True, [0.02, 0.05, 0.1, 0.2, 0.5]),
    "hardly any": (0.9, 1.1, True, [0.9, 0.95, 1.0, 1.05, 1.1]),
    "one value": (5, 5, False, [5]),
}


@pytest.mark.parametrize("case", AXES)
def test_axes(case):
    low, high, log, ticks = AXES[case]
    axis = chart.Axis(low, high, 100, 300, log)
    assert axis.ticks() == pytest.approx(ticks)
    if low != high:
        assert (axis(low), axis(high)) == pytest.approx((100, 300))


def test_lines():
    points = [(step, 1.0 + (step == 777)) for step in range(5000)]
    thin = chart._thinned(points)
    assert len(thin) <= chart.MOST_POINTS + 2
    assert (777, 2.0) in thin
    assert thin[-1] == points[-1]
    assert [y for _, y in chart.smooth([(i, 3.0) for i in range(50)])] == pytest.approx([3.0] * 50)
    assert chart.line_chart("x", [chart.Line("a", [(1, 0.0), (2, float("nan"))])], log=True) == ""
    assert 'd="M' in chart.line_chart("x", [chart.Line("a", [(1, 0.0)])])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12_500, "12.5k"), (3_400_000, "3.4M"), (0.025, "0.025"), (0.00001, "1e-5"), (7, "7")],
)
def test_numbers(value, text):
    assert chart.number(value) == text
