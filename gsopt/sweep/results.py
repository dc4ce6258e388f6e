"""What came of each run, and means over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsopt.rundir import read_json
from gsopt.sweep.grid import Configuration, Run

DONE, FAILED, WAITING = "done", "failed", "waiting"  # a run's status; waiting: not ended yet


@dataclass(frozen=True)
class Result:
    """A run as it is now."""

    run: Run
    status: str
    message: str = ""  # why it failed
    split: str = ""  # the views it was measured on: "test", or "train" where there are no test views
    values: Mapping[str, float | None] = field(default_factory=dict)  # by the names in `table.MEASURES`
    history: Sequence[Mapping[str, Any]] = ()  # its tests, as in metrics.json


def read_result(run: Run) -> Result:
    """The result of a finished run, from its metrics.json."""
    metrics = read_json(run.folder.metrics)
    split = "train" if metrics["test"]["psnr"] is None else "test"
    seconds, history = metrics["seconds"], metrics["history"]
    values = {name: metrics[split][name] for name in ("psnr", "ssim", "l1")}
    values |= {
        "gaussians": metrics["gaussians"],
        "train_seconds": seconds["train"],
        "total_seconds": seconds["total"],
        "step_ms": 1000 * seconds["train"] / metrics["iterations"],
        "last_step_ms": _last_step_ms(history),
    }
    return Result(run, DONE, split=split, values=values, history=history)


def _last_step_ms(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Milliseconds of a step between the last two tests; None with only one."""
    if len(history) < 2:
        return None
    before, after = history[-2:]
    return 1000 * (after["seconds"] - before["seconds"]) / (after["iteration"] - before["iteration"])


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation (that with n - 1); None for no value, or no spread of one value."""

    mean: float | None
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Mean":
        """Of the values that are there and finite."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        return cls(
            statistics.fmean(known) if known else None,
            statistics.stdev(known) if len(known) > 1 else None,
        )


def done(results: Sequence[Result], configuration: Configuration) -> dict[int, Result]:
    """The finished runs of a configuration, by seed."""
    return {
        result.run.seed: result
        for result in results
        if result.run.configuration is configuration and result.status == DONE
    }


def mean(results: Sequence[Result], configuration: Configuration, measure: str) -> Mean:
    """Over the seeds of a configuration."""
    return Mean.of([result.values[measure] for result in done(results, configuration).values()])


def difference(
    results: Sequence[Result], configuration: Configuration, baseline: Configuration, measure: str
) -> Mean:
    """Of `configuration` minus `baseline`, seed by seed, over the seeds that both have finished."""
    ours, theirs = done(results, configuration), done(results, baseline)
    pairs = [(ours[seed].values[measure], theirs[seed].values[measure]) for seed in ours if seed in theirs]
    return Mean.of([a - b for a, b in pairs if a is not None and b is not None])
