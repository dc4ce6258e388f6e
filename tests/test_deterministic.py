"""`--deterministic`, as far as a CPU shows it; and runs that repeat their bits without it."""

import os
import subprocess
import sys

import pytest
import resuming
import scenes
import torch

from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.device import deterministic
from gsopt.trainer import Trainer


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("deterministic") / "ball", points=60)


def settings() -> tuple:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_it_is_on_inside_and_as_it_was_outside(before, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = True
    try:
        outside = settings()
        with deterministic(True):
            assert settings() == (True, True, True, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert settings() == outside
        with pytest.raises(ZeroDivisionError), deterministic(True):
            1 / 0  # noqa: B018
        assert settings() == outside
        with deterministic(False):
            assert settings() == outside
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def test_a_workspace_of_ones_own_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_every_step_of_a_run_is_inside(ball, tmp_path):
    """No operation of a step has to warn that it has no such algorithm: a warning fails a test."""
    seen = set()
    config = TrainConfig(scene=ball, output=tmp_path / "run", iterations=6, device="cpu", quiet=True)
    for asked in (True, False):
        config.deterministic, config.output = asked, tmp_path / str(asked)
        trainer = Trainer(config)
        step = trainer.train_step
        trainer.train_step = lambda step=step: (seen.add(settings()[0]), step())[1]
        trainer.train()
        assert seen == {asked}
        seen.clear()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_same_seed_gives_the_same_bits_in_another_process(ball, tmp_path):
    """Each run here with one thread, one there with three and --deterministic; another seed, other bits."""
    runs = {}
    for strategy, part in (("default", "densify"), ("mcmc", "mcmc"), ("budget", "budget")):
        flags = ["train", "--scene", str(ball), "--iterations", "24", "--device", "cpu", "--quiet"]
        flags += ["--strategy", strategy, "--max-gaussians", "90", "--background", "random"]
        flags += [f"--{part}.refine-start-iter", "3", f"--{part}.refine-every", "5"]
        runs[strategy] = flags
        assert main([*flags, "--threads", "1", "--output", str(tmp_path / strategy / "here")]) == 0
    there = [
        [*flags, "--threads", "3", "--deterministic", "--output", str(tmp_path / strategy / "there")]
        for strategy, flags in runs.items()
    ]
    program = f"from gsopt.commands import main; assert [main(flags) for flags in {there}] == [0, 0, 0]"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    for strategy in runs:
        found = resuming.run_differences(tmp_path / strategy / "here", tmp_path / strategy / "there")
        assert found == ["/config/deterministic: False against True"]
    assert main([*runs["mcmc"], "--seed", "1", "--output", str(tmp_path / "other")]) == 0
    found = resuming.run_differences(tmp_path / "mcmc" / "here", tmp_path / "other")
    assert any(text.startswith("/model/xyz") for text in found)
