"""Runs with locked Gaussians: an edit of a trained splat, its end, and going on with it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch
from test_monitor import read

import gsopt
from gsopt import checkpoint
from gsopt.commands import main
from gsopt.commands.train import opening
from gsopt.config import TrainConfig
from gsopt.datasets import read_splat
from gsopt.errors import InputError
from gsopt.group_options import GroupOptions, Groups
from gsopt.locks import locked_rows
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.recorder import Recorder
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer

HALF = "box:-inf,-inf,-inf,0,inf,inf"  # of the ball: x up to 0
EVERYTHING = "box:-9,-9,-9,9,9,9"
ITERATIONS = 40


@pytest.fixture(scope="module")
def splat(tmp_path_factory):
    """A scene, and a splat of it with harmonics that are not zero."""
    folder = tmp_path_factory.mktemp("locks")
    scene = scenes.write_nerf_synthetic(folder / "ball", points=60)
    xyz, rgb = scenes.ball_points(80)
    model = GaussianModel.from_points(xyz, rgb / 255, sh_degree=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.feature_rest.copy_(torch.randn(80, 3, 3, generator=generator) / 20)
        model.scaling.add_(torch.randn(80, 1, generator=generator))
        model.opacity.copy_(torch.randn(80, 1, generator=generator) * 3)  # some are faint
    model.save_ply(folder / "splat.ply")
    return scene, folder / "splat.ply"


@pytest.fixture
def config(splat, tmp_path):
    scene, init = splat
    return TrainConfig(
        scene=scene,
        init=init,
        start_step=0,  # as a new run: with the rates of a start
        init_warmup=0,
        output=tmp_path / "run",
        iterations=ITERATIONS,
        sh_degree=1,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        groups=Groups(opacity=GroupOptions(weight_decay=0.1)),
        strategy="default",
        densify=DefaultStrategy(
            refine_start_iter=5,
            refine_stop_iter=36,
            refine_every=5,
            reset_every=20,
            grow_grad2d=1e-5,
            grow_scale3d=0.05,
            prune_opa=0.05,
        ),
        lock=[HALF],
        init_rates="restart",  # so that what is not locked moves far enough to tell
        max_gaussians=150,
    )


def locked_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Values and moments of the locked rows."""
    found = {}
    for name, rows in locked_rows(trainer.model).items():
        parameter = trainer.model.get_parameter(name)
        state = trainer.optimizer.state.get(parameter, {})
        found |= {
            f"{name}.{key}": state[key][rows].clone() for key in ("exp_avg", "exp_avg_sq") if key in state
        }
        found[name] = parameter.detach()[rows].clone()
    return found


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key].view(torch.int32), b[key].view(torch.int32)) for key in a
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_edit_leaves_what_is_locked(config, splat, optimizer):
    before = read_splat(splat[1])
    inside = before["xyz"][:, 0] <= 0
    trainer = Trainer(replace(config, optimizer=optimizer))
    trainer.train()
    after = read_splat(trainer.run.ply(ITERATIONS))
    refined = read(trainer.run.path)
    for what in ("cloned", "split", "pruned"):
        assert sum(event.value for event in refined.Scalars(f"gaussians/{what}")) > 0
    rows = trainer.model.locked.numpy()
    assert inside.sum() == rows.sum()
    for name, values in before.items():
        assert values[inside].tobytes() == after[name][rows].tobytes(), name
    assert np.abs(after["opacity"][~rows]).min() > 0
    assert {tuple(row) for row in before["xyz"][~inside]}.isdisjoint(map(tuple, after["xyz"][~rows]))
    assert all((tensor == 0).all() for entry, tensor in locked_state(trainer).items() if "." in entry)


def test_only_some_attributes(config, splat):
    before = read_splat(splat[1])
    inside = before["xyz"][:, 0] <= 0
    trainer = Trainer(replace(config, lock_attributes=["xyz", "feature-rest"]))
    trainer.train()
    after = read_splat(trainer.run.ply(ITERATIONS))
    rows = trainer.model.locked.numpy()
    same = {name for name in ATTRIBUTES if before[name][inside].tobytes() == after[name][rows].tobytes()}
    assert same == {"xyz", "feature_rest"}


@pytest.mark.parametrize("middle", [5, 17, 20])
def test_a_run_stopped_and_continued_has_the_same_bits(config, tmp_path, middle):
    straight = Trainer(replace(config, output=tmp_path / "straight"))
    straight.train()
    Trainer(replace(config, checkpoint_every=middle, keep=100)).train()
    for path in checkpoint.find(config.output / "checkpoints"):
        if checkpoint.step_of(path) != middle:
            path.unlink()
    (config.output / "metrics.json").unlink()
    again = Trainer(TrainConfig.of_run(config.output))
    assert again.step == middle
    again.train()
    ours, theirs = again.model.state_dict(), straight.model.state_dict()
    assert ours.keys() == theirs.keys() == {*ATTRIBUTES, "locks"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert same_bits(locked_state(again), locked_state(straight))


def resumed(config, iterations=ITERATIONS + 20, **changes) -> Trainer:
    return Trainer(replace(TrainConfig.of_run(config.output), iterations=iterations, **changes))


def test_a_resumed_run_keeps_its_rows_although_their_file_is_gone(config, tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(10, 30))
    trainer = Trainer(replace(config, lock=[tmp_path / "rows.npy"]))
    assert torch.nonzero(trainer.model.locked).flatten().tolist() == list(range(10, 30))
    trainer.train()
    (tmp_path / "rows.npy").unlink()
    before = locked_state(trainer)
    again = resumed(config)
    assert same_bits(locked_state(again), before)
    again.train()
    assert same_bits(locked_state(again), before)


def test_other_locks_on_resume_replace_those_of_the_run(config):
    """Rows that have moments by now keep them; those unlocked move."""
    first = Trainer(config)
    first.train()
    again = resumed(config, lock=[f"outside:{HALF}"], lock_attributes=["opacity", "xyz"])
    locked = again.model.locked
    assert torch.equal(locked, again.model.xyz[:, 0] > 0)  # as they are now
    assert not (locked & first.model.locked).any()
    assert set(locked_rows(again.model)) == {"xyz", "opacity"}
    held, free = locked_state(again), again.model.xyz.detach()[~locked].clone()
    assert (held["xyz.exp_avg"] != 0).any()
    again.train()
    assert same_bits(locked_state(again), held)
    assert (again.model.xyz[: len(locked)][~locked] != free).any()


def test_no_locks_on_resume_unlock(config):
    Trainer(config).train()
    assert resumed(config, lock=[]).model.locked is None
    assert resumed(config).model.locked is not None  # the first one has not saved anything


def test_an_interrupted_resume_with_other_locks_still_asks_for_them(config):
    """Its config.json has them already, the checkpoint not yet."""
    Trainer(config).train()
    other = resumed(config, lock=["sphere:0,0,0,0.9"])
    rows = other.model.locked
    Recorder(other).begin()
    again = resumed(config)
    assert again.config.lock == ("sphere:0,0,0,0.9",)
    assert torch.equal(again.model.locked, rows)


def test_a_model_locked_before_the_run_stays_so(config, splat):
    model = GaussianModel.load_ply(splat[1])
    gsopt.lock(model, [3, 4], "rotation")
    trainer = Trainer(replace(config, lock=[]), model=model)
    before = locked_state(trainer)
    trainer.train()
    assert int(trainer.model.locked.sum()) == 2
    assert torch.equal(locked_state(trainer)["rotation"], before["rotation"])
    assert int(resumed(config).model.locked.sum()) == 2


def test_what_a_run_tells(config, splat, capsys):
    trainer = Trainer(config)
    count = int(trainer.model.locked.sum())
    assert f"locked    {count} of 80 Gaussians (--lock)" in opening(trainer)
    some = Trainer(replace(config, lock_attributes=("opacity", "xyz"), output=config.output / "b"))
    assert f"locked    {count} of 80 Gaussians in xyz, opacity (--lock)" in opening(some)
    trainer.train()
    assert [(e.step, e.value) for e in read(config.output).Scalars("gaussians/locked")] == [(0, count)]
    free = Trainer(replace(config, lock=(), output=config.output / "c"))
    assert not [line for line in opening(free) if line.startswith("locked")]


def test_norms_leave_locked_rows_out(config, monkeypatch):
    """They have no gradient and no update, although the optimizer's weight decay would move them."""
    monkeypatch.setattr("gsopt.monitor.NORMS_EVERY", 1)
    locks = dict(lock=[EVERYTHING], lock_attributes=["opacity"])
    Trainer(replace(config, iterations=2, optimizer="sgd", **locks)).train()
    events = read(config.output)
    for norm in ("grad_norm", "update_norm", "moment_norm"):
        assert [event.value for event in events.Scalars(f"{norm}/opacity")] == [0, 0]
    assert events.Scalars("grad_norm/scaling")[-1].value > 0
    assert events.Scalars("update_norm/scaling")[-1].value > 0


def test_evaluate_and_render_a_locked_run(config, capsys):
    Trainer(replace(config, iterations=3)).train()
    assert main(["evaluate", str(config.output)]) == 0
    assert main(["render", str(config.output)]) == 0


def test_the_code_in_the_docs_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "locking.md").read_text(encoding="utf-8")
    xyz = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 6 - 2
    GaussianModel.from_points(xyz, torch.rand(4000, 3), sh_degree=0).save_ply(tmp_path / "scene.ply")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    rows = np.load("rows.npy")
    assert rows.dtype == bool
    assert 0 < rows.sum() < len(rows)


# ---------------------------------------- refusals

REFUSED = {
    "all of it": (dict(lock=[EVERYTHING]), "--lock: that is all 80 Gaussians, so there is nothing to train"),
    "all of it, without densification": (dict(lock=[EVERYTHING], strategy="none"), "nothing to train"),
    "what is not frozen or excluded": (
        dict(lock=[EVERYTHING], lock_attributes=["xyz", "opacity"], freeze=["scaling", "rotation"])
        | dict(exclude=["feature-dc", "feature_rest"]),
        "nothing to train",
    ),
    "nothing": (dict(lock=["sphere:9,9,9,1"]), "--lock sphere:9,9,9,1: no Gaussian is there"),
    "unknown attribute": (dict(lock_attributes=["colour"]), "--lock-attributes colour: no such attribute"),
    "no attribute": (dict(lock_attributes=[]), "--lock-attributes: expected at least one of"),
    "no region": (dict(lock=["cube:1"]), "--lock cube:1: not a region"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_locks_that_cannot_be(config, case):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        Trainer(replace(config, **changes))
    assert not config.output.exists()


def test_all_rows_may_be_locked_while_something_moves(config):
    trainer = Trainer(replace(config, iterations=3, lock=[EVERYTHING], lock_attributes=["xyz", "scaling"]))
    trainer.train()
    assert trainer.model.num_gaussians == 80


@pytest.mark.filterwarnings("always")
def test_attributes_without_a_lock_are_pointed_out(splat, tmp_path, capsys):
    words = ["train", "--scene", splat[0], "--output", tmp_path / "run", "--iterations", "2", "--quiet"]
    assert main([str(word) for word in [*words, "--lock-attributes", "xyz", "--device", "cpu"]]) == 0
    assert "--lock-attributes: without effect, because there is no --lock" in capsys.readouterr().err
