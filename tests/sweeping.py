"""Runs and results of sweeps for tests, without any training."""

from pathlib import Path

from gsopt.config import TrainConfig
from gsopt.rundir import write_json
from gsopt.sweep.grid import Run, configurations, plan
from gsopt.sweep.results import Result, read_result

FLAGS = {"scene": Path("ball"), "iterations": 100, "device": "cpu"}


def runs(folder: Path, freeze=("none", "xyz"), vary=(), seeds=(0, 1), **settings) -> list[Run]:
    """The grid of these configurations; what they freeze is not in their settings."""
    cells = configurations(freeze, vary)
    configs = [TrainConfig(**FLAGS | settings)] * len(cells)
    return plan(cells, configs, seeds, folder, tests=2, jobs=1)


def metrics(psnr: float, seconds: float = 4.0, split: str = "test") -> dict:
    """A metrics.json of a run of 100 iterations, tested at 50 and 100."""
    nothing = {"psnr": None, "ssim": None, "l1": None}
    measured = {"psnr": psnr, "ssim": psnr / 40, "l1": 1 / psnr}
    tests = [(50, 0.25 * seconds, psnr - 5), (100, seconds, psnr)]
    return {
        **{"test": nothing, "train": nothing, split: measured},
        **{"iterations": 100, "gaussians": round(100 * psnr)},
        "seconds": {"train": seconds, "load": 1.0, "total": seconds + 1.0},
        "history": [{"iteration": i, "seconds": s, "psnr": p} for i, s, p in tests],
    }


def finished(run: Run, psnr: float, seconds: float = 4.0, split: str = "test", **changes) -> Result:
    """The run as if it had ended like this."""
    write_json(run.folder.config, run.config.to_json())
    write_json(run.folder.metrics, metrics(psnr, seconds, split) | changes)
    return read_result(run)
