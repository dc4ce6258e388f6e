"""Rows that come, go and change, with their moments: examples, and random sequences against a slow model."""

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from optimizing import gaussian_groups, train
from torch import nn

from gsopt.groups import GroupSpec, build_groups, freeze, gaussian_specs, unfreeze
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.surgery import append, keep, overwrite, resize


def numbered(rows: int, degree: int = 1) -> GaussianModel:
    """A model in which every number of row i is i."""
    model = GaussianModel(rows, degree)
    with torch.no_grad():
        for parameter in model.parameters():
            index = torch.arange(rows, dtype=torch.float32)
            parameter.copy_(index.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter))
    return model


def values_like(model: GaussianModel, rows: int, value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((rows, *p.shape[1:]), value) for name, p in model.named_parameters()}


def row_numbers(parameter: torch.Tensor) -> list[float]:
    return parameter.detach().flatten(1)[:, 0].tolist()


@pytest.mark.parametrize("rows", [[True, False, True, True, False], [0, 2, 3]])
@pytest.mark.parametrize("steps", [0, 3])
def test_keep_moves_values_and_moments(rows, steps):
    model = numbered(5)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, steps)
    before = {
        name: (p.detach().clone(), {k: v.clone() for k, v in optimizer.state.get(p, {}).items()})
        for name, p in model.named_parameters()
    }
    keep(model, ATTRIBUTES, optimizer, torch.tensor(rows))
    for name, parameter in model.named_parameters():
        value, state = before[name]
        assert torch.equal(parameter, value[[0, 2, 3]])
        moved = optimizer.state.get(parameter, {})
        assert moved.keys() == state.keys()
        for key, tensor in state.items():
            assert torch.equal(moved[key], tensor if key == "step" else tensor[[0, 2, 3]])
    train(optimizer, 1)


def test_indices_choose_the_order():
    model = numbered(5)
    keep(model, ATTRIBUTES, None, torch.tensor([4, 0, 2]))
    assert all(row_numbers(p) == [4, 0, 2] for name, p in model.named_parameters() if p.numel())


def test_append_begins_with_moments_of_zero():
    model = numbered(3)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, 3)
    append(model, ATTRIBUTES, optimizer, values_like(model, 2, 7.0))
    assert model.num_gaussians == 5
    assert row_numbers(model.opacity)[3:] == [7.0, 7.0]
    for parameter in model.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            assert (optimizer.state[parameter][key][:3] != 0).all()
            assert (optimizer.state[parameter][key][3:] == 0).all()
        assert optimizer.state[parameter]["step"] == 3


def test_resize_keeps_and_appends_at_once():
    model = numbered(4)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, 1)
    resize(model, ATTRIBUTES, optimizer, torch.tensor([3, 1]), values_like(model, 1, 9.0))
    moments = optimizer.state[model.xyz]["exp_avg"]
    assert model.num_gaussians == 3
    assert row_numbers(model.rotation)[2] == 9.0
    assert (moments[:2] != 0).all()
    assert (moments[2] == 0).all()


@pytest.mark.parametrize("rows", [None, [1, 3], [False, True, False, True, False]])
@pytest.mark.parametrize("steps", [0, 3])
def test_overwrite_changes_the_named_attributes_in_place(rows, steps):
    model = numbered(5)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, steps)
    opacity, before = model.opacity, model.opacity.detach().clone()
    places = list(range(5)) if rows is None else [1, 3]
    rest = [row for row in range(5) if row not in places]
    mask = None if rows is None else torch.tensor(rows)
    overwrite(model, optimizer, {"opacity": torch.full((len(places), 1), 8.0)}, mask)
    assert model.opacity is opacity
    assert row_numbers(opacity[places]) == [8.0] * len(places)
    assert torch.equal(opacity[rest], before[rest])
    if steps:
        moments = optimizer.state[opacity]["exp_avg"]
        assert (moments[places] == 0).all()
        assert (moments[rest] != 0).all()
        assert optimizer.state[opacity]["step"] == steps
        assert (optimizer.state[model.xyz]["exp_avg"] != 0).all()


def test_groups_keep_names_options_order_and_requires_grad():
    model = numbered(4)
    specs = {
        "opacity": GroupSpec(0.5, weight_decay=0.1, options={"betas": (0.1, 0.2)}),
        "scaling": GroupSpec(0.5, optimize=False),
    }
    optimizer = build_optimizer("adam", gaussian_groups(model, **specs))
    train(optimizer, 1)
    freeze(optimizer, "xyz")
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    resize(model, ATTRIBUTES, optimizer, torch.tensor([0, 1]), values_like(model, 3, 1.0))
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == before
    for group in optimizer.param_groups:
        assert group["params"][0] is getattr(model, group["name"])
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["xyz", "scaling"]
    assert model.scaling.shape == (5, 3)
    assert tuple(name for name, _ in model.named_parameters()) == ATTRIBUTES
    assert {id(p) for p in optimizer.state} == {id(p) for n, p in model.named_parameters() if n != "scaling"}


def test_gradients_move_with_their_rows():
    model = numbered(3, degree=0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    resize(model, ATTRIBUTES, None, torch.tensor([2]), values_like(model, 1, 0.0))
    assert model.opacity.grad.tolist() == [[1.0], [0.0]]
    overwrite(model, None, {"opacity": torch.ones(2, 1)})
    assert model.opacity.grad.tolist() == [[0.0], [0.0]]


def test_only_the_given_model_is_touched():
    coarse, fine = numbered(4), numbered(4)
    optimizer = build_optimizer(
        "adam", build_groups({"coarse": coarse, "fine": fine}, gaussian_specs(1.0, 10))
    )
    train(optimizer, 1)
    before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in fine.parameters()}
    objects = list(fine.parameters())
    keep(coarse, ATTRIBUTES, optimizer, torch.tensor([1]))
    assert all(a is b for a, b in zip(objects, fine.parameters(), strict=True))
    assert all(torch.equal(optimizer.state[p][k], v) for p in objects for k, v in before[p].items())
    train(optimizer, 1)


class RowCounting(torch.optim.SGD):
    """Keeps a number per row, which it declares, and a tensor of another meaning that has as many entries."""

    per_row_state = ("count",)

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", torch.zeros(len(parameter))) + 1
                state.setdefault("table", torch.arange(3.0))


def test_an_optimizer_may_declare_what_is_per_row():
    model = numbered(3)
    optimizer = RowCounting(gaussian_groups(model))
    train(optimizer, 2)
    resize(model, ATTRIBUTES, optimizer, torch.tensor([0]), values_like(model, 1, 0.0))
    assert optimizer.state[model.xyz]["count"].tolist() == [2, 0]
    assert optimizer.state[model.xyz]["table"].tolist() == [0, 1, 2]


def test_parameters_of_submodules():
    parent = nn.ModuleDict({"a": numbered(3)})
    keep(parent, [f"a.{name}" for name in ATTRIBUTES], None, torch.tensor([2]))
    assert row_numbers(parent["a"].xyz) == [2]


@pytest.mark.parametrize("degree", [0, 3])
def test_to_no_rows_and_back(degree):
    model = numbered(3, degree)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, 1)
    keep(model, ATTRIBUTES, optimizer, torch.zeros(3, dtype=torch.bool))
    assert model.num_gaussians == 0
    append(model, ATTRIBUTES, optimizer, values_like(model, 2, 1.0))
    train(optimizer, 1)
    assert model.num_gaussians == 2


def new_rows(**changes) -> dict[str, torch.Tensor]:
    return values_like(GaussianModel(0, 0), 2, 0.0) | changes


BAD = {
    "short mask": (lambda m: keep(m, ATTRIBUTES, None, torch.ones(2) > 0), r"a mask \[3\], found \[2\]"),
    "floats": (lambda m: keep(m, ATTRIBUTES, None, torch.ones(2)), "expected a mask or a list of int64"),
    "too large": (lambda m: keep(m, ATTRIBUTES, None, torch.tensor([3])), "rows: expected 0 to 2"),
    "negative": (lambda m: keep(m, ATTRIBUTES, None, torch.tensor([-1])), "rows: expected 0 to 2"),
    "twice": (lambda m: keep(m, ATTRIBUTES, None, torch.tensor([1, 1])), "found an index twice"),
    "lacking": (
        lambda m: append(m, ATTRIBUTES, None, {"xyz": torch.zeros(1, 3)}),
        "new rows of xyz, feature_dc.*found xyz",
    ),
    "shape": (
        lambda m: append(m, ATTRIBUTES, None, new_rows(xyz=torch.zeros(2, 4))),
        r"xyz: expected new rows \[2, 3\], found \[2, 4\]",
    ),
    "number": (
        lambda m: append(m, ATTRIBUTES, None, new_rows(rotation=torch.zeros(3, 4))),
        r"rotation: expected new rows \[2, 4\], found \[3, 4\]",
    ),
    "overwrite": (
        lambda m: overwrite(m, None, {"xyz": torch.zeros(2, 3)}),
        r"xyz: expected values \[3, 3\], found \[2, 3\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_change_nothing(case):
    act, message = BAD[case]
    model = numbered(3, degree=0)
    objects = list(model.parameters())
    with pytest.raises(ValueError, match=message):
        act(model)
    assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))


def test_parameters_with_different_numbers_of_rows():
    module = nn.ParameterDict({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match=r"one number of rows, found \{'a': 2, 'b': 3\}"):
        keep(module, ["a", "b"], None, torch.tensor([0]))


# ---------------------------------------- random sequences against a slow model


class Rows(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.wide = nn.Parameter(torch.arange(2.0 * n, dtype=torch.float64).view(n, 2) / 7)
        self.flat = nn.Parameter(torch.arange(1.0 * n, dtype=torch.float64).view(n, 1) / 3)


class SlowAdam:
    """Adam (Kingma & Ba 2015, algorithm 1) on a parameter as a list of rows, each a list of (value, m, v)."""

    def __init__(self, parameter: torch.Tensor, lr: float):
        self.rows = [[(x, 0.0, 0.0) for x in row] for row in parameter.tolist()]
        self.lr, self.steps, self.frozen = lr, 0, False

    def step(self, gradient: torch.Tensor) -> None:
        if self.frozen:
            return
        self.steps += 1
        for row, gradients in zip(self.rows, gradient.tolist(), strict=True):
            for i, g in enumerate(gradients):
                x, m, v = row[i]
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
                row[i] = (x - self.lr * m_hat / (math.sqrt(v_hat) + 1e-8), m, v)


MASKS = st.lists(st.booleans(), min_size=12, max_size=12)


class SurgeryAgainstRows(RuleBasedStateMachine):
    """The optimizer of one table of rows (and of one bystander), and the same thing row by row in Python."""

    @initialize(rows=st.integers(0, 5), excluded=st.booleans(), seed=st.integers(0, 100))
    def build(self, rows, excluded, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.module, self.bystander = Rows(rows), Rows(rows)
        specs = {"wide": GroupSpec(0.1), "flat": GroupSpec(0.2, optimize=not excluded)}
        groups = build_groups({"a": self.module, "b": self.bystander}, specs)
        self.optimizer = torch.optim.Adam(groups)
        self.slow = {"wide": SlowAdam(self.module.wide, 0.1), "flat": SlowAdam(self.module.flat, 0.2)}
        self.slow["flat"].frozen = excluded

    def count(self) -> int:
        return len(self.slow["wide"].rows)

    def chosen(self, mask: list[bool]) -> list[int]:
        return [row for row in range(self.count()) if mask[row % len(mask)]]

    def fresh(self, rows: int, names: list[str]) -> dict[str, torch.Tensor]:
        width = {"wide": 2, "flat": 1}
        return {
            name: torch.randn(rows, width[name], generator=self.generator, dtype=torch.float64)
            for name in names
        }

    @rule(times=st.integers(1, 3))
    def step(self, times):
        for _ in range(times):
            for name, gradient in self.fresh(self.count(), ["wide", "flat"]).items():
                parameter = getattr(self.module, name)
                parameter.grad = gradient if parameter.requires_grad else None
                self.slow[name].step(gradient)
            self.optimizer.step()
            self.optimizer.zero_grad()

    @rule(mask=MASKS, new=st.integers(0, 3))
    def keep_and_append(self, mask, new):
        rows = self.chosen(mask)
        values = self.fresh(new, ["wide", "flat"])
        resize(self.module, ["wide", "flat"], self.optimizer, torch.tensor(rows, dtype=torch.int64), values)
        for name, table in self.slow.items():
            table.rows = [table.rows[row] for row in rows]
            table.rows += [[(x, 0.0, 0.0) for x in row] for row in values[name].tolist()]

    @rule(mask=MASKS, name=st.sampled_from(["wide", "flat"]))
    def overwrite_some(self, mask, name):
        rows = self.chosen(mask)
        values = self.fresh(len(rows), [name])
        overwrite(self.module, self.optimizer, values, torch.tensor(rows, dtype=torch.int64))
        for row, value in zip(rows, values[name].tolist(), strict=True):
            self.slow[name].rows[row] = [(x, 0.0, 0.0) for x in value]

    @rule(act=st.sampled_from([freeze, unfreeze]))
    def freeze_or_thaw(self, act):
        act(self.optimizer, "a.wide")
        self.slow["wide"].frozen = act is freeze

    @invariant()
    def agree(self):
        for name, table in self.slow.items():
            parameter = getattr(self.module, name)
            rows = torch.tensor(table.rows, dtype=torch.float64).view(*parameter.shape, 3)
            torch.testing.assert_close(parameter.detach(), rows[..., 0])
            state = self.optimizer.state.get(parameter)
            assert (state is not None) == (table.steps > 0)
            if state is not None:
                assert state["step"] == table.steps
                torch.testing.assert_close(state["exp_avg"], rows[..., 1])
                torch.testing.assert_close(state["exp_avg_sq"], rows[..., 2])
        assert all(p not in self.optimizer.state for p in self.bystander.parameters())
        of_module = {id(p) for p in (*self.module.parameters(), *self.bystander.parameters())}
        grouped = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        assert set(grouped) <= of_module
        assert set(map(id, self.optimizer.state)) <= set(grouped)


SurgeryAgainstRows.TestCase.settings = settings(max_examples=150, stateful_step_count=15, deadline=None)
TestSurgeryAgainstRows = SurgeryAgainstRows.TestCase
