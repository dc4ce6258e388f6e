"""The charts of a report, one run or several in the same axes."""

from collections.abc import Sequence

from gsopt.report.chart import Line, bar_chart, line_chart, smooth
from gsopt.report.data import CHANGES, TOTAL_LOSS, RunData

RUNNING_PSNR = "train_loss_patches/psnr"


def training_charts(runs: Sequence[RunData]) -> list[str]:
    """Loss, PSNR, Gaussians and time of a step."""
    alone = len(runs) == 1
    coarse = any(run.config.coarse_to_fine for run in runs)
    rows = [
        Line(run.name, run.scalars.get("total_points", []), index, steps=True)
        for index, run in enumerate(runs)
    ]
    return [
        line_chart(
            "Loss", _smoothed(runs, TOTAL_LOSS), log=True, note="of the step's photo; bold: a running mean"
        ),
        line_chart("PSNR", _psnr_lines(runs), unit=" dB", note=_psnr_note(runs)),
        line_chart("Gaussians", rows, zero=True),
        line_chart(
            "Time of a step",
            _smoothed(runs, "iter_time", faint=alone),
            unit=" ms",
            zero=True,
            note="images begin at a quarter of their sides, then half" if coarse else "",
        ),
    ]


def _smoothed(runs: Sequence[RunData], tag: str, faint: bool | None = None) -> list[Line]:
    """A running mean of each run, over the values themselves where there is one run."""
    lines = []
    for index, run in enumerate(runs):
        points = run.scalars.get(tag, [])
        if len(runs) == 1 if faint is None else faint:
            lines.append(Line("", points, index, faint=True))
        lines.append(Line(run.name if len(runs) > 1 else "running mean", smooth(points), index))
    return lines


def _psnr_lines(runs: Sequence[RunData]) -> list[Line]:
    lines = []
    for index, run in enumerate(runs):
        several = len(runs) > 1
        name = f"{run.name}, " if several else ""
        photos = run.scalars.get(RUNNING_PSNR, [])
        if photos and not several:
            lines += [Line("", photos, 0, faint=True), Line("training photos", smooth(photos), 0)]
        for color, split in enumerate(("test", "train")):
            tests = run.scalars.get(f"{split}/loss_viewpoint - psnr", [])
            if tests and (split == "test" or not several):
                color = index if several else color + 1
                lines.append(Line(f"{name}{split} views", tests, color, dots=True))
    return lines


def _psnr_note(runs: Sequence[RunData]) -> str:
    line = "" if len(runs) > 1 or RUNNING_PSNR not in runs[0].scalars else "; line: a running mean"
    return f"dots: means over all views{line}"


def rate_charts(runs: Sequence[RunData]) -> list[str]:
    """Learning rates: of one run all groups in a chart, of several a chart for each group."""
    tags = dict.fromkeys(tag for run in runs for tag in run.scalars if tag.startswith("lr/"))
    if len(runs) > 1:
        return [
            line_chart(
                f"Learning rate of {tag.removeprefix('lr/')}",
                [Line(run.name, run.scalars.get(tag, []), index) for index, run in enumerate(runs)],
                log=True,
            )
            for tag in tags
        ]
    (run,) = runs
    names = [tag.removeprefix("lr/") for tag in tags]
    rates = [Line(name, run.scalars[f"lr/{name}"], index) for index, name in enumerate(names)]
    updates = [
        Line(name, smooth(run.scalars.get(f"update_norm/{name}", [])), index)
        for index, name in enumerate(names)
    ]
    return [
        line_chart("Learning rates", rates, log=True, note="of the next update, schedule and all"),
        line_chart("Updates", updates, log=True, note="norm of a step's change over that of the parameter"),
    ]


def population_charts(run: RunData) -> list[str]:
    """What the Gaussians are like at the newest test, and how they came and went."""
    found = []
    changes = [
        Line(name, run.scalars[f"gaussians/{name}"], index, dots=True)
        for index, name in enumerate(CHANGES)
        if any(value for _, value in run.scalars.get(f"gaussians/{name}", []))
    ]
    found.append(line_chart("Refinement", changes, zero=True, note="Gaussians in each"))
    for tag, title, note in (
        ("scene/opacity_histogram", "Opacity", "0 to 1, at the newest test"),
        ("scene/scale_histogram", "Size", "log10 of the largest standard deviation, world units"),
    ):
        if tag in run.histograms:
            histogram = run.histograms[tag]
            found.append(bar_chart(title, histogram.limits, histogram.counts, note=note))
    return found
