"""The note's experiment: the same layers in another order, and an optimizer's state that follows the order.

A model of two linear layers is trained for two steps and saved beside its optimizer. A second class has the
same layers, declared the other way round. Values load by name and are right; the optimizer's state loads by
position and is not.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import gsopt
from gsopt import GroupSpec
from gsopt.inspection import open_snapshot

MESSAGE = r"The size of tensor a \(2\) must match the size of tensor b \(3\) at non-singleton dimension 1"


class RangeDataset(Dataset):
    """Row i is (2i, 2i + 1)."""

    def __init__(self, length: int):
        self.data = torch.arange(length * 2).reshape(-1, 2).float()

    def __getitem__(self, index):
        return self.data[index]

    def __len__(self):
        return len(self.data)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(2, 3)
        self.linear2 = nn.Linear(3, 4)

    def forward(self, x):
        return self.linear2(self.linear1(x))


class Model2(nn.Module):
    """The same but for the order of the two layers."""

    def __init__(self):
        super().__init__()
        self.linear2 = nn.Linear(3, 4)
        self.linear1 = nn.Linear(2, 3)

    forward = Model.forward


NAMES = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]  # in the order of Model


def batches(count: int) -> list[torch.Tensor]:
    return list(DataLoader(RangeDataset(length=100), batch_size=5))[:count]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for inputs in batches(steps):
        outputs = model(inputs)
        loss = F.mse_loss(outputs, torch.randn(outputs.shape, generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def unnamed(model: nn.Module) -> torch.optim.Adam:
    """As the note builds it: torch then has no names to save."""
    return torch.optim.Adam(model.parameters(), lr=1)


def named(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.named_parameters(), lr=1)


def grouped(model: nn.Module) -> torch.optim.Adam:
    specs = {"linear1": GroupSpec(lr=1), "linear2": GroupSpec(lr=1)}
    return torch.optim.Adam(gsopt.build_groups(model, specs))


@pytest.fixture(params=[unnamed, named, grouped])
def saved(request, tmp_path):
    """Model and optimizer after two steps, their two files, and how the optimizer was built."""
    torch.manual_seed(42)
    model = Model()
    optimizer = request.param(model)
    train(model, optimizer, seed=1)
    torch.save(model.state_dict(), tmp_path / "model_0.pth")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer_0.pth")
    return model, optimizer, tmp_path, request.param


def restored(folder) -> Model2:
    model = Model2()
    model.load_state_dict(torch.load(folder / "model_0.pth"))
    return model


def test_values_are_matched_by_name(saved):
    model, _, folder, _ = saved
    other = restored(folder)
    for name in NAMES:
        assert torch.equal(other.get_parameter(name), model.get_parameter(name))
        assert other.get_parameter(name).grad is None


def test_the_optimizer_of_torch_matches_by_order_and_fails_a_step_later(saved):
    _, _, folder, build = saved
    model = restored(folder)
    optimizer = build(model)
    optimizer.load_state_dict(torch.load(folder / "optimizer_0.pth"))  # not a word
    assert optimizer.state[model.linear2.weight]["exp_avg"].shape == model.linear1.weight.shape
    with pytest.raises(RuntimeError, match=MESSAGE):
        train(model, optimizer, seed=2)


def test_by_name_training_goes_on_as_if_nothing_had_been_moved(saved):
    """The same bits after two more steps, in either order. A file without names needs the list of them."""
    model, optimizer, folder, build = saved
    other = restored(folder)
    resumed = (named if build is unnamed else build)(other)
    state = torch.load(folder / "optimizer_0.pth")
    report = gsopt.load_optimizer_state(resumed, state, names=NAMES if build is unnamed else None)
    assert sorted(report.matched) == sorted(NAMES)
    assert report.hyperparameters == {}
    for each, its in ((model, optimizer), (other, resumed)):
        train(each, its, seed=2)
    for name in NAMES:
        assert torch.equal(other.get_parameter(name), model.get_parameter(name))
        mine, theirs = resumed.state[other.get_parameter(name)], optimizer.state[model.get_parameter(name)]
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("saved", [unnamed], indirect=True)
def test_a_file_without_names_is_not_guessed_at(saved):
    folder = saved[2]
    with pytest.raises(ValueError, match=r"no parameter names; give names=\[\.\.\.\] in the order"):
        gsopt.load_optimizer_state(named(restored(folder)), torch.load(folder / "optimizer_0.pth"))


def test_torch_restores_rates_and_we_report_them(saved):
    """torch takes `lr` and `weight_decay` from the file; here what was asked for stays, and is told."""
    _, _, folder, build = saved
    state = torch.load(folder / "optimizer_0.pth")
    model = restored(folder)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.25, weight_decay=0.125)
    report = gsopt.load_optimizer_state(optimizer, state, names=NAMES if build is unnamed else None)
    assert report.hyperparameters["group 0.lr"] == (1, 0.25)
    assert report.hyperparameters["group 0.weight_decay"] == (0, 0.125)
    assert optimizer.param_groups[0]["lr"] == 0.25

    theirs = torch.optim.Adam(Model().parameters(), lr=0.25, weight_decay=0.125)
    if build is not grouped:  # else torch refuses another number of groups
        theirs.load_state_dict(state)
        assert (theirs.param_groups[0]["lr"], theirs.param_groups[0]["weight_decay"]) == (1, 0)


def test_inspect_reads_the_files_of_the_experiment(saved):
    _, _, folder, build = saved
    found = open_snapshot(folder / "optimizer_0.pth")
    assert [parameter.shape for parameter in found.parameters.values()] == [(3, 2), (3,), (4, 3), (4,)]
    assert all(parameter.state["step"] == 2 for parameter in found.parameters.values())
    assert list(found.parameters) == [f"group 0[{i}]" for i in range(4)] if build is unnamed else NAMES
