"""The results as sweep.csv, a row for each run, and sweep.md, a row for each configuration."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from gsopt.sweep.grid import Configuration
from gsopt.sweep.results import DONE, FAILED, WAITING, Mean, Result, difference, done, mean

MEASURES = {  # name in the CSV file: title in the table, decimals
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "l1": ("L1", 5),
    "gaussians": ("Gaussians", 0),
    "train_seconds": ("training, s", 1),
    "total_seconds": ("all, s", 1),
    "step_ms": ("step, ms", 2),
    "last_step_ms": ("last steps, ms", 2),
}
NOT_THERE = "-"


def csv_text(results: Sequence[Result]) -> str:
    """A row for each run, in order; numbers with all their digits, what is not there yet empty."""
    axes = list(results[0].run.configuration.choices)
    fields = ["configuration", *axes, "seed", "status", "split", "steps", *MEASURES, "folder", "message"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(fields)
    for result in results:
        run = result.run
        values = [result.values.get(name) for name in MEASURES]
        chosen = run.configuration.choices.values()
        writer.writerow(
            [
                *(run.configuration.name, *chosen, run.seed, result.status, result.split),
                *(run.config.iterations, *values, run.folder.path, result.message),
            ]
        )
    return stream.getvalue()


def markdown(
    results: Sequence[Result],
    cells: Sequence[Configuration],
    baseline: Configuration,
    about: Mapping[str, str],
    picture: Path | None = None,
) -> str:
    """The tables for people.

    Args:
        results: of all runs.
        cells: the configurations, in the order of the rows.
        baseline: what differences are to.
        about: what the sweep was, by name: scene, command, ...
        picture: of the curves, beside the file.
    """
    split = next((result.split for result in results if result.split), "test")
    lines = ["# Sweep", "", *(f"- {name}: {text}" for name, text in about.items()), ""]
    lines += [f"Means over seeds ± sample standard deviation, of the {split} views.", ""]
    header = ["configuration", "runs", *(title for title, _ in MEASURES.values())]
    rows = [
        [
            cell.name,
            _count(results, cell),
            *(shown(mean(results, cell, name), digits) for name, (_, digits) in MEASURES.items()),
        ]
        for cell in cells
    ]
    lines += _table(header, rows)
    if len(cells) > 1:
        lines += ["", f"Differences to {baseline.name}, seed by seed: mean ± sample standard deviation.", ""]
        lines += _table(header[:1] + header[2:], [_differences(results, cell, baseline) for cell in cells])
    failed = [result for result in results if result.status == FAILED]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {_plain(r.run.name)}: {_plain(r.message)} ({r.run.log})" for r in failed]
    if picture is not None:
        lines += ["", f"![PSNR over training time and over steps]({picture.name})"]
    return "\n".join(lines) + "\n"


def _differences(results: Sequence[Result], cell: Configuration, baseline: Configuration) -> list[str]:
    if cell is baseline:
        return [cell.name, *("" for _ in MEASURES)]
    found = ((difference(results, cell, baseline, name), digits) for name, (_, digits) in MEASURES.items())
    return [cell.name, *(shown(value, digits, sign="+") for value, digits in found)]


def _count(results: Sequence[Result], cell: Configuration) -> str:
    """How many runs the means are over: "3", or "1 of 3 (1 failed, 1 waiting)"."""
    of_cell = [result.status for result in results if result.run.configuration is cell]
    missing = [f"{n} {status}" for status in (FAILED, WAITING) if (n := of_cell.count(status))]
    complete = len(done(results, cell))
    assert complete == of_cell.count(DONE)
    return f"{complete} of {len(of_cell)} ({', '.join(missing)})" if missing else str(complete)


def shown(value: Mean, digits: int, sign: str = "") -> str:
    """ "31.25 ± 0.07" with so many decimals; without spread where there is none."""
    if value.mean is None:
        return NOT_THERE
    spread = "" if value.spread is None else f" ± {value.spread:,.{digits}f}"
    return f"{value.mean:{sign}z,.{digits}f}{spread}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown that is one on a terminal, too."""
    cells = [[_plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"| {' | '.join(_aligned(index, cell, widths[index]) for index, cell in enumerate(row))} |"
        for row in cells
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def _aligned(index: int, cell: str, width: int) -> str:
    return cell.ljust(width) if index == 0 else cell.rjust(width)


def _plain(text: str) -> str:
    """Text without what would end a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
