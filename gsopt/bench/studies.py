"""The tables that are asked for by flags: threads, freeze sets, growth of the scene."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gsopt import native
from gsopt.bench.measure import Case, Timer, repeat
from gsopt.bench.memory import step_bytes
from gsopt.bench.scenes import Size, covering, filling, trainer_of

FREEZE_SETS = (  # attributes, --strategy; the first is what the others are compared with
    ((), "default"),
    ((), "none"),
    (("xyz", "scaling", "rotation"), "none"),
    (("xyz", "scaling", "rotation", "opacity"), "none"),
    (("feature_rest",), "none"),
    (("feature_dc", "feature_rest"), "none"),
    (("opacity",), "none"),
)
GROWING_GAUSSIANS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
GROWING_SIDES = (200, 400, 800, 1600)  # pixels
FIXED_SIDE, FIXED_GAUSSIANS = 400, 30_000
GROWTH_VIEWS, GROWTH_ROUNDS, GROWTH_STEPS = 3, 2, 3


def thread_scaling(size: Size, threads: Sequence[int], rounds: int, steps: int) -> dict[int, Case]:
    """The same training with each number of threads in turn."""
    timer = Timer(trainer_of(size, device="cpu", threads=max(threads)))
    try:
        with timer:
            names = {str(count): timer for count in threads}
            found = repeat(names, rounds, steps, prepare=lambda name: native.set_num_threads(int(name)))
    finally:
        native.set_num_threads(max(threads))
    return {int(name): _case(name, size, runs) for name, runs in found.items()}


def freeze_sets(size: Size, threads: int, rounds: int, steps: int) -> list[tuple[tuple[str, ...], str, Case]]:
    """What each set of frozen attributes costs: (attributes, strategy, measurement), as in `FREEZE_SETS`."""
    with ExitStack() as stack:
        timers = {}
        for frozen, strategy in FREEZE_SETS:
            trainer = trainer_of(size, frozen, strategy=strategy, device="cpu", threads=threads)
            timers[f"{'+'.join(frozen) or 'nothing'}, {strategy}"] = stack.enter_context(Timer(trainer))
        found = repeat(timers, rounds, steps)
    cases = (_case(name, size, runs) for name, runs in found.items())
    return [(*chosen, case) for chosen, case in zip(FREEZE_SETS, cases, strict=True)]


def _case(name: str, size: Size, rounds: list) -> Case:
    return Case(name, size.gaussians, size.width, size.height, rounds)


@dataclass
class Growth:
    """One quantity grows, everything else stays."""

    by: str  # "gaussians" or "pixels"
    cases: list[Case]
    step_bytes: list[int]  # of each case, see `memory.step_bytes`

    @property
    def amounts(self) -> list[int]:
        """How much there is of it in each case."""
        if self.by == "gaussians":
            return [case.gaussians for case in self.cases]
        return [case.width * case.height for case in self.cases]

    def exponents(self) -> dict[str, float | None]:
        """Fitted power of the growing quantity that the step and each part of it takes."""
        rows = {"step": [case.median for case in self.cases]}
        rows |= {part: [case.parts[part] for case in self.cases] for part in self.cases[0].parts}
        return {name: exponent(self.amounts, seconds) for name, seconds in rows.items()}

    def bytes_each(self) -> float:
        """Bytes of `step_bytes` for each Gaussian or pixel more: the slope of a line through the cases."""
        return float(np.polyfit(self.amounts, self.step_bytes, 1)[0])

    def to_json(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "amounts": self.amounts,
            "exponents": self.exponents(),
            "step_bytes": self.step_bytes,
            "bytes_each": self.bytes_each(),
            "cases": [case.to_json() for case in self.cases],
        }


def exponent(amounts: Sequence[float], values: Sequence[float]) -> float | None:
    """k of values ~ amounts^k by least squares on the logarithms; None where a value is not above 0."""
    if len(amounts) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit([math.log(a) for a in amounts], [math.log(v) for v in values], 1)[0])


def growing_gaussians(threads: int) -> Growth:
    """More and more Gaussians in an image that they cover alike: widths shrink as N^-1/2."""
    sizes = [
        Size(f"{n}@{FIXED_SIDE}x{FIXED_SIDE}", n, FIXED_SIDE, FIXED_SIDE, covering(n))
        for n in GROWING_GAUSSIANS
    ]
    return _grow("gaussians", sizes, threads)


def growing_pixels(threads: int) -> Growth:
    """The same Gaussians in larger and larger images: they grow with the pixels, in pixels."""
    n = FIXED_GAUSSIANS
    fixed = Size("", n, 0, 0, filling(n))
    sizes = [replace(fixed, name=f"{n}@{side}x{side}", width=side, height=side) for side in GROWING_SIDES]
    return _grow("pixels", sizes, threads)


def _grow(by: str, sizes: Sequence[Size], threads: int) -> Growth:
    growth = Growth(by, [], [])
    for size in sizes:
        native.Frame.free_idle()
        with Timer(trainer_of(size, views=GROWTH_VIEWS, device="cpu", threads=threads)) as timer:
            found = repeat({size.name: timer}, GROWTH_ROUNDS, GROWTH_STEPS)[size.name]
            growth.step_bytes.append(step_bytes(timer))
        growth.cases.append(_case(size.name, size, found))
    return growth
