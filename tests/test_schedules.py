"""Schedules at the start, middle, end and past the end; their text form; settings that scale with the run."""

import math
from dataclasses import dataclass

import pytest
import torch

from gsopt.errors import InputError
from gsopt.schedules import Constant, Exponential, LogLinear, parse_schedule, resolve_steps, scaled

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


def test_exponential_is_exponential_lr():
    weight = torch.nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([weight], lr=0.3)
    theirs = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.995)
    for step in range(50):
        assert opt.param_groups[0]["lr"] == pytest.approx(0.3 * Exponential(0.995)(step))
        opt.step()
        theirs.step()


BAD_ARGUMENTS = {
    "final 0": (lambda: LogLinear(0, 10), "final factor: expected a number, more than 0, found 0"),
    "no steps": (lambda: LogLinear(0.1, 0), "steps: expected at least 1, found 0"),
    "delay": (lambda: LogLinear(0.1, 10, -1), "delay steps: expected 0 or more, found -1"),
    "delay factor": (lambda: LogLinear(0.1, 10, 1, 2.0), "delay factor: expected 0 to 1, found 2"),
    "gamma": (lambda: Exponential(0), "gamma: expected a number, more than 0, found 0"),
    "factor": (lambda: Constant(-1), "factor: expected a number, 0 or more, found -1"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case):
    build, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        build()


# ---------------------------------------- text

TEXTS = {
    "constant": Constant(),
    "constant:0.5": Constant(0.5),
    "exp:0.01": LogLinear(0.01, 2000),
    "exp:0.01:100:0.2": LogLinear(0.01, 2000, 100, 0.2),
    "gamma:0.995": Exponential(0.995),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_back(text):
    assert parse_schedule(text, iterations=2000) == TEXTS[text]
    assert str(TEXTS[text]) == text


BAD_TEXTS = {
    "": '"" is not a schedule; choose from constant',
    "linear:0.1": '"linear" is not a schedule; choose from constant.*exp:FINAL_FACTOR',
    "exp": "expected exp:FINAL_FACTOR.*found 0 arguments",
    "exp:1:2:3:4": "found 4 arguments",
    "exp:fast": '"fast" is not a number; expected exp:FINAL_FACTOR',
    "exp:-1": "final factor: expected a number, more than 0, found -1",
    "exp:0": "final factor: expected a number, more than 0, found 0",
    "exp:nan": "final factor: expected a number, more than 0, found nan",
    "exp:inf": "final factor: expected a number, more than 0, found inf",
    "exp:0.1:inf": "steps: expected a whole number, found inf",
    "exp:0.1:10:nan": "delay factor: expected 0 to 1, found nan",
    "constant:nan": "factor: expected a number, 0 or more, found nan",
    "constant:-5": "factor: expected a number, 0 or more, found -5",
    "gamma:inf": "gamma: expected a number, more than 0, found inf",
    "gamma:2": 'grows beyond all numbers in 2000 iterations; give less than "2"',
    "exp:0.1:2.5": "steps: expected a whole number, found 2.5",
    "gamma:": '"" is not a number',
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_bad_text_is_quoted(text):
    with pytest.raises(InputError, match=BAD_TEXTS[text]) as caught:
        parse_schedule(text, iterations=2000)
    assert f'schedule "{text}"' in str(caught.value)


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
