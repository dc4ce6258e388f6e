"""What is cut from a splat in the viewer, and the files that come of it."""

import numpy as np
import pytest
import scenes
import torch

from gsopt.config import TrainConfig
from gsopt.errors import InputError
from gsopt.formats import Splat, read
from gsopt.model import GaussianModel
from gsopt.trainer import Trainer
from gsopt.viewer.edit import LOCKED, Edits, inside_out

LEFT, RIGHT = "box:-9,-9,-9,0,9,9", "box:0,-9,-9,9,9,9"  # of the ball, by x
ALL, NOWHERE = "box:-9,-9,-9,9,9,9", "box:7,7,7,8,8,8"


@pytest.fixture
def splat(tmp_path) -> Splat:
    xyz, rgb = scenes.ball_points(50)
    GaussianModel.from_points(xyz, rgb / 255, sh_degree=1).save_ply(tmp_path / "ball.ply")
    return read(tmp_path / "ball.ply")


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], lambda x: x == x),
        ([("crop", LEFT)], lambda x: x <= 0),
        ([("delete", LEFT)], lambda x: x > 0),
        ([("delete", LEFT), ("crop", RIGHT)], lambda x: x > 0),
        ([("delete", LEFT), ("undo", None)], lambda x: x == x),
        ([("crop", LEFT), ("delete", "box:-9,-9,-9,-0.5,9,9")], lambda x: (x <= 0) & (x > -0.5)),
        ([("crop", LEFT), ("delete", "box:-9,-9,-9,-0.5,9,9"), ("undo", None)], lambda x: x <= 0),
    ],
)
def test_what_is_left_keeps_its_bits(splat, tmp_path, steps, left):
    edits = Edits(splat)
    for what, region in steps:
        getattr(edits, what)(*([region] if region else []))
    rows = left(splat.tensors["xyz"][:, 0])
    assert edits.count == rows.sum()
    edits.save(tmp_path / "new.ply")
    saved = read(tmp_path / "new.ply").tensors
    for name, value in splat.tensors.items():
        assert torch.equal(saved[name], value[rows]), name
    assert not (tmp_path / f"new.ply{LOCKED}").exists()


def test_locked_rows_are_saved_for_a_run_to_lock(splat, tmp_path):
    scene = scenes.write_nerf_synthetic(tmp_path / "scene", points=60)
    edits = Edits(splat)
    edits.lock(LEFT)
    edits.lock("box:0.5,-9,-9,9,9,9")
    edits.delete("box:-9,-9,-9,-0.5,9,9")
    told = edits.save(tmp_path / "new.ply")
    rows = tmp_path / f"new.ply{LOCKED}"
    assert told.endswith(f"train on with: gsopt train --init {tmp_path / 'new.ply'} --lock {rows}")
    x = read(tmp_path / "new.ply").tensors["xyz"][:, 0]
    expected = (x <= 0) | (x >= 0.5)
    assert np.array_equal(np.load(rows), expected.numpy())
    assert 0 < expected.sum() < len(x)
    config = TrainConfig(
        scene=scene, init=tmp_path / "new.ply", lock=(rows,), iterations=2, device="cpu", quiet=True
    )
    assert torch.equal(Trainer(config).model.locked, expected)


def test_undo_goes_back_step_by_step_and_knows_what_is_saved(splat, tmp_path):
    edits = Edits(splat)
    assert edits.saved
    edits.lock(LEFT)
    locked = edits.locked
    assert not edits.saved
    edits.crop(RIGHT)
    assert not edits.locked.any() or (splat.tensors["xyz"][edits.locked, 0] == 0).all()
    edits.save(tmp_path / "new.ply")
    assert edits.saved
    edits.undo()
    assert not edits.saved
    assert torch.equal(edits.locked, locked)
    assert edits.splat.count == 50
    edits.undo()
    assert edits.saved is False  # what is saved is the crop
    assert edits.unlock() == "no Gaussian is locked"
    edits.undo()
    with pytest.raises(InputError, match="nothing has been done"):
        edits.undo()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda edits, _: edits.crop(NOWHERE), "the box: box:7,7,7,8,8,8: no Gaussian is there"),
        (lambda edits, _: edits.delete(NOWHERE), "no Gaussian is there"),
        (lambda edits, _: edits.lock(NOWHERE), "no Gaussian is there"),
        (lambda edits, _: edits.delete(ALL), "all Gaussians are in it, so none would be left"),
        (lambda edits, folder: edits.save(folder / "ball.ply"), "ball.ply: there is something here already"),
        (lambda edits, folder: edits.save(folder / "new.pth"), "expected a name that ends in one of .ply"),
        (lambda edits, folder: edits.save(folder / "new"), "expected a name that ends in one of .ply"),
    ],
)
def test_what_cannot_be_done_changes_nothing(splat, tmp_path, act, message):
    edits = Edits(splat)
    before = (tmp_path / "ball.ply").read_bytes()
    with pytest.raises(InputError, match=message):
        act(edits, tmp_path)
    assert edits.saved
    assert edits.count == 50
    assert [path.name for path in tmp_path.iterdir()] == ["ball.ply"]
    assert (tmp_path / "ball.ply").read_bytes() == before


def test_a_file_is_replaced_when_it_is_said_so(splat, tmp_path):
    edits = Edits(splat)
    edits.lock(LEFT)
    edits.save(tmp_path / "new.ply")
    edits.unlock()
    with pytest.raises(InputError, match=r"new\.ply: there is something here already"):
        edits.save(tmp_path / "new.ply")
    edits.crop(LEFT)
    edits.save(tmp_path / "new.ply", replace=True)
    assert read(tmp_path / "new.ply").count == edits.count
    assert not (tmp_path / f"new.ply{LOCKED}").exists()  # it was of the other


def test_rows_that_are_locked_have_no_place_beside_a_compressed_ply(splat, tmp_path):
    edits = Edits(splat)
    edits.lock(LEFT)
    with pytest.raises(InputError, match="another order"):
        edits.save(tmp_path / "new.compressed.ply")
    edits.unlock()
    assert "other order" in edits.save(tmp_path / "new.compressed.ply")


def test_inside_out():
    assert inside_out(LEFT) == f"outside:{LEFT}"
    assert inside_out(f"outside:{LEFT}") == LEFT
