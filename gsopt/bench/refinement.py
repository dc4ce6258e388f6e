"""What strategies bring and what they cost: a scene trained with each, and the part of the time it takes.

Each training runs in a process of its own, so that its peak of memory is its own:
`python -m gsopt.bench.refinement FOLDER` reads settings as JSON from its input and prints one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gsopt.config import TrainConfig
from gsopt.device import synchronize
from gsopt.errors import InputError
from gsopt.rundir import read_json, write_json
from gsopt.settings import from_json, to_json
from gsopt.trainer import Trainer

PARTS = ("observe", "refine")  # methods of a strategy that are timed
FORMAT, VERSION = "gsopt-trainings", 1
ROOT = Path(__file__).resolve().parents[2]  # for a checkout that is not installed


@dataclass(frozen=True)
class Training:
    """One row of the table with one seed."""

    name: str  # of the row
    config: TrainConfig


class Results:
    """What came of trainings, in a file that is written after each of them; without a file, in memory only.

    Args:
        path: the file; what is in it already counts as done.

    Raises:
        InputError: the file is something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            found = read_json(path)
            kind = (found.get("format"), found.get("version")) if isinstance(found, dict) else None
            if kind != (FORMAT, VERSION) or not isinstance(found.get("trainings"), list):
                raise InputError(
                    f"--results {path}: expected results of gsopt bench --strategies, version {VERSION}, "
                    "found something else; give another file"
                )
            self.rows = found["trainings"]

    def find(self, training: Training) -> dict[str, Any] | None:
        """The row of a training with these very settings; None where there is none yet."""
        settings = to_json(training.config)
        return next((row for row in self.rows if row["settings"] == settings), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, at once."""
        self.rows.append(row)
        if self.path is not None:
            write_json(self.path, {"format": FORMAT, "version": VERSION, "trainings": self.rows})


def train_all(trainings: Sequence[Training], results: Results) -> Iterator[dict[str, Any]]:
    """Train those that have no result yet, one after another; yields the row of each, new or not.

    A row has "training", "seed", all "settings", "seconds" of training; by :func:`_now`, the seconds of all
    "steps" and of each of `PARTS`, and the part that these take as "share"; "psnr" (dB) and "ssim" of the
    test views (None without any), "gaussians" at the end, "most" at any time, "counts" as pairs of step and
    number after each change, and "peak_memory_bytes".

    Raises:
        InputError: the scene or the settings cannot be used, or a process failed.
        KeyboardInterrupt: with what is kept and how to go on.
    """
    for done, training in enumerate(trainings):
        row = results.find(training)
        if row is None:
            try:
                row = _in_process(training)
            except KeyboardInterrupt:
                kept = f"the results of {done} are in {results.path}: the same command goes on"
                nothing = "nothing of them is kept; with --results FILE they would be"
                raise KeyboardInterrupt(
                    f"{done} of {len(trainings)} trainings done; {kept if results.path else nothing}"
                ) from None
            results.add(row)
        yield row


def _in_process(training: Training) -> dict[str, Any]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = to_json(training.config)
    with tempfile.TemporaryDirectory(prefix="gsopt-bench-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "gsopt.bench.refinement", folder],
            input=json.dumps(settings),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"--strategies: {training.name} failed with exit code {done.returncode} ({last})")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"training": training.name, "seed": training.config.seed, "settings": settings, **found}


def measure(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train in `folder` and tell what `train_all` says of a row, without what identifies it.

    Raises:
        InputError: the scene or the settings cannot be used.
    """
    config = replace(config, test_iterations=(), save_iterations=(), output=folder / "run", quiet=True)
    trainer = Trainer(config)
    counts = [(0, trainer.model.num_gaussians)]
    spent = dict.fromkeys((*PARTS, "steps"), 0.0)
    for part in PARTS:
        setattr(trainer.strategy, part, _timed(getattr(trainer.strategy, part), part, spent, trainer))
    step = _timed(trainer.train_step, "steps", spent, trainer)

    def counted() -> Any:
        result = step()
        if (now := trainer.model.num_gaussians) != counts[-1][1]:
            counts.append((trainer.step, now))
        return result

    trainer.train_step = counted  # type: ignore[method-assign]  # of this trainer only
    metrics = trainer.train()
    return {
        "seconds": metrics["seconds"]["train"],
        **spent,
        "share": sum(spent[part] for part in PARTS) / spent["steps"],
        "psnr": metrics["test"]["psnr"],
        "ssim": metrics["test"]["ssim"],
        "gaussians": metrics["gaussians"],
        "most": max(count for _, count in counts),
        "counts": counts,
        "peak_memory_bytes": metrics["peak_memory_bytes"],
    }


def _timed(method: Callable, part: str, spent: dict[str, float], trainer: Trainer) -> Callable:
    """`method`, with its seconds added to those of `part`."""

    def timed(*arguments: Any) -> Any:
        begin = _now(trainer.device)
        try:
            return method(*arguments)
        finally:
            spent[part] += _now(trainer.device) - begin

    return timed


def _now(device: torch.device) -> float:
    """Seconds: on a CPU of processor time of this thread, so that other programs hardly count.

    It works, or waits busily for the kernel's other threads, in all of a step.
    """
    if device.type == "cpu":
        return time.thread_time()
    synchronize(device)
    return time.perf_counter()


def main(words: Sequence[str]) -> None:
    """Train in the folder that is named, with the settings in the input, and print the result."""
    config = from_json(TrainConfig, json.loads(sys.stdin.read()), "settings")
    print(json.dumps(measure(config, Path(words[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
