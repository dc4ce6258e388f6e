"""What TensorBoard costs: the same training steps with a monitor that writes and with one that does not."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsopt.bench.scenes import NEVER, Size, trainer_of
from gsopt.device import synchronize
from gsopt.monitor import NORMS_EVERY, Monitor
from gsopt.progress import LOSSES_EVERY, Progress
from gsopt.recorder import Recorder
from gsopt.runtime import torch_threads
from gsopt.trainer import Trainer


@dataclass(frozen=True)
class MonitorCost:
    """Seconds of a training step, its reports included; means over a period of the monitor."""

    without: float
    writing: float

    @property
    def share(self) -> float:
        """Part of a step that writing adds."""
        return self.writing / self.without - 1


def monitor_cost(size: Size, device: str, threads: int, rounds: int) -> MonitorCost:
    """Steps in turns of one period of the monitor: without writing, writing, writing, without, ...

    Of each step of the period the least over the rounds counts: others may use the machine. The two sides
    differ by the steps that write; the others are taken to be the same, which they are but for noise.
    """
    nothing_else: dict[str, Any] = {"checkpoint_every": NEVER, "test_iterations": (), "save_iterations": ()}
    trainer = trainer_of(size, device=device, threads=threads, **nothing_else)
    with tempfile.TemporaryDirectory() as folder, torch_threads(1), trainer.clock("train"):
        monitors = {"without": Monitor(None), "writing": Monitor(Path(folder))}
        recorder, progress = Recorder(trainer), Progress(0, trainer.config.iterations, quiet=True)
        found: dict[str, list[list[float]]] = {name: [] for name in monitors}
        for turn in range(rounds + 1):
            for name in sorted(monitors, reverse=turn % 2 == 1):
                trainer.monitor = monitors[name]
                found[name].append(_period(trainer, recorder, progress))
        progress.close()
        monitors["writing"].close()
    least = {name: [min(times) for times in zip(*turns[1:], strict=True)] for name, turns in found.items()}
    without, writing = least["without"], least["writing"]
    added = sum(writing[i] - without[i] for i in range(LOSSES_EVERY - 1, NORMS_EVERY, LOSSES_EVERY))
    mean = sum(without) / NORMS_EVERY
    return MonitorCost(without=mean, writing=mean + added / NORMS_EVERY)


def _period(trainer: Trainer, recorder: Recorder, progress: Progress) -> list[float]:
    """Seconds of each step up to the one whose norms are written."""
    seconds = []
    for _ in range(NORMS_EVERY):
        begin = time.perf_counter()
        result = trainer.train_step()
        progress.advance()
        recorder.after(result, progress)
        synchronize(trainer.device)
        seconds.append(time.perf_counter() - begin)
    return seconds
