"""When a run will be done: what the steps that are left take, as images and the model grow on the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from gsopt.schedules import reduction

if TYPE_CHECKING:
    from gsopt.trainer import Trainer

# What a Gaussian takes in a step, in pixels: both parts were fitted to trainings on a CPU of 10,000 to
# 100,000 Gaussians at 15,000 to 230,000 pixels. The run's own steps correct it as they differ in either.
PIXELS_PER_GAUSSIAN = 2.0
PRIOR = 0.1  # weight of that ratio, where a step of the run has 1
MEMORY = 0.97  # weight of the steps before, at each report
SOON = 0.8  # the same for how long a step takes right now
GROWTH_OVER = 300  # steps at least that growth is a mean over: it comes every 100
TEST = 0.4  # what a view of a test takes, in training steps on it, before one was measured
PIECES = 60  # of the steps that are left, each taken at its middle


@dataclass(frozen=True)
class Ahead:
    """What is known of a run before it has begun."""

    last: int  # the run's last step
    pixels: Callable[[int], float]  # of the images of a step
    gaussians: Callable[[int, int, int, float], float]  # `Strategy.forecast`
    tests: tuple[int, ...] = ()  # steps that are followed by a test of the model
    views: int = 0  # in a test


class Eta:
    """The seconds that are left, from the reports of a run so far.

    A step is taken to last a P + b N with P pixels and N Gaussians, where a and b are fitted to the steps so
    far, the latest most, and the whole to how long a step takes right now.
    """

    def __init__(self, ahead: Ahead, clock: Mapping[str, float] | None = None) -> None:
        """`clock`: the seconds so far of each part of the run, kept up to date by others."""
        self.ahead, self.clock = ahead, {} if clock is None else clock
        self._before = self.clock.get("evaluate", 0.0)
        self._moments = [0.0] * 5  # sums over the reports: P P, P N, N N, P t, N t, of thousands and ms
        self._now: float | None = None  # how much longer a step takes than the fit says
        self._reports: list[tuple[int, int]] = []  # steps and Gaussians

    @classmethod
    def of(cls, trainer: "Trainer") -> "Eta":
        """That of a run which is about to train."""
        config, views = trainer.config, trainer.scene.train
        length, last = config.schedule_iterations, config.iterations
        tests = {*(step for step in config.test_iterations if trainer.step < step < last), last}
        tested = min(2 * len(trainer.scene.test) or len(views), len(trainer.scene.test) + len(views))

        @cache
        def of_factor(factor: int) -> float:
            return sum(trainer.feed.views.pixels(i, factor) for i in range(len(views))) / len(views)

        def pixels(step: int) -> float:
            return of_factor(reduction(step, length) if config.coarse_to_fine else 1)

        ahead = Ahead(last, pixels, trainer.strategy.forecast, tuple(sorted(tests)), tested)
        return cls(ahead, trainer.clock.seconds)

    def report(self, step: int, milliseconds: float, gaussians: int) -> None:
        """After `step`: how long a step has taken since the last report, and how many Gaussians there are."""
        p, n = self._parts(step, gaussians)
        new = (p * p, p * n, n * n, p * milliseconds, n * milliseconds)
        self._moments = [MEMORY * old + now for old, now in zip(self._moments, new, strict=True)]
        self._reports.append((step, gaussians))
        a, b = self._fit()
        ratio = milliseconds / max(a * p + b * n, 1e-9)
        self._now = ratio if self._now is None else SOON * self._now + (1 - SOON) * ratio

    def seconds(self) -> float | None:
        """From the last report to the end of the run; None before the first."""
        if self._now is None:
            return None
        ahead, (a, b) = self.ahead, self._fit()
        now, count = self._reports[-1]
        growth = self._recent_growth()
        edges = sorted({now + round((ahead.last - now) * i / PIECES) for i in range(PIECES + 1)})
        total = 0.0
        for begin, end in pairwise(edges):
            middle = (begin + end + 1) // 2
            p, n = self._parts(middle, ahead.gaussians(now, count, middle, growth))
            total += (end - begin) * (a * p + b * n)
        return total * self._now / 1000 + self._tests_left(now) * self._test_seconds()

    def _parts(self, step: int, gaussians: float) -> tuple[float, float]:
        """What a step is made of, in thousands: pixels, and Gaussians as pixels."""
        return self.ahead.pixels(step) / 1000, PIXELS_PER_GAUSSIAN * gaussians / 1000

    def _fit(self) -> tuple[float, float]:
        """Milliseconds of a thousand of each, neither below 0, by least squares.

        Steps with one number of pixels, and hardly another of Gaussians, do not tell one from the other. So a
        little of the prior, both equal, is mixed in.
        """
        pp, pn, nn, pt, nt = self._moments
        level = (pt + nt) / max(pp + 2 * pn + nn, 1e-12)  # where both are equal
        ridge = PRIOR * (pp + nn)
        pp, nn, pt, nt = pp + ridge, nn + ridge, pt + ridge * level, nt + ridge * level
        scale = max(pp * nn - pn * pn, 1e-12)
        a, b = (nn * pt - pn * nt) / scale, (pp * nt - pn * pt) / scale
        if a < 0:
            return 0.0, nt / nn
        return (pt / pp, 0.0) if b < 0 else (a, b)

    def _recent_growth(self) -> float:
        """Gaussians more a step, over the last half of the steps so far, or the last few hundred."""
        now, count = self._reports[-1]
        since = now - max((now - self._reports[0][0]) / 2, GROWTH_OVER)
        begin, before = next(report for report in self._reports if report[0] >= since)
        return (count - before) / max(now - begin, 1)

    def _tests_left(self, now: int) -> int:
        return sum(step > now for step in self.ahead.tests) or 1

    def _test_seconds(self) -> float:
        """Of one test: as long as those of this session took, or as one would take by the fit."""
        spent = self.clock.get("evaluate", 0.0) - self._before
        done = len(self.ahead.tests) - self._tests_left(self._reports[-1][0])
        if done > 0 and spent > 0:
            return spent / done
        (p, n), (a, b) = self._parts(self.ahead.last, self._reports[-1][1]), self._fit()
        return TEST * self.ahead.views * (a * p + b * n) * (self._now or 1.0) / 1000
