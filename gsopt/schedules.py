"""Schedules: functions from the number of optimizer steps done to a factor on a group's learning rate.

A schedule keeps no state, so there is nothing to save but the step. `str()` of one is its text form, which
`gsopt.schedule_text.parse_schedule` reads. Here too is the one rule by which settings that are counted in
steps scale with the length of a run: they are given for a run of 30,000 iterations.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

Schedule = Callable[[int], float]
REFERENCE_ITERATIONS = 30_000  # the length of run that step-valued settings are given for

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Steps = int  # what is read is resolved; None is but the sign that it has to be
else:
    DataclassInstance = object
    Steps = int | None

T = TypeVar("T", bound=DataclassInstance)


@dataclass(frozen=True)
class Constant:
    """The same factor at every step.

    Args:
        factor: finite, 0 or more.

    Raises:
        ValueError: `factor` is out of range.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        _require(0 <= self.factor < math.inf, "factor", "a number, 0 or more", self.factor)

    def __call__(self, step: int) -> float:
        return self.factor

    def __str__(self) -> str:
        return "constant" if self.factor == 1 else f"constant:{_number(self.factor)}"


@dataclass(frozen=True)
class LogLinear:
    """From 1 to `final`, linear in the logarithm, then constant: the decay of the positions in 3DGS.

    ``delay(step) * final ** min(step / steps, 1)`` where ``delay`` rises from `delay_factor` to 1 over the
    first `delay_steps` steps as a quarter of a sine. The formula is `learning_rate_decay` of JaxNeRF (Deng
    et al. 2020), which Plenoxels and 3DGS (Kerbl et al. 2023) took over; 3DGS ships with `delay_steps` 0.

    Args:
        final: factor at and after the end, finite, > 0.
        steps: length of the decay in optimizer steps, at least 1.
        delay_steps: length of the slow start in optimizer steps; 0 is none.
        delay_factor: factor at step 0 of a slow start, 0..1.

    Raises:
        ValueError: an argument is out of range.
    """

    final: float
    steps: int
    delay_steps: int = 0
    delay_factor: float = 0.01

    def __post_init__(self) -> None:
        _require(0 < self.final < math.inf, "final factor", "a number, more than 0", self.final)
        _require_steps(self.steps, "steps", 1)
        _require_steps(self.delay_steps, "delay steps", 0)
        _require(0 <= self.delay_factor <= 1, "delay factor", "0 to 1", self.delay_factor)

    def __call__(self, step: int) -> float:
        factor = self.final ** min(step / self.steps, 1.0)
        if step < self.delay_steps:
            rise = math.sin(0.5 * math.pi * step / self.delay_steps)
            factor *= self.delay_factor + (1 - self.delay_factor) * rise
        return factor

    @property
    def _head(self) -> str:
        """Its text without the length, which is that of the part it is written in."""
        if (self.delay_steps, self.delay_factor) == (0, 0.01):
            return f"exp:{_number(self.final)}"
        return f"exp:{_number(self.final)}:{self.delay_steps}:{_number(self.delay_factor)}"

    def __str__(self) -> str:
        return _part(self)


@dataclass(frozen=True)
class Exponential:
    """``gamma ** step``, without end: torch's `ExponentialLR` stepped once an optimizer step.

    Args:
        gamma: factor of one step, finite, > 0.

    Raises:
        ValueError: `gamma` is out of range.
    """

    gamma: float

    def __post_init__(self) -> None:
        _require(0 < self.gamma < math.inf, "gamma", "a number, more than 0", self.gamma)

    def __call__(self, step: int) -> float:
        return self.gamma**step

    def __str__(self) -> str:
        return f"gamma:{_number(self.gamma)}"


@dataclass(frozen=True)
class StepDecay:
    """``gamma ** (step // step_size)``: torch's `StepLR` stepped once an optimizer step.

    Args:
        step_size: optimizer steps between two decays, at least 1.
        gamma: factor of one decay, finite, > 0.

    Raises:
        ValueError: an argument is out of range.
    """

    step_size: int
    gamma: float

    def __post_init__(self) -> None:
        _require_steps(self.step_size, "step size", 1)
        _require(0 < self.gamma < math.inf, "gamma", "a number, more than 0", self.gamma)

    def __call__(self, step: int) -> float:
        return self.gamma ** (step // self.step_size)

    def __str__(self) -> str:
        return f"step:{self.step_size}:{_number(self.gamma)}"


@dataclass(frozen=True)
class MultiStepDecay:
    """`gamma` once more from each milestone on: torch's `MultiStepLR` stepped once an optimizer step.

    Args:
        milestones: optimizer steps done, at least 1, rising.
        gamma: factor of one decay, finite, > 0.

    Raises:
        ValueError: an argument is out of range, or there is no milestone.
    """

    milestones: tuple[int, ...]
    gamma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _require(len(self.milestones) >= 1, "milestones", "at least 1", 0)
        previous = 0
        for milestone in self.milestones:
            _require_steps(milestone, "milestones", previous + 1)
            previous = milestone
        _require(0 < self.gamma < math.inf, "gamma", "a number, more than 0", self.gamma)

    def __call__(self, step: int) -> float:
        return self.gamma ** bisect_right(self.milestones, step)

    def __str__(self) -> str:
        return f"multistep:{':'.join(map(str, self.milestones))}:{_number(self.gamma)}"


@dataclass(frozen=True)
class Cosine:
    """From 1 to `final` along half a period of a cosine, then constant (Loshchilov & Hutter 2017).

    Up to `steps` this is torch's `CosineAnnealingLR` with ``T_max=steps`` and ``eta_min=final * lr``, which
    then rises again.

    Args:
        final: factor at and after the end, finite, 0 or more.
        steps: length in optimizer steps, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """

    final: float
    steps: int

    def __post_init__(self) -> None:
        _require(0 <= self.final < math.inf, "final factor", "a number, 0 or more", self.final)
        _require_steps(self.steps, "steps", 1)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.final
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / self.steps)) / 2

    @property
    def _head(self) -> str:
        """Its text without the length, which is that of the part it is written in."""
        return f"cosine:{_number(self.final)}"

    def __str__(self) -> str:
        return _part(self)


@dataclass(frozen=True)
class WarmUp:
    """From `start` to 1 in a straight line, then constant: torch's `LinearLR`.

    Args:
        steps: length in optimizer steps, at least 1.
        start: factor at step 0, 0..1.

    Raises:
        ValueError: an argument is out of range.
    """

    steps: int
    start: float = 0.01

    def __post_init__(self) -> None:
        _require_steps(self.steps, "steps", 1)
        _require(0 <= self.start <= 1, "start factor", "0 to 1", self.start)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        return self.start + (1 - self.start) * step / self.steps

    def __str__(self) -> str:
        return f"warmup:{self.steps}" + ("" if self.start == 0.01 else f":{_number(self.start)}")


@dataclass(frozen=True)
class Product:
    """Several schedules at once, multiplied: a warm-up and a decay, for example.

    Args:
        factors: two or more.

    Raises:
        ValueError: fewer.
    """

    factors: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        _require(len(self.factors) >= 2, "factors", "two or more schedules", len(self.factors))

    def __call__(self, step: int) -> float:
        return math.prod(factor(step) for factor in self.factors)

    def __str__(self) -> str:
        return _part(self)


@dataclass(frozen=True)
class Sequential:
    """Schedules one after another; each counts steps from where it begins. The last one has no end.

    Args:
        parts: two or more.
        lengths: optimizer steps that each part but the last lasts, at least 1.

    Raises:
        ValueError: a length is out of range, or there are too few or too many.
    """

    parts: tuple[Schedule, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "lengths", tuple(self.lengths))
        _require(len(self.parts) >= 2, "parts", "two or more schedules", len(self.parts))
        expected = len(self.parts) - 1
        _require(
            len(self.lengths) == expected, "lengths", f"{expected}, one fewer than parts", len(self.lengths)
        )
        for length in self.lengths:
            _require_steps(length, "length", 1)

    def __call__(self, step: int) -> float:
        for part, length in zip(self.parts, self.lengths, strict=False):
            if step < length:
                return part(step)
            step -= length
        return self.parts[-1](step)

    def __str__(self) -> str:
        return " then ".join(map(_part, self.parts, (*self.lengths, None)))


def _part(schedule: Schedule, length: int | None = None) -> str:
    """`schedule` in text as a part that lasts `length` steps, or as the last part, which lasts on."""
    factors = schedule.factors if isinstance(schedule, Product) else (schedule,)
    spans = {factor.steps for factor in factors if isinstance(factor, LogLinear | Cosine)}
    if length is None and len(spans) == 1:
        (length,) = spans
    words = []
    for factor in factors:
        if isinstance(factor, LogLinear | Cosine) and factor.steps == length:
            words.append(factor._head)
        else:
            whole = isinstance(factor, LogLinear | Cosine | Product | Sequential)
            words.append(f"({factor})" if whole else str(factor))
    is_own = length is None or (isinstance(schedule, WarmUp) and schedule.steps == length)
    return ",".join(words) + ("" if is_own else f"@{length}")


FIRST_LOOK = 7_000  # of 30,000: where the original 3DGS tests and saves for the first time
SETTLING_PART, SETTLED = 5, 0.1  # a fifth of the run, and the factor at its end

# Factor on the sides of the images, the part of the run up to which it holds, and its last step at most.
COARSE_TO_FINE = ((4, 0.1, 250), (2, 0.3, 750))


def reduction(step: int, iterations: int) -> int:
    """Factor by which step `step` of a run, counted from 1, divides the sides of its images: 4, 2, then 1.

    Few pixels decide where the first Gaussians go as well as many do, in a fraction of the time
    (DashGaussian, Chen et al. 2025). The last 70% of a run, and all but its first 750 steps,
    are at full resolution.
    """
    for factor, part, most in COARSE_TO_FINE:
        if step <= min(part * iterations, most):
            return factor
    return 1


def settling(iterations: int) -> Schedule | None:
    """The factor that lets a run come to rest: 1, and in its last fifth a cosine to a tenth.

    None for a run that is too short to have a fifth. Source: the "stable, then decay" schedules of Hu et al.,
    "MiniCPM" (2024); what it brings here is in docs/optimizers.md.
    """
    last = iterations // SETTLING_PART
    if last < 1:
        return None
    return Sequential((Constant(), Cosine(SETTLED, last)), (iterations - last,))


def scaled(of_30k: int, at_least: int = 1) -> Any:
    """A dataclass field for a setting counted in steps, given for a run of 30,000 iterations.

    Its default is None: "scale with the run", which :func:`resolve_steps` does. Annotate it `Steps`.

    Args:
        of_30k: the value in a run of 30,000 iterations; 0 means "off" and stays 0.
        at_least: floor in short runs, for what needs a number of steps that no run can shorten.
    """
    return field(default=None, metadata={"of_30k": of_30k, "at_least": at_least})


def resolve_steps(settings: T, iterations: int) -> T:
    """A copy of a dataclass in which each :func:`scaled` field that is None has its value for this run.

    The value is ``of_30k * iterations / 30_000``, rounded to the nearest whole number (halves up) and not
    below the field's floor. A value that was given explicitly stays as it is.

    Raises:
        ValueError: `iterations` is not positive.
    """
    _require(iterations >= 1, "iterations", "at least 1", iterations)
    changes = {}
    for setting in fields(settings):
        of_30k = setting.metadata.get("of_30k")
        if of_30k is not None and getattr(settings, setting.name) is None:
            nearest = (2 * of_30k * iterations + REFERENCE_ITERATIONS) // (2 * REFERENCE_ITERATIONS)
            changes[setting.name] = max(nearest, setting.metadata["at_least"]) if of_30k else 0
    return replace(settings, **changes)


def _number(value: float) -> str:
    """The shortest text that is read as this number again."""
    if isinstance(value, int):
        return str(value)
    return short if float(short := f"{value:g}") == value else repr(float(value))


def _require_steps(value: int, what: str, least: int) -> None:
    _require(isinstance(value, int) and value >= least, what, f"a whole number, at least {least}", value)


def _require(condition: bool, what: str, expected: str, found: float) -> None:
    if not condition:
        raise ValueError(f"{what}: expected {expected}, found {found:g}")
