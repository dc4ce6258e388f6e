"""Checkpoints that are damaged or cannot be written: what is told, and from where a run goes on."""

import errno
import os
import warnings
from dataclasses import replace

import pytest
import scenes
import torch

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.errors import InputError
from gsopt.trainer import Trainer


@pytest.fixture
def config(tmp_path):
    scene = scenes.write_nerf_synthetic(tmp_path / "ball", points=60)
    return TrainConfig(
        scene=scene,
        output=tmp_path / "run",
        iterations=6,
        checkpoint_every=2,
        keep=3,
        device="cpu",
        quiet=True,
    )


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_newest_one_is_reported_and_the_one_before_is_used(tmp_path):
    paths = [checkpoint.path_of(tmp_path, step) for step in (1, 2, 3)]
    for path in paths:
        checkpoint.save(path, {"step": checkpoint.step_of(path)})
    damage(paths[2])
    with pytest.warns(UserWarning, match=r"step_00000003\.pt: .*renamed.*going on from step_00000002\.pt"):
        found = checkpoint.load_latest(tmp_path)
    assert found == (paths[1], {"step": 2})
    assert checkpoint.find(tmp_path) == paths[:2]
    damage(paths[0])
    damage(paths[1])
    with pytest.raises(InputError, match="no other is left"):
        checkpoint.load_latest(tmp_path)
    assert checkpoint.find(tmp_path) == paths[:2]  # nothing is renamed then


def test_a_newest_one_that_the_disk_cannot_read_is_as_good_as_damaged(tmp_path, monkeypatch):
    paths = [checkpoint.path_of(tmp_path, step) for step in (1, 2)]
    for path in paths:
        checkpoint.save(path, {"step": checkpoint.step_of(path)})
    is_whole = checkpoint._check_kind

    def worn_out(path, remedy):
        if path == paths[1]:
            raise OSError(errno.EIO, "Input/output error")
        is_whole(path, remedy)

    monkeypatch.setattr(checkpoint, "_check_kind", worn_out)
    with pytest.warns(UserWarning, match=r"step_00000002\.pt: cannot be read .Input/output error.; renamed"):
        assert checkpoint.load_latest(tmp_path) == (paths[0], {"step": 1})


def test_a_state_that_is_not_what_was_written_is_damaged(tmp_path):
    """Each part of the file is whole, but not together; files without a checksum are read as before."""
    path = tmp_path / "step_00000001.pt"
    checkpoint.save(path, {"a": torch.zeros(3)})
    content = torch.load(path, weights_only=True)
    content["state"]["a"][1] = -0.0
    torch.save(content, path)
    with pytest.raises(checkpoint.DamagedError, match="the checksum of its state is wrong"):
        checkpoint.load(path)
    del content["sha256"]
    torch.save(content, path)
    assert checkpoint.load(path)["a"].tolist() == [0, 0, 0]


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_a_checkpoint_not_the_run(config, monkeypatch):
    """fsync of the checkpoint of step 4 fails; those of steps 2 and 6 are there in the end."""
    trainer = Trainer(replace(config, test_iterations=(), save_iterations=()))
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: full_disk() if trainer.step == 4 else fsync(fd))
    with pytest.warns(UserWarning, match="the checkpoint of iteration 4 is not written .No space left"):
        trainer.train()
    found = checkpoint.find(trainer.run.checkpoints)
    assert [checkpoint.step_of(path) for path in found] == [2, 6]
    assert [checkpoint.load(path)["step"] for path in found] == [2, 6]


def test_a_full_disk_at_the_end_is_an_error(config, monkeypatch):
    trainer = Trainer(config)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: full_disk() if trainer.step == 6 else fsync(fd))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"iteration 6 cannot be saved .No space.*step_00000004\.pt"):
            trainer.train()
