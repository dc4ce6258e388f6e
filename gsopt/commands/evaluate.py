"""`gsopt evaluate`: PSNR, SSIM and L1 of a run or a PLY, and photo | render | error of every test view."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tyro.conf import Positional

from gsopt import pictures
from gsopt.commands.flags import parse
from gsopt.commands.sources import SourceOptions, load_source
from gsopt.commands.train import metrics_lines
from gsopt.datasets.scene import View
from gsopt.errors import InputError
from gsopt.evaluation import Metrics, evaluate_scene
from gsopt.rundir import read_json, write_json
from gsopt.runtime import Stopwatch

ABOUT = (
    "Measure a run, or a PLY with --scene DIR, on its test views; writes metrics.json and pictures. "
    "In a run's own folder, those of an older --iteration have names with _ITERATION, and with other "
    "settings than the run's with _changed: its metrics.json stays that of its end."
)


@dataclass
class EvaluateConfig(SourceOptions):
    """Settings of `gsopt evaluate`."""

    model: Positional[Path] = Path()
    """Folder of a run, or a PLY."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(EvaluateConfig, argv, "gsopt evaluate", ABOUT))


def run(config: EvaluateConfig) -> Metrics:
    """What is in the JSON file it writes: metrics.json, or what ABOUT says."""
    clock = Stopwatch()
    with clock("load"):
        source = load_source(config.model, config)
    folder = source.folder
    kind = ("" if source.is_newest else f"_{source.iterations}") + ("_changed" if source.changed else "")
    file = folder.metrics.with_name(f"metrics{kind}.json")

    def keep(split: str, _index: int, view: View, image: Tensor, photo: Tensor) -> None:
        if split == "test" or not source.scene.test:
            pictures.save_png(
                pictures.compare(image, photo), folder.picture_of(f"comparison{kind}", view.camera.name)
            )

    with clock("evaluate"):
        metrics = evaluate_scene(
            source.joint.render,
            source.scene,
            source.background,
            on_view=keep,
            **source.config.render_options(),
        )
    old = _before(file)
    seconds = old.get("seconds", {}) | {"evaluate": clock.seconds["evaluate"]}
    metrics = old | metrics
    metrics |= {
        "iterations": source.iterations,
        "gaussians": source.joint.model.num_gaussians,
        "seconds": seconds,
    }
    if source.changed:
        metrics["changed"] = source.changed
    write_json(file, metrics)
    print(
        "\n".join(
            [
                *metrics_lines(metrics),
                f"pictures  {folder.renders / f'comparison{kind}'}",
                f"metrics   {file}",
            ]
        )
    )
    return metrics


def _before(file: Path) -> Metrics:
    """What an earlier measurement left; nothing, with a warning, where that cannot be used."""
    if not file.is_file():
        return {}
    try:
        old = read_json(file)
    except InputError as error:
        warnings.warn(f"{error}; it is written anew", stacklevel=2)
        return {}
    if not isinstance(old, dict) or not isinstance(old.get("seconds", {}), dict):
        warnings.warn(f"{file}: not metrics; it is written anew", stacklevel=2)
        return {}
    return old
