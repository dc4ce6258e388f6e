"""What happens when something goes wrong in a run: NaN, no memory, no disk. Nothing good is lost."""

import re
from dataclasses import replace

import pytest
import scenes
import torch
from test_monitor import read

from gsopt import checkpoint, guards, losses
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.guards import NonFinite
from gsopt.render import info
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("guards") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=20,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        background="random",
        strategy="default",
        densify=DefaultStrategy(refine_start_iter=5, refine_every=5, grow_grad2d=1e-5),
    )


def spoil(trainer: Trainer, name: str, rows, value: float = NAN, *, at: int | set[int], view: int = 0):
    """Make rows of a parameter's gradient bad in the backward pass of a view of some steps (from 1)."""
    steps = {at} if isinstance(at, int) else at
    backward, seen = trainer._backward, []

    def spoilt(*of_view):
        seen.append(trainer.step)
        if trainer.step not in steps or seen.count(trainer.step) != view + 1:
            return backward(*of_view)
        parameter = dict(trainer.joint.named_parameters())[name]

        def poison(gradient):
            gradient = gradient.clone()
            gradient[rows] = value
            return gradient

        hook = parameter.register_hook(poison)
        try:
            return backward(*of_view)
        finally:
            hook.remove()

    trainer._backward = spoilt
    return trainer


def content(trainer: Trainer) -> dict:
    """A copy of all that the rest of the run depends on."""

    def copy(value):
        if isinstance(value, torch.Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: copy(entry) for key, entry in value.items()}
        return [copy(entry) for entry in value] if isinstance(value, list | tuple) else value

    return {key: copy(value) for key, value in trainer.state_dict().items() if key != "seconds"}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ----------------------------------------------------------------------------------------------- the look

FINITE = [
    torch.zeros(7),
    torch.full((3, 5), 3e38),
    torch.ones(()),
    torch.empty(0, 3),
    torch.full((70_000,), 1e-40),
]


@pytest.mark.parametrize("look", [guards.all_finite, guards.all_finite_reference])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("array", "place"), [(0, 0), (0, 6), (1, 14), (2, 0), (4, 0), (4, 32_768), (4, 69_999)]
)
def test_one_bad_element_anywhere_is_found(look, value, array, place):
    arrays = [tensor.clone() for tensor in FINITE]
    assert look(arrays)
    arrays[array].view(-1)[place] = value
    assert not look(arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_that_the_kernel_cannot_read_go_through_torch(dtype):
    strided = torch.zeros(4, 6, dtype=dtype)[:, ::2]
    assert guards.all_finite([strided])
    strided[3, 2] = NAN
    assert not guards.all_finite([strided])
    assert guards.all_finite([])


def test_rows_in_words():
    many = torch.tensor([2, 3, 5, 7, 11, 13])
    assert guards.name_rows(many[:1], 60) == "row 2 (1 of 60)"
    assert guards.name_rows(many, 6_000) == "rows 2, 3, 5, 7, 11, ... (6 of 6,000)"


# --------------------------------------------------------------------------------------- a step that is bad

CASES = {
    "one row": ("scaling", [3], NAN, "the gradient of scaling is not finite in row 3 (1 of 60)"),
    "infinite": ("xyz", [0, 59], -INF, "the gradient of xyz is not finite in rows 0, 59 (2 of 60)"),
    "bands": (
        "feature_rest",
        slice(0, 9),
        NAN,
        "feature_rest is not finite in rows 0, 1, 2, 3, 4, ... (9 of 60)",
    ),
}


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(("name", "rows", "value", "message"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "visible_adam"])
def test_a_bad_gradient_changes_nothing(ball, config, name, rows, value, message, views, optimizer):
    """Of three views the last is bad: what the two before left behind is gone, too."""
    config = replace(config, batch_size=views, optimizer=optimizer)
    trainer = spoil(Trainer(config, scene=ball), name, rows, value, at=4, view=views - 1)
    other = Trainer(replace(config, output=config.output.with_name("other")), scene=ball)
    for _ in range(3):
        trainer.train_step()
        other.train_step()
    before = content(trainer)
    with pytest.raises(NonFinite, match=r"^iteration 4: photo .*" + re.escape(message)) as caught:
        trainer.train_step()
    drawn = [before["order"]["queue"][-views:][::-1]][0][-1]
    assert ball.train[drawn].camera.name in str(caught.value)
    assert same(content(trainer), before)
    assert all(parameter.grad is None for _, parameter in trainer.joint.named_parameters())
    trainer.__dict__.pop("_backward")
    for _ in range(3):  # and it goes on as if nothing had been
        trainer.train_step()
        other.train_step()
    assert same(content(trainer)["model"], content(other)["model"])
    assert same(content(trainer)["optimizer"], content(other)["optimizer"])


def test_a_bad_loss_is_told_with_what_it_did(ball, config, monkeypatch):
    def spoilt(*args):
        loss, terms = losses.photometric(*args)
        return loss * NAN, terms

    trainer = Trainer(config, scene=ball)
    trainer.train_step()
    monkeypatch.setattr("gsopt.trainer.photometric", spoilt)
    trainer.direct = None  # through autograd
    with pytest.raises(NonFinite, match=r"the loss is nan; the gradient of .* is not finite in rows"):
        trainer.train_step()
    assert trainer.step == 1


def test_statistics_are_kept_clean_where_all_geometry_is_frozen(ball, config, monkeypatch):
    def poisoned(means2d):
        means2d.register_hook(lambda gradient: torch.full_like(gradient, NAN))
        info.keep_gradient(means2d)

    monkeypatch.setattr("gsopt.trainer.keep_gradient", poisoned)
    trainer = Trainer(replace(config, freeze=("xyz", "scaling", "rotation", "opacity")), scene=ball)
    trainer.direct = None  # through autograd
    with pytest.raises(NonFinite, match="means2d is not finite in rows"):
        trainer.train_step()


def test_gradients_of_locked_rows_may_be_anything(ball, config):
    trainer = Trainer(replace(config, lock=("box:-2,-2,-2,0,2,2",)), scene=ball)
    locked = torch.nonzero(trainer.model.locked).flatten()
    free = torch.nonzero(~trainer.model.locked).flatten()
    spoil(trainer, "opacity", locked, at=1)
    trainer.train_step()
    assert trainer.step == 1
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    spoil(trainer, "opacity", torch.cat([locked, free[:1]]), at=2)
    with pytest.raises(NonFinite, match=rf"opacity is not finite in row {free[0]} \(1 of 60\)"):
        trainer.train_step()


# ------------------------------------------------------------------------------------------------ --on-nan


def test_stop_saves_the_state_before_and_can_be_resumed(ball, config):
    trainer = spoil(Trainer(config, scene=ball), "scaling", [3], at=8)
    with pytest.raises(
        InputError, match=r"iteration 8: photo .*row 3.*saved after iteration 7; go on with.*skip"
    ):
        trainer.train()
    path = checkpoint.latest(config.output / "checkpoints")
    assert checkpoint.step_of(path) == 7
    undisturbed = Trainer(replace(config, output=config.output.with_name("straight")), scene=ball)
    undisturbed.train()
    resumed = Trainer(TrainConfig.of_run(config.output), scene=ball)
    resumed.train()
    assert same(content(resumed)["model"], content(undisturbed)["model"])
    assert same(content(resumed)["optimizer"], content(undisturbed)["optimizer"])


def test_skip_leaves_the_step_out_and_counts(ball, config, capsys):
    config = replace(config, on_nan="skip", quiet=False)
    trainer = spoil(Trainer(config, scene=ball), "scaling", [3], at={4, 8, 9})
    metrics = trainer.train()
    assert metrics["iterations"] == 20
    assert metrics["skipped_steps"] == 3
    told = capsys.readouterr()
    assert (told.out + told.err).count("step left out") == 3
    assert [(e.step, e.value) for e in read(config.output).Scalars("skipped_steps")] == [
        (4, 1),
        (8, 2),
        (9, 3),
    ]
    assert checkpoint.load(checkpoint.latest(config.output / "checkpoints"))["skipped"] == 3


def test_a_skipped_step_changes_only_the_clock(ball, config):
    trainer = spoil(Trainer(replace(config, on_nan="skip"), scene=ball), "xyz", [3], at=4)
    for _ in range(3):
        trainer.train_step()
    before = content(trainer)
    with pytest.raises(NonFinite):
        trainer.train_step()
    trainer.skip_step()
    after = content(trainer)
    changed = {key for key in after if not same(after[key], before[key])}
    assert changed == {"step", "skipped", "order", "optimizer"}
    assert same(after["optimizer"]["state"], before["optimizer"]["state"])
    undisturbed = Trainer(config, scene=ball)
    for _ in range(4):
        undisturbed.train_step()
    rates = [[g["lr"] for g in t.optimizer.param_groups] for t in (trainer, undisturbed)]
    assert rates[0] == rates[1]


def test_where_no_photo_is_any_good_skipping_ends(ball, config):
    trainer = spoil(Trainer(replace(config, on_nan="skip"), scene=ball), "xyz", [3], at=set(range(3, 99)))
    with pytest.raises(InputError, match=r"saved after iteration 13; .*lower a learning rate"):
        trainer.train()
    assert trainer.skipped == 2 * len(ball.train) - 1


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_model_that_has_diverged_is_not_saved(ball, config, on_nan):
    trainer = Trainer(replace(config, on_nan=on_nan), scene=ball)
    step = trainer.train_step

    def broken():
        if trainer.step == 5:
            with torch.no_grad():
                trainer.model.feature_dc[[7, 9]] = NAN
        return step()

    trainer.train_step = broken
    with pytest.raises(
        InputError, match=r"feature_dc is not finite in rows 7, 9 \(2 of \d+\).*--groups.feature-dc"
    ):
        trainer.train()
    steps = [checkpoint.step_of(path) for path in checkpoint.find(config.output / "checkpoints")]
    assert max(steps, default=0) <= 5


def test_rows_that_nobody_sees_are_found_every_so_often(ball, config, monkeypatch):
    monkeypatch.setattr("gsopt.recorder.FINITE_EVERY", 2)
    trainer = Trainer(config, scene=ball)
    step = trainer.train_step

    def broken():
        result = step()
        with torch.no_grad():
            trainer.model.xyz[11] = NAN  # such a Gaussian is culled: no loss tells
        return result

    trainer.train_step = broken
    with pytest.raises(InputError, match=r"iteration 2: xyz is not finite in row 11 \(1 of 60\)"):
        trainer.train()


# ---------------------------------------------------------------------------------------- memory and disk


def failing(function, error, at: int, trainer: Trainer):
    def call(*args, **kwargs):
        if trainer.step == at:
            raise error
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("the CPU kernel found no memory for its buffers"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=["kernel", "torch", "cuda"],
)
def test_out_of_memory_saves_the_state_before(ball, config, error, monkeypatch):
    trainer = Trainer(config, scene=ball)
    monkeypatch.setattr(trainer.direct, "backward", failing(trainer.direct.backward, error, 8, trainer))
    with pytest.raises(
        InputError, match=r"iteration 7: out of memory with \d+ Gaussians; saved after iteration 7"
    ):
        trainer.train()
    assert Trainer(TrainConfig.of_run(config.output), scene=ball).step == 7


def test_out_of_memory_in_the_middle_of_an_update_saves_nothing(ball, config, monkeypatch):
    trainer = Trainer(config, scene=ball)
    refine = failing(trainer.strategy.refine, MemoryError(), 8, trainer)
    monkeypatch.setattr(trainer.strategy, "refine", refine)
    with pytest.raises(
        InputError, match=r"in the middle of an update, the newest checkpoint is .*step_00000006"
    ):
        trainer.train()


def test_other_errors_are_not_hidden(ball, config, monkeypatch):
    trainer = Trainer(config, scene=ball)
    error = RuntimeError("a mistake in the program")
    monkeypatch.setattr(trainer.direct, "backward", failing(trainer.direct.backward, error, 3, trainer))
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        trainer.train()


def test_a_disk_that_fails_is_told_and_the_state_saved(ball, config, monkeypatch):
    trainer = Trainer(replace(config, save_iterations=(8,)), scene=ball)
    error = OSError(30, "Read-only file system", "point_cloud.ply")
    monkeypatch.setattr(trainer.model, "save_ply", failing(trainer.model.save_ply, error, 8, trainer))
    with pytest.raises(
        InputError, match=r"iteration 8: point_cloud\.ply: Read-only file system; saved after"
    ):
        trainer.train()
    assert checkpoint.step_of(checkpoint.latest(config.output / "checkpoints")) == 8


def test_nothing_can_be_saved_either(ball, config, monkeypatch):
    trainer = Trainer(replace(config, checkpoint_every=8), scene=ball)
    error = OSError(30, "Read-only file system", "step.pt.tmp")
    monkeypatch.setattr(checkpoint, "save", failing(checkpoint.save, error, 8, trainer))
    with pytest.raises(InputError, match=r"Read-only file system.*no checkpoint could be saved \("):
        trainer.train()


def test_the_command_says_it_in_one_line(ball, config, monkeypatch, capsys):
    def out_of_memory(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Trainer, "_backward", out_of_memory)
    flags = ["--scene", str(ball.path), "--output", str(config.output), "--iterations", "3", "--quiet"]
    assert main(["train", *flags, "--device", "cpu"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(
        "gsopt: error: iteration 0: out of memory with 60 Gaussians; saved after iteration 0"
    )
