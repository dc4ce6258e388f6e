"""Checkpoints on disk: complete or absent, read back to the bit, damage reported."""

import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from optimizing import gaussian_groups, same, train

from gsopt import checkpoint
from gsopt.errors import InputError
from gsopt.model import GaussianModel
from gsopt.optim import build_optimizer, load_optimizer_state


def everything() -> dict:
    return {
        "step": 7,
        "tensor": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
        "generator": torch.Generator().manual_seed(5).get_state(),
        "list": [1, 2.5, None, True, "text", (1, 2)],
        "by index": {0: {"a": torch.tensor(1.0)}, 1: {}},
    }


def test_and_back(tmp_path):
    state = everything()
    path = checkpoint.path_of(tmp_path / "checkpoints", 7)
    checkpoint.save(path, state)
    assert path.name == "step_00000007.pt"
    loaded = checkpoint.load(path)
    assert same(
        {"t": loaded["tensor"], "g": loaded["generator"]}, {"t": state["tensor"], "g": state["generator"]}
    )
    assert loaded["list"] == state["list"]
    assert loaded["by index"][0]["a"] == 1
    assert os.listdir(path.parent) == [path.name]


def test_training_goes_on_to_the_same_bits(tmp_path):
    model = GaussianModel(5)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, 3)
    checkpoint.save(tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    loaded = checkpoint.load(tmp_path / "a.pt")
    other = GaussianModel()
    other.load_state_dict(loaded["model"])
    resumed = build_optimizer("adam", gaussian_groups(other))
    assert load_optimizer_state(resumed, loaded["optimizer"]).complete
    for each in (optimizer, resumed):
        train(each, 10, seed=1)
    assert same(model.state_dict(), other.state_dict())


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path):
    checkpoint.save(tmp_path / "a.pt", {"view": torch.zeros(1_000_000)[:3]})
    assert (tmp_path / "a.pt").stat().st_size < 10_000


NOT_PLAIN = {
    "path": ({"a": {"b": [Path("x")]}}, r"state\.a\.b\[0\]: .* found (Posix|Windows)Path; convert it"),
    "numpy number": ({"a": np.float32(1)}, r"state\.a: .* found float32"),
    "array": ({"a": np.zeros(2)}, "found ndarray"),
    "key": ({"a": {1.5: 0}}, r"state\.a: expected keys of type str or int, found 1\.5"),
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, case):
    state, message = NOT_PLAIN[case]
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path / "a.pt", state)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_file_gets_its_name_once_it_is_on_the_disk(tmp_path, monkeypatch):
    """Its content is flushed, then it is renamed, then the folder is flushed: also a power cut leaves one."""
    done = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor):
        done.append("file" if stat.S_ISREG(os.fstat(descriptor).st_mode) else "folder")
        fsync(descriptor)

    def renamed(path, target):
        done.append(f"{path.name} -> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    checkpoint.save(tmp_path / "a.pt", {"step": 1})
    assert done == ["file", "a.pt.tmp -> a.pt", "folder"]


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


def spoiled(path: Path, how: str) -> None:
    checkpoint.save(path, everything())
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        place = content.index(everything()["tensor"].numpy().tobytes())
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello\n")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif how == "torch file with code":
        torch.save({"a": Evil()}, path)
    elif how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "another torch file":
        torch.save({"splats": 1}, path)
    elif how == "later version":
        torch.save({"format": checkpoint.FORMAT, "version": 99, "state": {}}, path)


SPOILED = {
    "one bit": "the checksum of .* is wrong; delete it",
    "truncated": "damaged or no checkpoint",
    "empty": "damaged or no checkpoint",
    "text": "damaged or no checkpoint",
    "pickle": "a bare pickle, which cannot be read without running code from it",
    "torch file with code": r"holds posix\.system, which only running code from the file would restore",
    "missing": "no such file",
    "folder": "cannot be read",
    "another torch file": "expected a gsopt checkpoint, found another kind of file",
    "later version": "expected version 1 of the format, found 99",
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_named_in_one_line(tmp_path, how, capfd):
    path = tmp_path / "step_00000001.pt"
    spoiled(path, how)
    with pytest.raises(InputError, match=SPOILED[how]) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


def test_latest_and_prune_go_by_the_step(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.latest(tmp_path) is None
    for step in (1000, 900, 123_456_789, 5):
        checkpoint.save(checkpoint.path_of(tmp_path, step), {"step": step})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step_00000007.pt.tmp").write_text("killed while writing")
    assert checkpoint.load(checkpoint.latest(tmp_path)) == {"step": 123_456_789}

    deleted = checkpoint.prune(tmp_path, keep=2)
    assert [checkpoint.step_of(path) for path in deleted] == [5, 900]
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path)] == [1000, 123_456_789]
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step_00001000.pt", "step_123456789.pt"]
    with pytest.raises(ValueError, match="keep: expected at least 1, found 0"):
        checkpoint.prune(tmp_path, keep=0)
