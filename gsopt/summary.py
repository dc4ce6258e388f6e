"""What has come of a run, as the terminal shows it at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsopt import checkpoint
from gsopt.rundir import RunFolder
from gsopt.text import table

STAGES = ("load", "train", "evaluate", "save")  # in the order of a run; others follow


def summary(run: RunFolder, metrics: Mapping[str, Any]) -> list[str]:
    """Quality, Gaussians, time by stage and files, from the metrics of the run's end."""
    skipped = metrics.get("skipped_steps", 0)
    lost = f"{skipped:,} of {metrics['iterations']:,} steps were not finite and left out (--on-nan skip)"
    return [
        "",
        *quality_table(metrics),
        f"Gaussians {metrics['gaussians']:,}",
        *([f"skipped   {lost}"] if skipped else []),
        "",
        *time_table(metrics),
        "",
        *file_table(run, metrics["iterations"]),
        "",
        f"watch     tensorboard --logdir {run.path}",
    ]


def quality_table(metrics: Mapping[str, Any]) -> list[str]:
    """The means of each split that has views."""
    splits = [split for split in ("test", "train") if metrics[split]["psnr"] is not None]
    names = [
        name for name in ("psnr", "ssim", "l1", "lpips") if all(name in metrics[split] for split in splits)
    ]
    rows = [
        [
            f"{split:<8}",
            *(
                f"{metrics[split][name]:.2f} dB" if name == "psnr" else f"{metrics[split][name]:.4f}"
                for name in names
            ),
        ]
        for split in splits
    ]
    return table(["quality", *(name.upper() for name in names)], rows)


def time_table(metrics: Mapping[str, Any]) -> list[str]:
    """Seconds of each stage, and its part of the whole."""
    seconds = metrics["seconds"]
    total = seconds["total"]
    stages = [stage for stage in seconds if stage != "total"]
    stages.sort(key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES))
    notes = {"train": f"{1000 * seconds.get('train', 0) / max(metrics['iterations'], 1):.1f} ms a step"}
    rows = [
        [
            f"{stage:<8}",
            f"{seconds[stage]:,.1f}",
            f"{100 * seconds[stage] / max(total, 1e-9):.0f}%",
            notes.get(stage, ""),
        ]
        for stage in stages
    ]
    return table(["time", "seconds", "", ""], [*rows, ["total", f"{total:,.1f}", "", ""]])


def file_table(run: RunFolder, iterations: int) -> list[str]:
    """What was written, and how large it is."""
    files = {
        "model": run.ply(iterations),
        "checkpoint": checkpoint.latest(run.checkpoints),
        "picture": run.picture,
        "metrics": run.metrics,
    }
    there = {name: path for name, path in files.items() if path and path.is_file()}
    width = max((len(str(path)) for path in there.values()), default=0)
    return [f"{name:<10}{path!s:<{width}}  {size_text(path)}" for name, path in there.items()]


def size_text(path: Path) -> str:
    """The size of a file: 812 B, 3.4 kB, 20.9 MB."""
    size = path.stat().st_size
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size} B"


def metrics_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The means of each split, and the number of Gaussians."""
    lines = [
        f"{split:<10}PSNR {mean['psnr']:.2f} dB   SSIM {mean['ssim']:.4f}   L1 {mean['l1']:.4f}"
        + (f"   LPIPS {mean['lpips']:.4f}" if "lpips" in mean else "")
        for split in ("test", "train")
        if (mean := metrics[split])["psnr"] is not None
    ]
    return [*lines, f"Gaussians {metrics['gaussians']:,}"]


def last_line(run: RunFolder, metrics: Mapping[str, Any]) -> str:
    """The whole in one line, for `--quiet`."""
    split = "test" if metrics["test"]["psnr"] is not None else "train"
    mean = metrics[split]
    return (
        f"{run.path}: {metrics['iterations']:,} iterations, {split} PSNR {mean['psnr']:.2f} dB, "
        f"SSIM {mean['ssim']:.4f}, {metrics['gaussians']:,} Gaussians, "
        f"{metrics['seconds']['total']:.1f} seconds"
    )
