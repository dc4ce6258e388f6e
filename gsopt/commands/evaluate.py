"""`gsopt evaluate`: PSNR, SSIM and L1 of a run or a PLY, and photo | render | error of every test view."""

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
from gsopt.evaluation import Metrics, evaluate_scene
from gsopt.rundir import read_json, write_json
from gsopt.runtime import Stopwatch

ABOUT = "Measure a run, or a PLY with --scene DIR, on its test views; writes metrics.json and pictures."


@dataclass
class EvaluateConfig(SourceOptions):
    """Settings of `gsopt evaluate`."""

    model: Positional[Path] = Path()
    """Folder of a run, or a PLY."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(EvaluateConfig, argv, "gsopt evaluate", ABOUT))


def run(config: EvaluateConfig) -> Metrics:
    """What is in the metrics.json it writes."""
    clock = Stopwatch()
    with clock("load"):
        source = load_source(config.model, config)
    folder = source.folder

    def keep(split: str, _index: int, view: View, image: Tensor, photo: Tensor) -> None:
        if split == "test" or not source.scene.test:
            pictures.save_png(
                pictures.compare(image, photo), folder.picture_of("comparison", view.camera.name)
            )

    with clock("evaluate"):
        metrics = evaluate_scene(
            source.model, source.scene, source.background, on_view=keep, **source.config.render_options()
        )
    old = read_json(folder.metrics) if folder.metrics.is_file() else {}
    seconds = old.get("seconds", {}) | {"evaluate": clock.seconds["evaluate"]}
    metrics |= {
        "iterations": source.iterations,
        "gaussians": source.model.num_gaussians,
        "seconds": seconds,
    }
    write_json(folder.metrics, metrics)
    print(
        "\n".join(
            [
                *metrics_lines(metrics),
                f"pictures  {folder.renders / 'comparison'}",
                f"metrics   {folder.metrics}",
            ]
        )
    )
    return metrics
