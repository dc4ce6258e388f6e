"""Schedules: functions from the number of optimizer steps done to a factor on a group's learning rate.

A schedule keeps no state, so there is nothing to save but the step. Here too is the one rule by which
settings that are counted in steps scale with the length of a run: they are given for a run of 30,000
iterations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from gsopt.errors import InputError

Schedule = Callable[[int], float]
REFERENCE_ITERATIONS = 30_000  # the length of run that step-valued settings are given for

T = TypeVar("T")


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
        return "constant" if self.factor == 1 else f"constant:{self.factor:g}"


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
        _require(self.steps >= 1, "steps", "at least 1", self.steps)
        _require(self.delay_steps >= 0, "delay steps", "0 or more", self.delay_steps)
        _require(0 <= self.delay_factor <= 1, "delay factor", "0 to 1", self.delay_factor)

    def __call__(self, step: int) -> float:
        factor = self.final ** min(step / self.steps, 1.0)
        if step < self.delay_steps:
            rise = math.sin(0.5 * math.pi * step / self.delay_steps)
            factor *= self.delay_factor + (1 - self.delay_factor) * rise
        return factor

    def __str__(self) -> str:
        delay = f":{self.delay_steps}:{self.delay_factor:g}" if self.delay_steps else ""
        return f"exp:{self.final:g}{delay}"


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
        return f"gamma:{self.gamma:g}"


# One row a kind: how it is written, how many arguments it takes at least and at most, and what it makes of
# them and of the length of the run.
_KINDS: dict[str, tuple[str, int, int, Callable[[list[float], int], Schedule]]] = {
    "constant": ("constant[:FACTOR]", 0, 1, lambda args, iterations: Constant(*args)),
    "exp": (
        "exp:FINAL_FACTOR[:DELAY_STEPS[:DELAY_FACTOR]]",
        1,
        3,
        lambda args, iterations: LogLinear(args[0], iterations, *_whole(args[1:2]), *args[2:]),
    ),
    "gamma": ("gamma:FACTOR_OF_A_STEP", 1, 1, lambda args, iterations: Exponential(*args)),
}


def parse_schedule(text: str, iterations: int) -> Schedule:
    """A schedule from its text form, for example ``"exp:0.01"``: log-linear to 1/100 at the end of the run.

    | text | schedule |
    |---|---|
    | `constant` or `constant:FACTOR` | :class:`Constant` |
    | `exp:FINAL_FACTOR`, `exp:FINAL_FACTOR:DELAY_STEPS:DELAY_FACTOR` | :class:`LogLinear` over the run |
    | `gamma:FACTOR_OF_A_STEP` | :class:`Exponential` |

    Args:
        text: one kind and its arguments, separated by colons.
        iterations: length of the run in optimizer steps.

    Raises:
        InputError: unknown kind, or an argument that is missing, superfluous, no number or out of range; the
            message quotes the bad part.
    """
    kind, *words = text.strip().split(":")
    if kind not in _KINDS:
        choices = ", ".join(usage for usage, *_ in _KINDS.values())
        raise InputError(f'schedule "{text}": "{kind}" is not a schedule; choose from {choices}')
    usage, fewest, most, build = _KINDS[kind]
    if not fewest <= len(words) <= most:
        raise InputError(f'schedule "{text}": expected {usage}, found {len(words)} arguments')
    args = []
    for word in words:
        try:
            args.append(float(word))
        except ValueError:
            raise InputError(f'schedule "{text}": "{word}" is not a number; expected {usage}') from None
    try:
        schedule = build(args, iterations)
        schedule(iterations)
    except ValueError as error:
        raise InputError(f'schedule "{text}": {error}; expected {usage}') from None
    except OverflowError:
        raise InputError(
            f'schedule "{text}": grows beyond all numbers in {iterations} iterations; '
            f'give less than "{words[0]}"'
        ) from None
    return schedule


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


def scaled(of_30k: int, at_least: int = 1) -> Any:
    """A dataclass field for a setting counted in steps, given for a run of 30,000 iterations.

    Its default is None: "scale with the run", which :func:`resolve_steps` does. Annotate it `int | None`.

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


def _whole(args: list[float]) -> list[int]:
    for value in args:
        _require(value.is_integer(), "steps", "a whole number", value)
    return [int(value) for value in args]


def _require(condition: bool, what: str, expected: str, found: float) -> None:
    if not condition:
        raise ValueError(f"{what}: expected {expected}, found {found:g}")
