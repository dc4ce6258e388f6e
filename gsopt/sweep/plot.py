"""The results as sweep.png: PSNR over training time and over steps. Needs matplotlib, the extra "plots"."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from gsopt.errors import MissingExtra
from gsopt.sweep.grid import Configuration
from gsopt.sweep.results import Mean, Result, done

SIZE, DPI = (11.0, 4.5), 150  # inches, pixels an inch
BAND = 0.18  # opacity of the bands
STYLES = ("-", "--", ":", "-.")  # one after the other when the ten colours are used up
Point = tuple[int, float, Mean]  # iteration, mean seconds of training, PSNR in dB


def require_matplotlib() -> None:
    """Raise MissingExtra where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "plots", "sweep.png (which --no-plot leaves away)")


def curve(results: Sequence[Result], configuration: Configuration) -> list[Point]:
    """PSNR at the tests that all finished seeds of a configuration have; empty where none has finished."""
    tests = [{test["iteration"]: test for test in r.history} for r in done(results, configuration).values()]
    if not tests:
        return []
    shared = sorted(set.intersection(*(set(each) for each in tests)))
    return [
        (
            iteration,
            sum(each[iteration]["seconds"] for each in tests) / len(tests),
            Mean.of([each[iteration]["psnr"] for each in tests]),
        )
        for iteration in shared
    ]


def draw(results: Sequence[Result], cells: Sequence[Configuration], path: Path) -> None:
    """Write the picture: a line for each configuration, mean over seeds in a band of ± standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    over_time, over_steps = figure.subplots(1, 2, sharey=True)
    for index, cell in enumerate(cells):
        points = [
            (step, seconds, found.mean, found.spread or 0.0)
            for step, seconds, found in curve(results, cell)
            if found.mean is not None
        ]
        psnr = [mean for *_, mean, _ in points]
        low, high = ([mean + sign * spread for *_, mean, spread in points] for sign in (-1.0, 1.0))
        look = {"color": f"C{index % 10}", "linestyle": STYLES[index // 10 % len(STYLES)]}
        for axes, xs in ((over_time, [p[1] for p in points]), (over_steps, [p[0] for p in points])):
            axes.plot(xs, psnr, label=cell.name, marker="." if len(points) < 20 else None, **look)
            axes.fill_between(xs, low, high, color=look["color"], alpha=BAND, linewidth=0)
    split = next((result.split for result in results if result.split), "test")
    over_time.set(xlabel="seconds of training", ylabel=f"PSNR of the {split} views, dB")
    over_steps.set(xlabel="steps")
    for axes in (over_time, over_steps):
        axes.grid(alpha=0.3)
    over_steps.legend(fontsize="small")
    figure.savefig(path, format="png")
