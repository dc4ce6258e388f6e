"""What other programs save with torch, by name and without running code: optimizers, models, both, none."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimizing import gaussian_groups, train
from torch import nn

from gsopt.commands import main
from gsopt.errors import InputError
from gsopt.inspection import compare, open_snapshot, tables
from gsopt.model import GaussianModel
from gsopt.optim import build_optimizer

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


def trained(parameters, kind=torch.optim.Adam, steps=3, **options) -> torch.optim.Optimizer:
    optimizer = kind(parameters, **{"lr": 0.1} | options)
    train(optimizer, steps)
    return optimizer


@pytest.fixture
def opened(tmp_path):
    def save_and_open(content, **how):
        torch.save(content, tmp_path / "a.pt", **how)
        return open_snapshot(tmp_path / "a.pt")

    return save_and_open


def test_an_optimizer_with_names(opened):
    found = opened(trained(layers().named_parameters()).state_dict())
    assert found.kind == "optimizer state"
    assert list(found.parameters) == NAMES
    assert [each.shape for each in found.parameters.values()] == [(3, 2), (3,), (4, 3), (4,)]
    assert all(each.value is None and each.state["step"] == 3 for each in found.parameters.values())
    assert found.groups["group 0"].options["lr"] == 0.1


def test_an_optimizer_without_names(opened):
    found = opened(trained(layers().parameters()).state_dict())
    assert list(found.parameters) == [f"group 0[{i}]" for i in range(4)]


def test_an_optimizer_before_its_first_step(opened):
    found = opened(trained(layers().named_parameters(), steps=0).state_dict())
    assert all(each.shape is None and not each.state for each in found.parameters.values())
    assert [line.split() for line in tables.snapshot_lines(found)[-4:]] == [
        [name, "group", "0", "-", "-", "-"] for name in NAMES
    ]


@pytest.mark.parametrize("keys", [("model", "optimizer"), ("model_state_dict", "optimizer_state_dict")])
@pytest.mark.parametrize("named", [True, False])
def test_model_and_optimizer_in_a_dict(opened, keys, named):
    model = layers()
    optimizer = trained(model.named_parameters() if named else model.parameters())
    content = dict(zip(keys, (model.state_dict(), optimizer.state_dict()), strict=True))
    found = opened({"epoch": 3, "step": 12, **content, "rng": {"cpu": torch.get_rng_state()}})
    assert (found.kind, found.step) == ("file of torch", 12)
    assert list(found.parameters) == NAMES
    for name, parameter in model.named_parameters():
        assert torch.equal(found.parameters[name].value, parameter)
        assert torch.equal(found.parameters[name].state["exp_avg"], optimizer.state[parameter]["exp_avg"])
    assert found.notes == (
        [] if named else ["the optimizer's state has no names: the model's are given to it in order"]
    )


def test_of_two_models_the_one_that_is_optimized(opened):
    model, average = layers(), layers()
    saved = {"ema": {"shadow": average[0].weight, "x": torch.ones(99)}, "net": model.state_dict()}
    found = opened({**saved, "optimizer": trained(model.named_parameters()).state_dict()})
    assert torch.equal(found.parameters["0.weight"].value, model[0].weight)
    assert found.notes == ["tensors under net are shown, not those under ema"]


def test_buffers_are_not_in_the_optimizer(opened):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = trained(model.named_parameters())
    found = opened({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert [name for name, each in found.parameters.items() if each.group is None] == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    assert any(line.startswith("1.running_var") for line in tables.snapshot_lines(found))


def test_tensors_of_any_type(opened):
    model = {
        "real": torch.ones(2, 2, dtype=torch.bfloat16),
        "complex": torch.full((2,), 3 + 4j),
        "mask": torch.tensor([True, False, True]),
        "index": torch.tensor([3, 4]),
        "none": torch.ones(0, 3),
        "number": torch.tensor(7),
    }
    found = opened(model)
    rows = [line.split() for line in tables.snapshot_lines(found)[4:]]
    assert [row[-1] for row in rows] == ["2", "7.071", "1.414", "5", "0", "7"]
    assert compare(found, found).same


def test_names_are_not_guessed_where_shapes_disagree(opened):
    optimizer = trained(reversed(list(layers().parameters())))
    found = opened({"model": layers().state_dict(), "optimizer": optimizer.state_dict()})
    assert found.parameters["group 0[0]"].value is None
    assert found.notes == ["the optimizer's state has no names, and its shapes are not the model's in order"]


def test_a_model_alone(opened):
    found = opened(layers().state_dict())
    assert (found.kind, found.about) == ("model state", ["no optimizer in it"])
    assert found.parameters["1.weight"].shape == (4, 3)


def test_two_optimizers(opened):
    a, b = layers(), layers()
    saved = {key: trained(m.named_parameters()).state_dict() for key, m in (("opt_g", a), ("opt_d", b))}
    found = opened(saved)
    assert list(found.groups) == ["opt_g.group 0", "opt_d.group 0"]
    assert list(found.parameters) == [*NAMES, *(f"{name} (2)" for name in NAMES)]


def test_a_checkpoint_of_the_original(opened):
    """`(gaussians.capture(), iteration)`: a tuple of twelve, the rates as numbers of NumPy."""
    model = GaussianModel(5)
    ours = ("xyz", "feature_dc", "feature_rest", "opacity", "scaling", "rotation")
    theirs = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")
    groups = [
        {"params": [getattr(model, name)], "lr": np.float64(0.01), "name": label}
        for name, label in zip(ours, theirs, strict=True)
    ]
    optimizer = trained(groups, lr=0.0, eps=1e-15)
    order = ("xyz", "feature_dc", "feature_rest", "scaling", "rotation", "opacity")
    statistics = [torch.zeros(5)] * 3
    captured = (3, *(getattr(model, name) for name in order), *statistics, optimizer.state_dict(), 1.5)
    found = opened((captured, 30_000))
    assert (found.kind, found.step) == ("checkpoint of the original 3DGS", 30_000)
    assert list(found.parameters) == list(theirs)
    for name, label in zip(ours, theirs, strict=True):
        assert torch.equal(found.parameters[label].value, getattr(model, name))
        assert found.parameters[label].shape == tuple(getattr(model, name).shape)
    assert found.groups["f_dc"].options["lr"] == 0.01
    assert tables.snapshot_json(found)["groups"]["f_dc"]["lr"] == 0.01


OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_prints_and_compares(opened, name):
    model = GaussianModel(4)
    optimizer = build_optimizer(name, gaussian_groups(model))
    train(optimizer, 2)
    found = opened({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    lines = tables.snapshot_lines(found)
    assert all(len(line) <= 110 for line in lines[1:])
    entries = optimizer.state[model.xyz]
    assert all(any(f" {entry}" in line for line in lines) for entry in entries)
    assert compare(found, found).same


def test_steps_of_rows_are_a_range(opened):
    optimizer = trained(layers().named_parameters())
    content = optimizer.state_dict()
    content["state"][0]["step"] = torch.tensor([1.0, 7.0, 3.0])
    lines = tables.snapshot_lines(opened(content))
    assert next(line for line in lines if line.startswith("0.weight")).split()[-5:-2] == ["1", "to", "7"]


# ---------------------------------------- what cannot be read


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


REFUSED = {
    "code": ({"a": Evil()}, {}, "holds posix.system, which only running code from the file would restore"),
    "code, old format": ({"a": Evil()}, {"_use_new_zipfile_serialization": False}, "holds posix.system, "),
    "a module": (layers(), {}, "holds torch.nn.modules.container.Sequential, which only running code"),
    "an argparse": ({"args": argparse.Namespace()}, {}, "holds argparse.Namespace, "),
    "a tensor": (torch.zeros(3), {}, "holds no state_dict of a model or an optimizer, found .*Tensor"),
    "numbers": ({"step": 3}, {}, "holds no state_dict .* found the keys step; give a checkpoint, the folder"),
    "half a state": ({"state": {}, "param_groups": 3}, {}, "holds no state_dict"),
    "groups of nothing": ({"state": {0: 1}, "param_groups": [{"params": [0]}]}, {}, "holds no state_dict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case, capfd):
    content, how, message = REFUSED[case]
    path = tmp_path / "a.pt"
    torch.save(content, path, **how)
    with pytest.raises(InputError, match=message) as caught:
        open_snapshot(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no checkpoint"),
        (b"hello\n" * 50, "damaged or no checkpoint"),
        (pickle.dumps(Evil()), "a bare pickle, which cannot be read without running code from it"),
        (b"ply\nformat ascii 1.0\n", "not a complete PLY file"),
    ],
)
def test_what_torch_never_wrote(tmp_path, content, message, capfd):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"gsopt: error: {path}: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "executed" not in captured.out


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "old format"])
def healthy(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "a.pt"
    content = {"model": layers().state_dict(), "optimizer": trained(layers().named_parameters()).state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=request.param)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(healthy, data):
    """Bytes changed or cut off anywhere: never a traceback, never another kind of error."""
    content = bytearray(healthy.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content) // 2, len(content) - 1]))]
    path = healthy.with_name("b.pt")
    path.write_bytes(content)
    message = f"{path}: read"
    try:
        tables.snapshot_lines(open_snapshot(path))
    except InputError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
