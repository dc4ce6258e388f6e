"""Time to quality: after how much training the test views of a scene first reach given PSNRs."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gsopt.config import TrainConfig
from gsopt.trainer import Trainer


def time_to_quality(config: TrainConfig, targets: Sequence[float], every: int) -> dict[str, Any]:
    """Train in a temporary folder, with a test every so many steps that does not count as training.

    Returns:
        "targets": for each PSNR in dB the first test that reached it as {"psnr", "iteration", "seconds"},
        with None for both where none did; "history": all tests, as in metrics.json; "iterations"; "every".

    Raises:
        InputError: the scene or the settings cannot be used.
    """
    tests = tuple(range(every, config.iterations, every))
    with tempfile.TemporaryDirectory(prefix="gsopt-bench-") as folder:
        output = Path(folder) / "run"
        config = replace(config, test_iterations=tests, save_iterations=(), output=output, quiet=True)
        try:
            history = Trainer(config).train()["history"]
        except KeyboardInterrupt:
            raise KeyboardInterrupt("time to quality: nothing of its run is kept") from None
    return {
        "targets": [{"psnr": psnr, **first_reaching(history, psnr)} for psnr in targets],
        "history": history,
        "iterations": config.iterations,
        "every": every,
    }


def first_reaching(history: Sequence[dict[str, Any]], psnr: float) -> dict[str, Any]:
    """Iteration and seconds of the first test with at least so many dB; None for both where there is none."""
    for entry in history:
        if entry["psnr"] >= psnr:
            return {key: entry[key] for key in ("iteration", "seconds")}
    return {"iteration": None, "seconds": None}
