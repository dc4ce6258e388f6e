"""Optimizer state by name for every optimizer of torch, and for one from outside it."""

import pytest
import torch
from optimizing import same, train
from torch import nn

from gsopt.optim import build_optimizer, load_optimizer_state

SHAPES = {"a": (3, 2), "b": (2, 3), "c": (3, 3)}
OTHER_ORDER = ("c", "b", "a")
OPTIONS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"centered": True, "momentum": 0.5}}
LIKE_ADAM = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {
    "Optimizer",
    "LBFGS",
    "SparseAdam",
}


def tensors(order=tuple(SHAPES)) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    return {name: made[name] for name in order}


def step(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], steps: int, seed: int
) -> None:
    """Gradients that depend on the names, not on the order."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for name, shape in SHAPES.items():
            parameters[name].grad = torch.randn(shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", sorted(LIKE_ADAM))
def test_training_goes_on_alike_in_another_order(name):
    kind, options = getattr(torch.optim, name), {"lr": 0.1} | OPTIONS.get(name, {})
    first, second = tensors(), tensors(OTHER_ORDER)
    saved = kind(first.items(), **options)
    step(saved, first, 3, seed=1)
    for key, parameter in second.items():
        parameter.data.copy_(first[key])
    optimizer = kind(second.items(), **options)
    report = load_optimizer_state(optimizer, saved.state_dict())
    assert (report.complete, report.fresh, report.matched) == (True, [], list(OTHER_ORDER))
    step(saved, first, 3, seed=2)
    step(optimizer, second, 3, seed=2)
    assert same(first, {key: second[key] for key in first})


@pytest.mark.parametrize("name", sorted(LIKE_ADAM))
def test_other_shapes_are_found_before_the_first_step(name):
    kind = getattr(torch.optim, name)
    saved = kind([("a", nn.Parameter(torch.ones(5, 2)))], lr=0.1, **OPTIONS.get(name, {}))
    train(saved, 1)
    optimizer = kind([("a", nn.Parameter(torch.ones(3, 2)))], lr=0.1, **OPTIONS.get(name, {}))
    report = load_optimizer_state(optimizer, saved.state_dict(), strict=False)
    assert list(report.shape_mismatch) == ["a"]
    assert "[5, " in report.shape_mismatch["a"]
    train(optimizer, 1)


def test_adagrad_keeps_its_state_where_the_file_has_none():
    """It makes its state when it is built, and cannot step without."""
    saved, optimizer = torch.optim.SGD(tensors().items()), torch.optim.Adagrad(tensors().items())
    report = load_optimizer_state(optimizer, saved.state_dict(), strict=False)
    assert report.state_mismatch == dict.fromkeys(SHAPES, "needs step, sum, found none in the file")
    train(optimizer, 1)


def test_entries_of_a_damaged_file_may_have_any_names():
    optimizer = torch.optim.Adam(tensors().items())
    saved = optimizer.state_dict() | {"state": {0: {("step", 1): 2.0, 7: torch.zeros(1)}}}
    report = load_optimizer_state(optimizer, saved, strict=False)
    assert report.state_mismatch == {
        next(iter(SHAPES)): "needs step, exp_avg, exp_avg_sq, found ('step', 1), 7 in the file"
    }


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_of_ours_and_of_torch_take_each_other_s_state(name):
    ours = build_optimizer(name, [{"params": list(tensors().items())}], native=True, lr=0.1)
    theirs = type(ours).__bases__[-1](tensors(OTHER_ORDER).items(), lr=0.1)
    for saved, loaded in ((ours, theirs), (theirs, ours)):
        train(saved, 1)
        assert load_optimizer_state(loaded, saved.state_dict()).complete


def test_sparse_adam():
    a, b = nn.Embedding(4, 2, sparse=True), nn.Embedding(3, 2, sparse=True)
    saved = torch.optim.SparseAdam([("a", a.weight), ("b", b.weight)])
    (a(torch.tensor([1])).sum() + b(torch.tensor([2])).sum()).backward()
    saved.step()
    optimizer = torch.optim.SparseAdam([("b", b.weight), ("a", a.weight)])
    assert load_optimizer_state(optimizer, saved.state_dict()).complete
    assert same(
        {key: torch.as_tensor(value) for key, value in optimizer.state[a.weight].items()},
        {key: torch.as_tensor(value) for key, value in saved.state[a.weight].items()},
    )


def test_lbfgs_is_refused():
    optimizer = torch.optim.LBFGS(tensors().items())
    with pytest.raises(ValueError, match="one state for all parameters together"):
        load_optimizer_state(optimizer, optimizer.state_dict())


class Lion(torch.optim.Optimizer):
    """An optimizer from outside torch, Chen et al. 2023, whose constructor needs more than torch's do."""

    def __init__(self, params, scale: float):
        super().__init__(params, {"lr": scale})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter -= group["lr"] * momentum.lerp(parameter.grad, 0.1).sign()
                momentum.lerp_(parameter.grad, 0.01)


def test_an_optimizer_from_outside_torch():
    first, second = tensors(), tensors(OTHER_ORDER)
    saved, optimizer = Lion(first.items(), 0.1), Lion(second.items(), 0.1)
    step(saved, first, 2, seed=1)
    assert load_optimizer_state(optimizer, saved.state_dict()).complete
    assert all(same(optimizer.state[second[name]], saved.state[first[name]]) for name in SHAPES)


def test_sizes_that_cannot_be_of_an_optimizer_from_outside_torch():
    saved = Lion([("a", nn.Parameter(torch.ones(5, 2)))], 0.1)
    train(saved, 1)
    optimizer = Lion([("a", nn.Parameter(torch.ones(3, 2)))], 0.1)
    report = load_optimizer_state(optimizer, saved.state_dict(), strict=False)
    assert report.shape_mismatch == {"a": "momentum [5, 2] in the file, parameter [3, 2]"}


@pytest.mark.parametrize("dimensions", range(9))
def test_parameters_of_any_dimension(dimensions):
    shape = (2, 1, 3, 1, 2, 1, 2, 1)[:dimensions]
    saved, optimizer = (torch.optim.Adam([("a", nn.Parameter(torch.ones(shape)))]) for _ in range(2))
    train(saved, 1)
    assert load_optimizer_state(optimizer, saved.state_dict()).complete
    train(optimizer, 1)
