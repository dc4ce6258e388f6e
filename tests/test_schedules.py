"""Schedules at the start, middle, end and past the end, and beside torch's; settings scaled to the run."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.optim import lr_scheduler

from gsopt.schedules import (
    Constant,
    Cosine,
    Exponential,
    LogLinear,
    MultiStepDecay,
    Product,
    Sequential,
    StepDecay,
    WarmUp,
    resolve_steps,
    scaled,
)

STEPS = [0, 500, 1000, 5000]
VALUES = {  # schedule over 1,000 steps: factors at STEPS
    "constant": (Constant(), [1, 1, 1, 1]),
    "constant factor": (Constant(0.5), [0.5, 0.5, 0.5, 0.5]),
    "log-linear": (LogLinear(0.01, 1000), [1, 0.1, 0.01, 0.01]),
    "log-linear upwards": (LogLinear(4.0, 1000), [1, 2, 4, 4]),
    "delay over the whole run": (
        LogLinear(0.01, 1000, delay_steps=1000, delay_factor=0.2),
        [0.2, 0.1 * (0.2 + 0.8 * math.sin(math.pi / 4)), 0.01, 0.01],
    ),
    "delay over the first half": (LogLinear(0.01, 1000, 500, 0.0), [0, 0.1, 0.01, 0.01]),
    "exponential": (Exponential(0.999), [1, 0.999**500, 0.999**1000, 0.999**5000]),
    "step": (StepDecay(500, 0.1), [1, 0.1, 0.01, 1e-10]),
    "multi-step": (MultiStepDecay((500, 1001), 0.1), [1, 0.1, 0.1, 0.01]),
    "cosine": (Cosine(0.2, 1000), [1, 0.6, 0.2, 0.2]),
    "cosine to nothing": (Cosine(0.0, 500), [1, 0, 0, 0]),
    "warm-up": (WarmUp(1000, 0.5), [0.5, 0.75, 1, 1]),
    "at once": (Product((WarmUp(1000, 0.0), Cosine(0.0, 1000))), [0, 0.25, 0, 0]),
    "one after another": (Sequential((WarmUp(500, 0.0), Cosine(0.5, 500)), (500,)), [0, 1, 0.5, 0.5]),
    "each part counts from its own beginning": (
        Sequential((Constant(3.0), StepDecay(500, 0.1), Constant(2.0)), (500, 4000)),
        [3, 1, 0.1, 2],
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_start_middle_end_and_past_the_end(case):
    schedule, expected = VALUES[case]
    assert [schedule(step) for step in STEPS] == pytest.approx(expected)


def test_log_linear_is_the_formula_of_the_original():
    first, last, length, delay, factor = 1.6e-4, 1.6e-6, 30_000, 100, 0.01
    for step in (0, 1, 50, 99, 100, 101, 15_000, 29_999, 30_000, 40_000):
        start = factor + (1 - factor) * math.sin(0.5 * math.pi * min(step / delay, 1))
        t = min(step / length, 1)
        expected = start * math.exp(math.log(first) * (1 - t) + math.log(last) * t)
        assert first * LogLinear(0.01, length, delay, factor)(step) == pytest.approx(expected, rel=1e-12)


OF_TORCH = {  # ours: torch's own scheduler, and the steps up to which it is the same
    "exponential": (Exponential(0.995), lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.995), 400),
    "step": (StepDecay(30, 0.5), lambda opt: lr_scheduler.StepLR(opt, step_size=30, gamma=0.5), 400),
    "multi-step": (
        MultiStepDecay((1, 50, 51, 300), 0.3),
        lambda opt: lr_scheduler.MultiStepLR(opt, milestones=[1, 50, 51, 300], gamma=0.3),
        400,
    ),
    "cosine": (
        Cosine(0.1, 300),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=300, eta_min=0.1 * LR),
        300,  # after which torch's rises again
    ),
    "warm-up": (
        WarmUp(100, 0.25),
        lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=100),
        400,
    ),
    "one after another": (
        Sequential((WarmUp(20, 0.1), Constant(), Exponential(0.9)), (20, 30)),
        lambda opt: lr_scheduler.SequentialLR(
            opt,
            [
                lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=20),
                lr_scheduler.ConstantLR(opt, factor=1.0),
                lr_scheduler.ExponentialLR(opt, gamma=0.9),
            ],
            milestones=[20, 50],
        ),
        100,
    ),
    "at once": (
        Product((WarmUp(20, 0.1), StepDecay(30, 0.5))),
        lambda opt: lr_scheduler.ChainedScheduler(
            [
                lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=20),
                lr_scheduler.StepLR(opt, step_size=30, gamma=0.5),
            ]
        ),
        100,
    ),
}
LR = 0.3


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR of torch calls its own parts so
@pytest.mark.parametrize("case", OF_TORCH)
def test_the_rates_are_those_of_torch_at_every_step(case):
    schedule, build, steps = OF_TORCH[case]
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=LR)
    theirs = build(opt)
    for step in range(steps + 1):
        assert opt.param_groups[0]["lr"] == pytest.approx(LR * schedule(step), rel=1e-9), step
        opt.step()
        theirs.step()


BAD_ARGUMENTS = {
    "final 0": (lambda: LogLinear(0, 10), "final factor: expected a number, more than 0, found 0"),
    "no steps": (lambda: LogLinear(0.1, 0), "steps: expected a whole number, at least 1, found 0"),
    "delay": (lambda: LogLinear(0.1, 10, -1), "delay steps: expected a whole number, at least 0, found -1"),
    "delay factor": (lambda: LogLinear(0.1, 10, 1, 2.0), "delay factor: expected 0 to 1, found 2"),
    "gamma": (lambda: Exponential(0), "gamma: expected a number, more than 0, found 0"),
    "factor": (lambda: Constant(-1), "factor: expected a number, 0 or more, found -1"),
    "step size": (lambda: StepDecay(0, 0.1), "step size: expected a whole number, at least 1, found 0"),
    "part of a step": (lambda: StepDecay(2.5, 0.1), "step size: expected a whole number.* found 2.5"),
    "step's gamma": (lambda: StepDecay(1, -1), "gamma: expected a number, more than 0, found -1"),
    "no milestone": (lambda: MultiStepDecay((), 0.1), "milestones: expected at least 1, found 0"),
    "falling": (lambda: MultiStepDecay((5, 5), 0.1), "milestones: .* at least 6, found 5"),
    "cosine below 0": (lambda: Cosine(-0.1, 10), "final factor: expected a number, 0 or more, found -0.1"),
    "start": (lambda: WarmUp(10, 1.5), "start factor: expected 0 to 1, found 1.5"),
    "one factor": (lambda: Product((Constant(),)), "factors: expected two or more schedules, found 1"),
    "one part": (lambda: Sequential((Constant(),), ()), "parts: expected two or more schedules, found 1"),
    "lengths": (lambda: Sequential((Constant(),) * 3, (5,)), "lengths: expected 2, one fewer than parts"),
    "length": (lambda: Sequential((Constant(),) * 2, (0,)), "length: .* at least 1, found 0"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case):
    build, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        build()


# ---------------------------------------- settings counted in steps


@dataclass
class Settings:
    start: int | None = scaled(500)
    every: int | None = scaled(100)
    off: int | None = scaled(0)
    recovery: int | None = scaled(3000, at_least=400)
    threshold: float = 0.5


RUNS = {  # iterations: start, every, off, recovery
    30_000: (500, 100, 0, 3000),
    60_000: (1000, 200, 0, 6000),
    7_000: (117, 23, 0, 700),
    2_000: (33, 7, 0, 400),
    150: (3, 1, 0, 400),
    1: (1, 1, 0, 400),
}


@pytest.mark.parametrize("iterations", RUNS)
def test_settings_scale_with_the_run(iterations):
    got = resolve_steps(Settings(), iterations)
    assert (got.start, got.every, got.off, got.recovery) == RUNS[iterations]
    assert got.threshold == 0.5


def test_explicit_values_win_and_resolving_twice_changes_nothing():
    got = resolve_steps(Settings(start=0, recovery=10), 2_000)
    assert (got.start, got.every, got.recovery) == (0, 7, 10)
    assert resolve_steps(got, 30_000) == got
    assert Settings().start is None, "the original is not touched"


def test_a_run_of_no_iterations_is_refused():
    with pytest.raises(ValueError, match="iterations: expected at least 1, found 0"):
        resolve_steps(Settings(), 0)
