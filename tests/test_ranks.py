"""Training by several processes: the bits of one process with --batch-size, and what happens when one fails.

Processes here are two, with gloo on this machine; see ranked.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ranked
import resuming
import torch

from gsopt import checkpoint
from gsopt.commands import main
from gsopt.commands.train import is_restart
from gsopt.config import TrainConfig
from gsopt.datasets import pyramid
from gsopt.errors import InputError
from gsopt.model import ATTRIBUTES
from gsopt.ranks import Ranks, SharedInfo, digest
from gsopt.runtime import StopSignals
from gsopt.trainer import Trainer

SAME_BITS = (  # with one process and --batch-size 2
    "before, at and after an opacity reset",
    "freeze window",
    "random background",
    "default with visible_adam",
    "absgrad with mixed",
    "budget with mixed",
    "locked",
    "beside",
)
SLOW = tuple(name for name in resuming.SHORT if name not in SAME_BITS and "accumul" not in name)
ROUNDED = ("accumulation boundary", "mcmc with visible_adam")  # sums in another order
STOP = 13


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return resuming.write_ball(tmp_path_factory.mktemp("ranks") / "ball")


@pytest.fixture(autouse=True)
def small_photos_are_reduced(monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST", resuming.LEAST_PIXELS)


def batch(case: str, views: int) -> resuming.Case:
    """A case with so many times the views in a step."""
    known = resuming.CASES[case]
    more = {"batch_size": views * known.settings.get("batch_size", 1)}
    return replace(known, settings=known.settings | more)


def run_differences(a: Path, b: Path) -> list[str]:
    """But what has to differ: the size of a batch, and the PSNR of a view that process 0 has seen."""
    found = resuming.run_differences(a, b)
    known = ("/config/batch_size", "scalars/train_loss_patches/psnr")
    return [what for what in found if not what.startswith(known)]


@pytest.fixture(scope="module")
def done(ball, tmp_path_factory):
    """All that two processes do here, in one session of theirs: folder and the answers of each."""
    folder = tmp_path_factory.mktemp("ranked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "SMALLEST", resuming.LEAST_PIXELS)
        patch.setattr(os, "fsync", lambda descriptor: None)
        for number, case in enumerate(SAME_BITS + ROUNDED):
            resuming.straight(batch(case, 2), ball, folder / f"one-{number}")
    resuming.stopped(folder / "one-0", STOP, folder / "goes on with two")
    jobs: dict[str, list] = {
        case: ["straight", case, str(folder / f"two-{number}"), {}]
        for number, case in enumerate(SAME_BITS + ROUNDED)
    }
    jobs["resumed"] = ["resumed", str(folder / "goes on with two"), {"batch_size": 1}]
    jobs["skip"] = ["not_finite", str(folder / "skip"), "skip"]
    jobs["stop"] = ["not_finite", str(folder / "stop"), "stop"]
    jobs["stopped"] = ["stopped", str(folder / "stopped")]
    jobs |= {"torn": ["torn", str(folder / "torn")], "sums": ["sums"], "failed": ["failed"]}
    return folder, ranked.start(folder, ball, jobs)


# ------------------------------------------------------------------------------------------------ the same


@pytest.mark.parametrize("case", SAME_BITS)
def test_two_processes_have_the_bits_of_one_with_twice_the_views(done, case):
    """And of each other: every step saves a checkpoint, before which all is compared."""
    folder, answers = done
    assert [answer[case] for answer in answers] == [None, None]
    number = SAME_BITS.index(case)
    assert run_differences(folder / f"one-{number}", folder / f"two-{number}") == []


@pytest.mark.parametrize("case", ROUNDED)
def test_where_sums_have_another_order_it_is_the_same_to_rounding(done, case):
    folder, answers = done
    assert [answer[case] for answer in answers] == [None, None]
    number = (SAME_BITS + ROUNDED).index(case)
    one, two = (
        [checkpoint.load(checkpoint.path_of(run / "checkpoints", step))["model"] for step in (1, 4)]
        for run in (folder / f"one-{number}", folder / f"two-{number}")
    )
    for name in set(ATTRIBUTES) - {"rotation"}:  # of balls that begin round, rounding errors decide it
        change = (one[1][name] - one[0][name]).norm()  # of three steps of Adam
        assert (one[1][name] - two[1][name]).norm() <= 0.03 * change, name


def test_what_one_process_began_two_go_on_with(done):
    folder, answers = done
    assert answers[0]["resumed"] is None
    assert run_differences(folder / "one-0", folder / "goes on with two") == []


def test_what_two_processes_began_one_goes_on_with(done, tmp_path):
    folder, _ = done
    run = resuming.stopped(folder / "two-0", STOP, tmp_path / "run")
    Trainer(replace(TrainConfig.of_run(run), batch_size=2, threads=3)).train()
    assert run_differences(folder / "one-0", run) == []


@pytest.mark.slow
def test_the_other_cases(ball, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    jobs = {}
    for number, case in enumerate(SLOW):
        resuming.straight(batch(case, 3), ball, tmp_path / f"one-{number}")
        jobs[case] = ["straight", case, str(tmp_path / f"three-{number}"), {}]
    answers = ranked.start(tmp_path, ball, jobs, processes=3)
    assert answers == [dict.fromkeys(SLOW)] * 3
    for number, case in enumerate(SLOW):
        if "mcmc" not in case:
            assert run_differences(tmp_path / f"one-{number}", tmp_path / f"three-{number}") == [], case


def test_only_process_0_writes(done):
    folder, _ = done
    events = list((folder / "two-0").glob("events.out.tfevents.*"))
    assert len(events) == 1


def test_sums_are_in_the_order_of_the_processes(done):
    _, (first, second) = done
    gradients, words, signal_, told, _ = first["sums"]
    parts = [torch.tensor([1.0, 1e8, -1e8, 0.1, float(rank)]) / (rank + 1) for rank in (0, 1)]
    assert gradients == [(parts[0] + parts[1]).tolist(), torch.arange(5.0).tolist(), None]
    assert (words, signal_, told) == (["a", "bb", "c"], 7, True)
    assert second["sums"][:4] == first["sums"][:4]
    assert [answer["sums"][4] for answer in (first, second)] == [[0, 2, 4, 6], [1, 3, 5]]


# ------------------------------------------------------------------------------------------- what goes wrong


def test_a_step_that_one_cannot_do_all_leave_out(done):
    folder, answers = done
    assert [answer["skip"] for answer in answers] == [[12, 1, 2]] * 2
    assert checkpoint.load(checkpoint.path_of(folder / "skip" / "checkpoints", 12))["skipped"] == 1


def test_a_step_that_one_cannot_do_ends_the_run(done):
    folder, answers = done
    for answer in answers:
        assert answer["stop"].startswith("InputError: iteration 4: spoilt; nothing was changed by this step")
    assert checkpoint.step_of(checkpoint.latest(folder / "stop" / "checkpoints")) == 3


def test_all_stop_after_the_same_step(done):
    folder, answers = done
    for answer in answers:
        assert answer["stopped"].startswith("KeyboardInterrupt: SIGTERM after 5 iterations, all saved")
    assert checkpoint.step_of(checkpoint.latest(folder / "stopped" / "checkpoints")) == 5


def test_processes_that_are_not_the_same_are_found(done):
    for answer in done[1]:
        bits, rows = answer["torn"]
        assert "iteration 1: scaling of process 1 and process 0 differ" in bits
        assert "expected as many Gaussians in every process, found 60, 9" in rows


def test_an_error_in_one_is_an_error_in_all(done):
    first, second = done[1]
    assert first["failed"] == "RankError: process 1: no such photo"
    assert second["failed"] == "InputError: no such photo"


@pytest.mark.slow
def test_who_does_not_answer_is_not_waited_for_for_ever(ball, tmp_path):
    first, _ = ranked.start(tmp_path, ball, {"late": ["late"]})
    assert first["late"].startswith("RankError: another of the 2 processes has ended or gives no answer")


# -------------------------------------------------------------------------------------------------- torchrun


FLAGS = (
    *("--iterations", "16", "--checkpoint-every", "4", "--test-iterations", "10", "--device", "cpu"),
    *("--save-iterations", "5", "--strategy", "default", "--densify.refine-start-iter", "2"),
    *("--densify.refine-every", "5"),
    *("--densify.grow-grad2d", "1e-5", "--exposure"),
)


def torchrun(program: list[str], *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options, *program]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


@pytest.fixture(scope="module")
def straight(ball, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight") / "run"
    assert main(["train", "--scene", str(ball), "--output", str(run), "--batch-size", "2", *FLAGS]) == 0
    return run


def dying(number: int, ball: Path, run: Path) -> list[str]:
    return [
        ranked.__file__,
        "dying",
        "7",
        str(int(number)),
        "train",
        "--scene",
        str(ball),
        "--output",
        str(run),
    ]


def test_a_run_whose_process_is_killed_is_started_again(ball, straight, tmp_path):
    """The same command line; the survivor has saved the last step that all had done."""
    ended = torchrun([*dying(signal.SIGKILL, ball, tmp_path / "run"), *FLAGS], "--max-restarts", "1")
    assert ended.returncode == 0, ended.stderr
    assert "iteration 6: another of the 2 processes has ended or gives no answer" in ended.stderr
    assert "saved after iteration 6" in ended.stderr
    assert ended.stdout.count("iterations, from iteration 6") == 1
    assert run_differences(straight, tmp_path / "run") == []


@pytest.mark.slow
def test_a_run_whose_process_is_killed_ends_and_one_process_goes_on(ball, straight, tmp_path):
    run = tmp_path / "run"
    ended = torchrun([*dying(signal.SIGKILL, ball, run), *FLAGS])
    assert ended.returncode == 1
    assert ended.stderr.count("gsopt: error: iteration 6: another of the 2 processes has ended") == 1
    assert checkpoint.step_of(checkpoint.latest(run / "checkpoints")) == 6
    assert main(["train", "--resume", str(run), "--batch-size", "2", "--quiet"]) == 0
    assert run_differences(straight, run) == []


@pytest.mark.slow
def test_a_mistake_is_told_once(ball, tmp_path):
    program = [str(ranked.ROOT / "scripts" / "train.py"), "--scene", str(ball)]
    for flags, message in {
        ("--iterations", "0"): "--iterations 0: expected 1 or more",
        ("--no-such-flag",): "no-such-flag",
        ("--init", str(tmp_path / "nothing.ply")): "nothing.ply",
    }.items():
        ended = torchrun([*program, "--output", str(tmp_path / "run"), *flags])
        told = [line for line in ended.stderr.splitlines() if line.startswith("gsopt: error:")]
        assert len(told) == 1, ended.stderr
        assert message in told[0]
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_all_is_saved(ball, tmp_path):
    run = tmp_path / "run"
    ended = torchrun([*dying(signal.SIGTERM, ball, run), *FLAGS])
    assert ended.stderr.count("gsopt: interrupted: SIGTERM after 7 iterations, all saved") == 1
    assert checkpoint.step_of(checkpoint.latest(run / "checkpoints")) == 7


@pytest.mark.parametrize(
    ("environment", "output", "resume", "again"),
    [
        ({}, "run", None, False),
        ({}, None, None, False),
        ({"MAX_RESTARTS": "0", "RESTART_COUNT": "0"}, None, None, False),
        ({"MAX_RESTARTS": "2", "RESTART_COUNT": "0"}, "run", None, False),
        ({"MAX_RESTARTS": "2", "RESTART_COUNT": "1"}, "run", None, True),
        ({"MAX_RESTARTS": "2", "RESTART_COUNT": "1"}, "none yet", None, False),
        ({"MAX_RESTARTS": "2", "RESTART_COUNT": "1"}, None, "run", False),
    ],
)
def test_when_a_command_goes_on_with_its_run(tmp_path, monkeypatch, environment, output, resume, again):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for name, value in environment.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    config = TrainConfig(output=output and tmp_path / output, resume=resume and tmp_path / resume)
    assert is_restart(config) == again


def test_a_run_that_may_be_started_again_needs_a_name(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(InputError, match=r"--output: torchrun may start this run again \(--max-restarts 1\)"):
        is_restart(TrainConfig())


# ---------------------------------------------------------------------------------------------------- alone


def test_alone_nothing_is_exchanged():
    alone = Ranks.current()
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    assert alone.deal([3, 4]) == [3, 4]
    assert list(alone.map(str, [1, 2])) == ["1", "2"]
    assert (alone.any(None), alone.any(3), alone.tell(lambda: 5)) == (None, 3, 5)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(9, 3),
        torch.zeros(4, dtype=torch.uint8),
        torch.ones(3, dtype=torch.uint8),
        torch.arange(6),
        torch.rand(2, 3, dtype=torch.float64),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_a_digest_sees_every_bit_and_the_order(tensor):
    bits = tensor.clone().view(-1).view(torch.uint8)
    for place in range(len(bits)):
        for power in range(8):
            other = bits.clone()
            other[place] ^= 1 << power
            assert digest(other.view(tensor.dtype)) != digest(tensor)
    assert digest(tensor.clone()) == digest(tensor)
    if tensor.unique().numel() > 1:
        assert digest(tensor.flatten().flip(0)) != digest(tensor)


def test_an_info_says_what_is_not_exchanged():
    with pytest.raises(InputError, match=r'info\["depths"\]: processes exchange radii only'):
        SharedInfo(radii=torch.zeros(1))["depths"]


def test_a_patient_run_takes_a_second_signal_for_the_first():
    with StopSignals(patient=True) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == "SIGTERM"
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="second SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
