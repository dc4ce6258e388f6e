"""`gsopt evaluate`: PSNR, SSIM, L1 and LPIPS of a run or a PLY, photo | render | error of every test view."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from gsopt import pictures
from gsopt.commands.flags import parse
from gsopt.commands.sources import Source, SourceOptions, load_source
from gsopt.datasets.masks import Alpha
from gsopt.datasets.scene import View
from gsopt.error_sheet import label, save_sheet, worst_first
from gsopt.errors import InputError
from gsopt.evaluation import Metrics, evaluate_scene
from gsopt.perceptual import Lpips
from gsopt.rundir import read_json, write_json
from gsopt.runtime import Stopwatch
from gsopt.summary import metrics_lines

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
    alpha: Alpha | None = None
    """Photos with transparency: over the background, or a mask: pixels of alpha 0 do not count."""
    lpips: Literal["alex", "vgg"] | None = None
    """Measure LPIPS too, with this network: pip install "gsopt[lpips]"."""
    lpips_weights: Path | None = None
    """torchvision's file of the network's weights; default: in TORCH_HOME, downloaded if need be."""
    sheet: int = 8
    """How many of the worst views are in sheet.png; 0 for none."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(EvaluateConfig, argv, "gsopt evaluate", ABOUT))


def run(config: EvaluateConfig) -> Metrics:
    """What is in the JSON file it writes: metrics.json, or what ABOUT says."""
    if config.sheet < 0:
        raise InputError(f"--sheet {config.sheet}: expected a number of views, 0 or more")
    if config.lpips_weights is not None and config.lpips is None:
        raise InputError("--lpips-weights: is without effect; give --lpips alex or --lpips vgg too")
    clock = Stopwatch()
    with clock("load"):
        # First what may be missing: a scene takes longer.
        lpips = None if config.lpips is None else Lpips(config.lpips, config.lpips_weights)
        source = load_source(config.model, config)
    folder = source.folder
    kind = ("" if source.is_newest else f"_{source.iterations}") + ("_changed" if source.changed else "")
    file = folder.metrics.with_name(f"metrics{kind}.json")
    sheet = folder.renders / f"sheet{kind}.png"
    with clock("evaluate"):
        metrics = _measured(source, lpips, f"comparison{kind}")
        rows = _sheet_rows(source, metrics, config.sheet)
        if config.sheet:
            save_sheet(rows, sheet)
    old = _before(file)
    seconds = old.get("seconds", {}) | {"evaluate": clock.seconds["evaluate"]}
    metrics = old | metrics
    metrics |= {
        "iterations": source.iterations,
        "gaussians": source.joint.model.num_gaussians,
        "seconds": seconds,
    }
    metrics.pop("lpips_network", None)
    if config.lpips is not None:
        metrics["lpips_network"] = config.lpips
    if source.changed:
        metrics["changed"] = source.changed
    write_json(file, metrics)
    pictures_at = folder.renders / f"comparison{kind}"
    lines = [*metrics_lines(metrics), f"pictures  {pictures_at}"]
    lines += [f"sheet     {sheet}"] if config.sheet else []
    print("\n".join([*lines, f"metrics   {file}"]))
    return metrics


def _measured(source: Source, lpips: Lpips | None, kind: str) -> Metrics:
    """The metrics of all views, and on the way the picture of each, in renders/KIND."""
    distances: dict[str, dict[str, float]] = {"test": {}, "train": {}}

    def look(split: str, _index: int, view: View, image: Tensor, photo: Tensor) -> None:
        name = view.camera.name
        if lpips is not None:
            distances[split][name] = lpips(image, photo)
        if split == "test" or not source.scene.test:
            pictures.save_png(pictures.compare(image, photo), source.folder.picture_of(kind, name))

    metrics = evaluate_scene(
        source.joint.render, source.scene, source.background, on_view=look, **source.config.render_options()
    )
    for split, found in distances.items() if lpips is not None else ():
        for name, distance in found.items():
            metrics["views"][split][name]["lpips"] = distance
        metrics[split]["lpips"] = sum(found.values()) / len(found) if found else None
    return metrics


@torch.no_grad()
def _sheet_rows(source: Source, metrics: Metrics, count: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Label, photo and render of the worst test views (training views where there are no others)."""
    split = "test" if source.scene.test else "train"
    numbers = metrics["views"][split]
    views = {view.camera.name: (index, view) for index, view in enumerate(getattr(source.scene, split))}
    for name in worst_first(numbers, count):
        index, view = views[name]
        number = index if split == "train" else None
        image, _ = source.joint.render(
            view.camera, source.background, number, **source.config.render_options()
        )
        photo = view.rgb(source.background.cpu())
        yield label(name, numbers[name]), photo, image.clamp(0, 1).cpu()


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
