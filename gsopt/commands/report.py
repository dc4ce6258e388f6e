"""`gsopt report`: curves, worst views, groups, times and settings of runs in one HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from tyro.conf import Positional

from gsopt.commands.flags import parse
from gsopt.commands.sources import SourceOptions, load_source
from gsopt.errors import InputError
from gsopt.evaluation import beside_photo
from gsopt.report import Seen, page, read_run, seen, told_apart, worst
from gsopt.summary import size_text

ABOUT = (
    "Write one HTML file about a run, or about several side by side: curves, the worst views with their "
    "errors, Gaussians, parameter groups, times, settings. It needs no network and no other file."
)


@dataclass
class ReportConfig:
    """Settings of `gsopt report`."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, finished or not."""
    output: Path | None = None
    """The file; default report.html in the run's folder, for several report.html here."""
    views: int = 6
    """How many of the worst views are shown; 0 for none, and then the scene is not needed."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(ReportConfig, argv, "gsopt report", ABOUT))


def run(config: ReportConfig) -> Path:
    """Write the file; its path."""
    if not config.runs:
        raise InputError("RUN: expected the folder of a run, found none; see gsopt report --help")
    if config.views < 0:
        raise InputError(f"--views {config.views}: expected a number of views, 0 or more")
    if len({path.resolve() for path in config.runs}) < len(config.runs):
        raise InputError("RUN: found one run twice; give each once")
    runs = told_apart([read_run(path) for path in config.runs])
    rows = worst([rendered(path) for path in config.runs], config.views) if config.views else []
    default = config.runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    output = config.output or default
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(runs, rows, datetime.now()), encoding="utf-8")
    print(f"report    {output} ({size_text(output)})")
    return output


@torch.no_grad()
def rendered(path: Path) -> dict[str, Seen]:
    """The run's test views by name (training views where there are no others) as its newest model shows them.

    Raises InputError where there is no model yet, or the scene cannot be read.
    """
    try:
        source = load_source(path, SourceOptions())
    except InputError as error:
        raise InputError(f"{error} (a report without pictures needs neither: --views 0)") from error
    scene, options, found = source.scene, source.config.render_options(), {}
    for index, view in enumerate(scene.test or scene.train):
        number = None if scene.test else index
        image, photo, mask = beside_photo(source.joint.render, view, number, source.background, **options)
        found[view.camera.name] = seen(image.cpu(), photo.cpu(), None if mask is None else mask.cpu())
    return found
