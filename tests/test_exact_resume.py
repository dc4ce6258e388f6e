"""A run that was stopped and went on in a fresh process has the bits of one that never was; see resuming."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import resuming
import torch

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.datasets import pyramid
from gsopt.trainer import Trainer


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return resuming.write_ball(tmp_path_factory.mktemp("exact") / "ball")


@pytest.fixture(autouse=True)
def small_photos_are_reduced(monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST", resuming.LEAST_PIXELS)


@pytest.fixture(autouse=True)
def nothing_waits_for_the_disk(monkeypatch):
    """A run here saves 32 checkpoints; that they are flushed is for `test_checkpoint`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def check(names, ball: Path, folder: Path, all_stops: bool) -> None:
    """Each case straight here with one thread; all its stops in one fresh process with three."""
    pairs = {}
    for number, name in enumerate(names):
        case = resuming.CASES[name]
        run = resuming.straight(case, ball, folder / f"{number}")
        for step in case.stops if all_stops else case.stops[:2]:
            pairs[f"{name}, after step {step}"] = (
                run,
                resuming.stopped(run, step, folder / f"{number}-{step}"),
            )
    program = [sys.executable, resuming.__file__, "3", *(str(resumed) for _, resumed in pairs.values())]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: resuming.run_differences(*runs) for name, runs in pairs.items()}
    assert {name: what for name, what in found.items() if what} == {}


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(ball, tmp_path):
    check(resuming.SHORT, ball, tmp_path, all_stops=False)


@pytest.mark.slow
def test_the_whole_matrix(ball, tmp_path):
    check(resuming.CASES, ball, tmp_path, all_stops=True)


def test_the_cases_are_what_they_say(ball, tmp_path):
    """The run of the matrix does grow, reset, get finer photos and move everything it saves."""
    run = resuming.straight(resuming.Case(), ball, tmp_path / "run")
    states = {step: checkpoint.load(checkpoint.path_of(run / "checkpoints", step)) for step in range(1, 33)}
    rows = {step: len(state["model"]["xyz"]) for step, state in states.items()}
    assert rows[14] != rows[15] == rows[16]
    assert states[20]["model"]["opacity"].max() < states[19]["model"]["opacity"].max() - 0.1
    assert states[14]["strategy"]["count"].any()
    assert len(states[8]["order"]["queue"]) == 4  # of six
    trainer = Trainer(TrainConfig.of_run(run))
    factors = []
    for trainer.step in range(1, 12):
        factors.append(trainer.feed.views.view(0, trainer.reduction).camera.width)
    assert sorted(set(factors)) == [6, 12, 24]
    assert factors == sorted(factors)


def test_saving_changes_nothing_and_draws_nothing(ball, tmp_path):
    """Few checkpoints or one after each step; and no generator but the run's own two is in use."""
    run = resuming.straight(resuming.Case(), ball, tmp_path / "often")
    generator = torch.get_rng_state()
    resuming.straight(resuming.Case({"checkpoint_every": 1000}), ball, tmp_path / "once")
    assert torch.equal(torch.get_rng_state(), generator)
    ends = [checkpoint.load(checkpoint.latest(run / "checkpoints")) for run in (run, tmp_path / "once")]
    for state in ends:
        del state["config"]["checkpoint_every"]
    assert list(resuming.differences(*ends)) == []


def test_a_difference_is_found():
    """The comparison itself: a bit, a type, a shape, a key, an entry."""
    tree = {"a": {"b": [torch.ones(2), 1.5]}, "seconds": {"train": 1.0}}
    others = {
        "/a/b[0]": {"a": {"b": [torch.tensor([1.0, 1.0 + 2**-23]), 1.5]}, "seconds": {}},
        "/a/b[1]: 1.5 against 2": {"a": {"b": [torch.ones(2), 2]}, "seconds": {}},
        "/a/b: 2 entries against 1": {"a": {"b": [torch.ones(2)]}, "seconds": {}},
        "/a: ['b'] against ['c']": {"a": {"c": 0}, "seconds": {}},
    }
    assert list(resuming.differences(tree, tree | {"seconds": {"train": 2.0}})) == []
    for expected, other in others.items():
        assert list(resuming.differences(tree, other)) == [expected]


def test_a_checkpoint_says_what_it_was_made_with(ball, tmp_path):
    run = resuming.straight(resuming.Case({"checkpoint_every": 9}), ball, tmp_path / "run")
    path = checkpoint.path_of(run / "checkpoints", 27)
    checkpoint.latest(run / "checkpoints").unlink()
    state = checkpoint.load(path)
    assert {"python", "gsopt", "torch", "numpy", "cpu"} <= set(state["versions"])
    checkpoint.save(path, state | {"versions": state["versions"] | {"torch": "0.4"}})
    with pytest.warns(UserWarning, match=r"torch is .* \(the checkpoint is of 0\.4\); the bits may differ"):
        assert Trainer(TrainConfig.of_run(run)).step == 27
    del state["versions"]  # as in older checkpoints
    checkpoint.save(path, state)
    assert Trainer(TrainConfig.of_run(run)).step == 27
