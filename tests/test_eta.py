"""The time left: what is foretold in a run, against what its steps then took."""

import pytest

from gsopt.eta import Ahead, Eta
from gsopt.schedules import reduction
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy, Strategy

# `fox` at 270x480, 2,000 iterations, one thread: Gaussians at the end of each 100 steps, and the mean
# processor milliseconds of a step in them.
FOX = [
    *((19810, 3.45), (25247, 4.97), (31702, 9.08), (38850, 11.4), (45801, 13.12), (51851, 14.58)),
    *((59688, 26.97), (66734, 28.74), (73274, 29.09), (73274, 30.61), (73274, 30.55), (73274, 31.43)),
    *((73274, 31.4), (73274, 32.19), (73274, 31.01), (73274, 31.83), (73274, 31.95), (73274, 32.86)),
    *((73274, 31.57), (73274, 30.95)),
]


def foretold(strategy, length, pixels, milliseconds, gaussians, parts, every=10):
    """At these parts of a run: the seconds foretold, and those it then took."""
    eta = Eta(Ahead(length, pixels, strategy.forecast))
    taken = [milliseconds(step) / 1000 for step in range(1, length + 1)]
    found = {}
    for step in range(every, length, every):
        eta.report(step, 1000 * sum(taken[step - every : step]) / every, gaussians(step))
        if step in (stops := [round(part * length) for part in parts]):
            found[parts[stops.index(step)]] = (eta.seconds(), sum(taken[step:]))
    return found


def photo(length, full=270 * 480):
    return lambda step: full / reduction(step, length) ** 2


@pytest.mark.parametrize(("part", "within"), [(0.1, 0.2), (0.25, 0.2), (0.5, 0.1), (0.75, 0.1)])
def test_of_a_real_run(part, within):
    """Steps get nine times as slow in it. Like those so far, the rest would take a fifth of that at 10 %."""
    strategy = DefaultStrategy().resolve(2000)

    def milliseconds(step):
        return FOX[(step - 1) // 100][1]

    def gaussians(step):
        return FOX[step // 100 - 1][0] if step >= 100 else 13_960

    said, took = foretold(strategy, 2000, photo(2000), milliseconds, gaussians, [part])[part]
    assert abs(said - took) < within * took
    if part == 0.1:
        so_far = 9 * sum(milliseconds(step) for step in range(1, 201)) / 1000
        assert so_far < took / 5


@pytest.mark.parametrize("weights", [(1e-4, 0.0), (0.0, 1e-4), (1e-4, 2e-4), (2e-4, 5e-5)])
@pytest.mark.parametrize("kind", [BudgetStrategy, MCMCStrategy])
def test_of_a_strategy_whose_growth_is_known(kind, weights):
    strategy = kind(max_gaussians=60_000).resolve(4000)
    pixels = photo(4000)

    def gaussians(step):
        return strategy.forecast(0, 8000, step, 0.0)

    def milliseconds(step):
        return weights[0] * pixels(step) + weights[1] * gaussians(step)

    if kind is BudgetStrategy:
        strategy._start = 8000
    for part, (said, took) in foretold(
        strategy, 4000, pixels, milliseconds, gaussians, [0.1, 0.25, 0.5]
    ).items():
        assert abs(said - took) < {0.1: 0.35, 0.25: 0.15, 0.5: 0.05}[part] * took, part


def test_nothing_is_said_before_the_first_report():
    assert Eta(Ahead(100, lambda step: 1000.0, Strategy().forecast)).seconds() is None


def test_a_machine_that_gets_slower_is_noticed():
    eta = Eta(Ahead(1000, lambda step: 1000.0, Strategy().forecast))
    for step in range(10, 510, 10):
        eta.report(step, 2.0, 500)
    assert eta.seconds() == pytest.approx(1.0, rel=1e-6)
    for step in range(510, 610, 10):
        eta.report(step, 4.0, 500)
    assert 1.3 < eta.seconds() < 1.7  # 1.6 at the new pace


def test_tests_on_the_way_count():
    clock = {"evaluate": 5.0}  # of an earlier session
    eta = Eta(Ahead(1000, lambda step: 1000.0, Strategy().forecast, tests=(500, 800, 1000), views=10), clock)
    eta.report(490, 1.0, 500)
    before = eta.seconds()
    assert before == pytest.approx(0.51 + 3 * 0.4 * 10 * 0.001, rel=1e-6)
    clock["evaluate"] += 2.0
    eta.report(510, 1.0, 500)
    assert eta.seconds() == pytest.approx(0.49 + 2 * 2.0, rel=1e-6)


FORECASTS = {  # strategy, now, Gaussians, step, growth -> Gaussians
    "none stays": (Strategy(), 10, 500, 1000, 3.0, 500),
    "default grows until it stops": (DefaultStrategy(), 10_000, 500, 30_000, 0.01, 546),
    "default does not shrink": (DefaultStrategy(), 10_000, 500, 30_000, -3.0, 500),
    "default is done": (DefaultStrategy(), 15_000, 500, 30_000, 3.0, 500),
    "default has a limit": (DefaultStrategy(max_gaussians=520), 10_000, 500, 30_000, 3.0, 520),
    "budget is on its curve": (BudgetStrategy(max_gaussians=1000), 0, 500, 30_000, 3.0, 1000),
    "mcmc multiplies": (MCMCStrategy(max_gaussians=10**9), 1000, 500, 1200, 0.0, 500 * 1.05**2),
    "mcmc has a limit": (MCMCStrategy(max_gaussians=600), 1000, 500, 30_000, 0.0, 600),
    "mcmc without a limit": (MCMCStrategy(), 1000, 500, 1100, 0.0, 525),
    "mcmc without Gaussians": (MCMCStrategy(), 1000, 0, 1100, 0.0, 1),
}


@pytest.mark.parametrize("case", FORECASTS)
def test_forecasts(case):
    strategy, now, count, step, growth, expected = FORECASTS[case]
    assert strategy.resolve(30_000).forecast(now, count, step, growth) == pytest.approx(expected, abs=1)
