"""What strategies cost: a scene trained with each of them, and the part of the time that they take."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gsopt.config import STRATEGIES, TrainConfig
from gsopt.device import synchronize
from gsopt.trainer import Trainer

PARTS = ("observe", "refine")  # methods of a strategy that are timed


def strategy_costs(config: TrainConfig) -> list[dict[str, Any]]:
    """Train in a temporary folder with every strategy that does something.

    Returns:
        For each "strategy", "seconds" of training, seconds in "observe" and "refine", the part of the time
        that both take as "share", test "psnr" (dB) and "gaussians".

    Raises:
        InputError: the scene or the settings cannot be used.
    """
    return [_cost(replace(config, strategy=name), name) for name in STRATEGIES]


def _cost(config: TrainConfig, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="gsopt-bench-") as folder:
        settings = replace(
            config, test_iterations=(), save_iterations=(), output=Path(folder) / "run", quiet=True
        )
        trainer = Trainer(settings)
        spent = dict.fromkeys(PARTS, 0.0)
        for part in PARTS:
            setattr(trainer.strategy, part, _timed(getattr(trainer.strategy, part), part, spent, trainer))
        try:
            metrics = trainer.train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("strategies: nothing of their runs is kept") from None
    seconds = metrics["seconds"]["train"]
    return {
        "strategy": name,
        "seconds": seconds,
        **spent,
        "share": sum(spent.values()) / seconds,
        "psnr": metrics["test"]["psnr"],
        "gaussians": metrics["gaussians"],
    }


def _timed(method: Callable, part: str, spent: dict[str, float], trainer: Trainer) -> Callable:
    """`method`, with its seconds added to those of `part`."""

    def timed(*arguments: Any) -> Any:
        synchronize(trainer.device)
        begin = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            synchronize(trainer.device)
            spent[part] += time.perf_counter() - begin

    return timed
