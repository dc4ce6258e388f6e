"""What is done to a run by hand: done between steps, kept in its files and checkpoints, and nothing else."""

import threading
from dataclasses import replace

import pytest
import scenes
import torch
from acting import Acting, assert_same_bits, bits, watched
from test_monitor import read

from gsopt.by_hand import ByHand
from gsopt.commands.train import opening
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.group_options import GroupOptions, Groups
from gsopt.recorder import Recorder
from gsopt.rundir import read_json
from gsopt.runtime import StopSignals
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer

HALF = "box:-9,-9,-9,0,9,9"  # of the ball


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("hand") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=30,
        test_iterations=(),
        save_iterations=(),
        sh_degree=1,
        device="cpu",
        quiet=True,
        densify=DefaultStrategy(
            refine_start_iter=5, refine_stop_iter=28, refine_every=5, reset_every=20, grow_grad2d=1e-5
        ),
    )


@pytest.fixture
def train(ball, config, tmp_path):
    """A finished run with these settings, and what is done in it by hand."""
    numbers = iter(range(100))

    def trained(plan=None, **changes) -> Trainer:
        settings = replace(config, output=tmp_path / f"run{next(numbers)}", **changes)
        trainer = Trainer(settings, ball)
        watched(trainer, Acting(plan)).train()
        return trainer

    return trained


def frozen(name: str, value: bool = True):
    return lambda hand: hand.freeze(name, value)


@pytest.mark.parametrize(
    ("plan", "flags"),
    [
        ({}, {}),
        ({12: frozen("xyz")}, {"freeze": ("xyz@12:",)}),
        ({12: frozen("xyz"), 17: frozen("xyz", False)}, {"freeze": ("xyz@12:17",)}),
        ({4: frozen("opacity"), 9: frozen("scaling")}, {"freeze": ("opacity@4:", "scaling@9:")}),
    ],
)
def test_a_freeze_by_hand_has_the_bits_of_its_window(train, plan, flags):
    assert_same_bits(bits(train(plan)), bits(train(**flags)))


@pytest.mark.parametrize(
    ("freeze", "by_hand", "same"),
    [
        (("xyz",), False, ("xyz@0:8",)),  # what the run was told to freeze is thawed
        (("xyz@4:20",), True, ("xyz@4:",)),  # and the end of a window is no more
        (("xyz@12:20",), False, ()),  # nor its beginning
    ],
)
def test_what_is_decided_by_hand_replaces_the_windows_of_a_group(train, freeze, by_hand, same):
    trainer = train({8: frozen("xyz", by_hand)}, freeze=freeze)
    assert_same_bits(bits(trainer), bits(train(freeze=same)))


def test_a_rate_by_hand_is_a_factor_on_the_schedule(ball, config, train):
    """From the first step on it is the rate that --groups states; with a schedule and without."""
    plain = Trainer(config, ball)
    rates = {group["name"]: group["lr"] for group in plain.optimizer.param_groups}
    trainer = Trainer(replace(config, output=config.output.with_name("by_hand")), ball)
    for name in ("xyz", "opacity"):
        trainer.by_hand.rate(name, 0.5)
    trainer.train()
    groups = Groups(
        xyz=GroupOptions(lr=rates["xyz"] / 2 / ball.extent), opacity=GroupOptions(lr=rates["opacity"] / 2)
    )
    by_flags = train(groups=groups)
    for group, other in zip(trainer.optimizer.param_groups, by_flags.optimizer.param_groups, strict=True):
        assert group["lr"] == pytest.approx(other["lr"], rel=1e-12)
    for (name, value), other in zip(bits(trainer).items(), bits(by_flags).values(), strict=True):
        assert torch.allclose(value, other, rtol=1e-3, atol=1e-5), name


def test_a_factor_of_one_gives_the_schedule_back_to_the_bit(ball, config):
    trainer, plain = Trainer(config, ball), Trainer(config, ball)
    for name in ("xyz", "opacity"):
        for factor in (0.3, 1.0):
            trainer.scheduler.scale(name, factor)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [
        group["lr"] for group in plain.optimizer.param_groups
    ]


def test_locked_rows_keep_their_bits_until_they_are_unlocked(ball, config):
    trainer, seen = Trainer(replace(config, densify=replace(config.densify, refine_start_iter=29)), ball), {}

    class Looking(Acting):
        def look(self, trainer, progress):
            super().look(trainer, progress)
            seen[trainer.step] = trainer.model.xyz.detach().clone(), trainer.model.locked

    watcher = Looking({5: lambda hand: hand.lock(HALF), 15: ByHand.unlock})
    watched(trainer, watcher).train()
    locked = seen[5][1]
    assert 0 < locked.sum() < len(locked)
    assert torch.equal(seen[5][0][locked], seen[14][0][locked])
    assert not torch.equal(seen[5][0][~locked], seen[14][0][~locked])
    assert not torch.equal(seen[15][0][locked], seen[16][0][locked])
    events = read(trainer.run.path).Scalars("gaussians/locked")
    assert [(event.step, event.value) for event in events] == [(5, locked.sum()), (15, 0)]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (frozen("colour"), 'no group has the name "colour"'),
        (lambda hand: hand.rate("colour", 2.0), "rate of colour: there is no such group"),
        (lambda hand: hand.rate("xyz", 0.0), "rate of xyz: expected a factor of 0.001 to 1000, found 0"),
        (lambda hand: hand.rate("xyz", float("nan")), "found nan"),
        (lambda hand: hand.lock("box:7,7,7,8,8,8"), "no Gaussian is there"),
        (lambda hand: hand.lock("box:7,7"), "expected 6 numbers"),
        (lambda hand: hand.lock("box:-9,-9,-9,9,9,9"), "nothing to train"),
    ],
)
def test_what_cannot_be_done_changes_nothing(train, ask, message):
    plain, trainer = train(), train({10: ask})
    assert_same_bits(bits(trainer), bits(plain))
    (told,) = trainer.by_hand.watcher.failed
    assert message in told
    assert trainer.by_hand.history == []
    assert not trainer.run.by_hand.exists()


def test_the_last_group_that_is_trained_is_not_frozen(train):
    trainer = train({10: frozen("opacity"), 11: frozen("xyz")}, exclude=("feature-dc", "feature-rest"))
    assert trainer.by_hand.watcher.failed == []
    stopped = train(
        {10: frozen("xyz")}, freeze=("feature-dc", "feature-rest", "scaling", "rotation", "opacity")
    )
    assert stopped.by_hand.watcher.failed == [
        "freeze xyz: nothing else is trained; thaw another first, or pause"
    ]


def test_what_was_done_is_in_the_files_of_the_run(train):
    trainer = train(
        {3: lambda hand: hand.rate("xyz", 0.5), 8: frozen("opacity"), 9: lambda hand: hand.lock(HALF)}
    )
    history = read_json(trainer.run.by_hand)
    assert history == trainer.by_hand.history == read_json(trainer.run.metrics)["by_hand"]
    assert [(entry["iteration"], entry["what"].split(":")[0]) for entry in history] == [
        (3, "rate of xyz x0.5"),
        (8, "opacity frozen"),
        (9, "locked box"),
    ]
    events = read(trainer.run.path).Scalars("frozen/opacity")
    assert [(event.step, event.value) for event in events] == [(10, 1), (20, 1), (30, 1)]


@pytest.mark.parametrize("stop_at", [14, 20])
def test_a_resume_goes_on_to_the_bits_of_the_run_that_went_through(ball, config, stop_at):
    plan = {6: lambda hand: hand.rate("xyz", 0.1), 7: lambda hand: hand.rate("opacity", 3.0)}
    plan |= {9: frozen("scaling"), 12: lambda hand: hand.lock(HALF)}
    whole = Trainer(config, ball)
    watched(whole, Acting(dict(plan))).train()
    part = Trainer(replace(config, output=config.output.with_name("part")), ball)

    class Interrupting(Acting):
        def look(self, trainer, progress):
            super().look(trainer, progress)
            if trainer.step == stop_at:
                raise KeyboardInterrupt

    plan |= {stop_at: ByHand.save}
    with pytest.raises(KeyboardInterrupt):
        watched(part, Interrupting(plan)).train()
    resumed = Trainer(TrainConfig.of_run(part.run.path), ball)
    assert [line for line in opening(resumed) if line.startswith("by hand")] == [
        "by hand   scaling frozen, rate of xyz x0.1, rate of opacity x3 (--forget-by-hand)"
    ]
    resumed.train()
    assert_same_bits(bits(resumed), bits(whole))
    assert read_json(resumed.run.by_hand) == whole.by_hand.history


@pytest.mark.parametrize(
    ("changes", "scaling", "opacity", "factors", "locked"),
    [
        ({}, True, False, {"xyz": 0.1}, True),
        ({"freeze": ("opacity",)}, False, True, {"xyz": 0.1}, True),
        ({"exclude": ("scaling",)}, None, False, {"xyz": 0.1}, True),
        ({"forget_by_hand": True}, False, False, {}, False),
    ],
)
def test_a_resume_may_say_otherwise(ball, train, changes, scaling, opacity, factors, locked):
    plan = {6: lambda hand: hand.rate("xyz", 0.1), 9: frozen("scaling"), 12: lambda hand: hand.lock(HALF)}
    old = train(plan | {14: ByHand.save})
    config = replace(TrainConfig.of_run(old.run.path), iterations=40, **changes)
    trainer = Trainer(config, ball)
    states = {group["name"]: group["frozen"] for group in trainer.optimizer.param_groups}
    assert (states.get("scaling"), states["opacity"]) == (scaling, opacity)
    assert trainer.by_hand.factors == factors
    assert (trainer.model.locked is not None) == locked
    trainer.train()


def test_what_came_after_the_checkpoint_is_no_longer_told(ball, train):
    plan = {5: frozen("xyz"), 10: ByHand.save, 15: frozen("opacity")}
    old = train(plan, checkpoint_every=1000)
    for path in old.run.checkpoints.glob("*30.pt"):
        path.unlink()
    old.run.metrics.unlink()
    resumed = Trainer(TrainConfig.of_run(old.run.path), ball)
    resumed.train()
    assert [entry["what"] for entry in read_json(resumed.run.by_hand)] == ["xyz frozen"]


class Stepping(Acting):
    """Pauses after iteration 4, has two steps done one by one, then goes on."""

    def __init__(self) -> None:
        super().__init__({4: ByHand.pause})
        self.acts = [ByHand.one_step, ByHand.one_step, ByHand.go_on]
        self.asked_at: list[int] = []

    def look(self, trainer, progress):
        super().look(trainer, progress)
        if trainer.by_hand.paused and trainer.step not in self.asked_at:
            self.asked_at.append(trainer.step)
            self.acts.pop(0)(trainer.by_hand)


def test_a_pause_does_single_steps_and_goes_on(ball, config, train):
    """The bits are those of a run without pauses, and the time of a pause is not that of training."""
    trainer = watched(Trainer(config, ball), Stepping())
    trainer.train()
    assert trainer.by_hand.watcher.asked_at == [4, 5, 6]
    assert trainer.by_hand.watcher.done == ["paused after iteration 4", "going on after iteration 6"]
    assert {"paused", "train"} <= set(read_json(trainer.run.metrics)["seconds"])
    assert_same_bits(bits(trainer), bits(train()))


def test_a_run_that_is_paused_ends_when_it_is_told_to(ball, config, monkeypatch):
    trainer = Trainer(config, ball)
    waiting = threading.Event()

    class Waiting(Acting):
        def look(self, trainer, progress):
            super().look(trainer, progress)
            if trainer.by_hand.paused:
                waiting.set()

    stops = []
    monkeypatch.setattr(StopSignals, "__enter__", lambda self: stops.append(self) or self)
    monkeypatch.setattr(StopSignals, "__exit__", lambda *_: None)

    def interrupt():
        waiting.wait(30)
        stops[0].asked = "SIGINT"

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="SIGINT after 4 iterations, all saved"):
        watched(trainer, Waiting({4: ByHand.pause})).train()
    thread.join()
    assert Trainer(TrainConfig.of_run(trainer.run.path), ball).step == 4


def test_requests_of_many_threads_are_all_done_on_the_thread_that_trains(ball, config, monkeypatch):
    trainer = Trainer(config, ball)
    here = threading.get_ident()
    threads = [
        threading.Thread(target=lambda k=k: trainer.by_hand.rate("xyz", 1 + k / 100)) for k in range(1, 20)
    ]
    saved = []
    monkeypatch.setattr(
        Recorder, "note_by_hand", lambda self: saved.append(threading.get_ident()), raising=True
    )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trainer.train()
    assert saved == [here] * 19
    assert len(trainer.by_hand.history) == 19
