"""Timed training steps: whole, and by the stages of the kernel, with the machine measured in between."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

from gsopt import native
from gsopt.bench.machine import Probes, Speed
from gsopt.bench.marks import TrainerMarks
from gsopt.bench.model import cost_of, counts
from gsopt.bench.scenes import VIEWS
from gsopt.device import peak_memory, reset_peak_memory, synchronize
from gsopt.runtime import torch_threads
from gsopt.trainer import Trainer

GLUE = "glue"  # of a step, what is in no other stage: Python, autograd, activations in torch
TORCH_OPTIMIZER = "torch optimizer"  # optimizer.step(), where the kernel's own stage of it is not in use


@dataclass(frozen=True)
class Step:
    """One training step."""

    seconds: float
    stages: dict[str, float]  # seconds by stage: of the kernel, or as `bench.marks` has them on CUDA
    optimizer: float  # seconds in optimizer.step()
    work: dict[str, int]  # `native.Frame.work`; empty on CUDA

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the stages, of torch's optimizer where it is in use, and the rest; they add up."""
        parts = dict(self.stages)
        if not parts.get("optimizer"):
            parts[TORCH_OPTIMIZER] = self.optimizer
        return parts | {GLUE: self.seconds - sum(parts.values())}


class Timed(Protocol):
    """What `repeat` times."""

    def warm_up(self, steps: int = ...) -> None:
        """Untimed steps."""

    def step(self) -> Step:
        """One timed step."""


class Timer:
    """A trainer whose steps are timed, after some that are not. Use it as a context."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.on_cpu = trainer.device.type == "cpu"
        self.marks = None if self.on_cpu else TrainerMarks(trainer)
        self._optimizer = self._begun = 0.0
        before, after = self._before_optimizer, self._after_optimizer
        optimizer = trainer.optimizer
        self._hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def __enter__(self) -> "Timer":
        if self.marks is not None:
            self.marks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.marks is not None:
            self.marks.__exit__()
        self._unhook()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def warm_up(self, steps: int = VIEWS) -> None:
        """Untimed steps: caches, moments, buffers."""
        with torch_threads(1):
            before = self._stages()
            for _ in range(steps):
                self.trainer.train_step()
            synchronize(self.trainer.device)
            if self._stages().get("optimizer") != before.get("optimizer"):  # the kernel measures it: no hooks
                self._unhook()

    def step(self) -> Step:
        """One timed step, with torch on one thread as `Trainer.train` has it."""
        before = self._stages()
        with torch_threads(1):
            begin = time.perf_counter()
            if self.marks is not None:
                self.marks.begin()
            self.trainer.train_step()
            synchronize(self.trainer.device)
            seconds = time.perf_counter() - begin
        stages = {name: value - before[name] for name, value in self._stages().items()}
        if self.marks is not None:
            stages = self.marks.seconds()
        return Step(seconds, stages, self._optimizer, native.Frame.idle_work())

    def _stages(self) -> dict[str, float]:
        return native.stage_seconds() if self.on_cpu else {}

    def _before_optimizer(self, *_: object) -> None:
        self._begun = time.perf_counter()

    def _after_optimizer(self, *_: object) -> None:
        self._optimizer = time.perf_counter() - self._begun


def repeat(
    timers: Mapping[str, Timed],
    rounds: int,
    steps: int,
    *,
    prepare: Callable[[str], Any] = lambda name: None,
    between: Callable[[], Any] = lambda: None,
) -> dict[str, list[list[Step]]]:
    """Steps of each timer in turn, round by round, so that a drift of the machine hits all alike.

    `between` is called at the start of each round; before a timer's turn comes `prepare` with its name, then
    one step that is not counted. Returns the steps by name and round.
    """
    found: dict[str, list[list[Step]]] = {name: [] for name in timers}
    for name, timer in timers.items():
        prepare(name)
        timer.warm_up()
    for _ in range(rounds):
        between()
        for name, timer in timers.items():
            prepare(name)
            timer.warm_up(1)
            found[name].append([timer.step() for _ in range(steps)])
    return found


@dataclass
class Case:
    """A scene that was benched: its size, every timed step, and the machine's speed at each round."""

    name: str
    gaussians: int
    width: int  # pixels
    height: int
    rounds: list[list[Step]]
    speeds: list[Speed] = field(default_factory=list)  # one a round, or none
    memory: dict[str, int] = field(default_factory=dict)  # bytes, see `measure_case`

    @property
    def steps(self) -> list[Step]:
        return [step for round_ in self.rounds for step in round_]

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(step.seconds for step in self.steps)

    @property
    def least(self) -> float:
        """Seconds of the fastest step."""
        return min(step.seconds for step in self.steps)

    @cached_property
    def parts(self) -> dict[str, float]:
        """Median seconds of each part of a step (`Step.parts`), in the order of a step."""
        return cast("dict[str, float]", medians(step.parts for step in self.steps))  # no part is None

    @cached_property
    def work(self) -> dict[str, float]:
        """Means of `Step.work`."""
        each = [step.work for step in self.steps]
        return {name: statistics.fmean(work[name] for work in each) for name in each[0]}

    @property
    def per_matmul(self) -> float | None:
        """Median over rounds of a round's median step by its matrix product: free of the machine's drift."""
        if not self.speeds:
            return None
        pairs = zip(self.rounds, self.speeds, strict=True)
        return statistics.median(_median_step(steps) / speed.matmul_seconds for steps, speed in pairs)

    @cached_property
    def speed(self) -> dict[str, float | None]:
        """Medians of `Speed`, by field."""
        return medians(asdict(speed) for speed in self.speeds)

    @cached_property
    def costs(self) -> dict[str, tuple[float, float]]:
        """Bytes and operations of the parts that have a model."""
        if not self.work:
            return {}
        units = counts(self.gaussians, self.width * self.height, self.work)
        found = {name: cost_of(name, units) for name in self.parts}
        return {name: cost for name, cost in found.items() if cost is not None}

    @property
    def raster_of_peak(self) -> float | None:
        """Operations of compositing, forward and backward, by what the peak would do in its time."""
        peak, stages = self.speed.get("fma_flops_per_second"), ("forward", "backward")
        if not peak or not all(name in self.costs for name in stages):
            return None
        return sum(self.costs[name][1] for name in stages) / sum(self.parts[name] for name in stages) / peak

    def to_json(self) -> dict[str, Any]:
        """All that was measured, and what follows from it."""
        return {
            "name": self.name,
            **{name: getattr(self, name) for name in ("gaussians", "width", "height")},
            "median_seconds": self.median,
            "least_seconds": self.least,
            "per_matmul": self.per_matmul,
            "raster_of_peak": self.raster_of_peak,
            "stage_seconds": self.parts,
            "stage_bytes": {name: cost[0] for name, cost in self.costs.items()},
            "stage_flops": {name: cost[1] for name, cost in self.costs.items()},
            "work": self.work,
            "memory": self.memory,
            "speed": self.speed,
            "speeds": [asdict(speed) for speed in self.speeds],
            "rounds": [[asdict(step) for step in steps] for steps in self.rounds],
        }


def medians(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Median of each key over rows that have the same keys; None where a row has None."""
    rows = list(rows)
    return {name: _median([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _median(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if len(numbers) == len(values) else None


def _median_step(steps: list[Step]) -> float:
    return statistics.median(step.seconds for step in steps)


def measure_case(name: str, trainer: Trainer, probes: Probes | None, rounds: int, steps: int) -> Case:
    """Bench a trainer: `rounds` times the machine's speed, then `steps` timed steps.

    `Case.memory` gets "frames", the bytes of the kernel's buffers, or on CUDA "peak", the most that was held
    on the card, the probes' own (some 700 MiB) included.
    """
    native.Frame.free_idle()
    reset_peak_memory(trainer.device)
    speeds: list[Speed] = []

    def between() -> None:
        if probes is not None:
            speeds.append(probes.measure())

    with Timer(trainer) as timer:
        found = repeat({name: timer}, rounds, steps, between=between)[name]
    on_cpu = trainer.device.type == "cpu"
    memory = {"frames": native.Frame.idle_bytes()} if on_cpu else {"peak": peak_memory(trainer.device)}
    camera = trainer.scene.train[0].camera
    return Case(name, trainer.model.num_gaussians, camera.width, camera.height, found, speeds, memory)
