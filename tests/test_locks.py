"""Locked Gaussians: which rows they are, and where their locks go."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from optimizing import fill_gradients, gaussian_groups, same
from refining import random_info, random_model

import gsopt
from gsopt.errors import InputError
from gsopt.locks import hold_locked, locked_rows
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.strategy import DefaultStrategy, Refinement
from gsopt.surgery import keep, overwrite, resize

CALENDAR = dict(refine_start_iter=4, refine_stop_iter=190, refine_every=7, reset_every=30)

# ---------------------------------------- which rows

CHOICES = {  # what is locked of five Gaussians at x = 0 to 4: the rows that it is
    "a mask": (torch.tensor([True, False, False, True, False]), [0, 3]),
    "an array": (np.array([False, True, False, False, False]), [1]),
    "row numbers": (torch.tensor([4, 2]), [2, 4]),
    "small row numbers": (np.array([3], np.uint8), [3]),
    "a list": ([1, 2], [1, 2]),
    "a region": ("box:0.5,-1,-1,2.5,1,1", [1, 2]),
    "two regions": (["sphere:0,0,0,0.5", "outside:box:-1,-1,-1,3.5,1,1"], [0, 4]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_what_may_be_locked(case):
    rows, expected = CHOICES[case]
    model = GaussianModel(5, sh_degree=0)
    with torch.no_grad():
        model.xyz[:, 0] = torch.arange(5)
    gsopt.lock(model, rows)
    assert torch.nonzero(model.locked).flatten().tolist() == expected
    assert locked_rows(model).keys() == set(ATTRIBUTES)


def test_locks_add_up_and_go_one_by_one():
    model = GaussianModel(4, sh_degree=0)
    gsopt.lock(model, [0, 1], "xyz")
    gsopt.lock(model, [1, 2], ["opacity"])
    assert {name: rows.tolist() for name, rows in locked_rows(model).items()} == {
        "xyz": [0, 1],
        "opacity": [1, 2],
    }
    gsopt.unlock(model, [1])
    assert {name: rows.tolist() for name, rows in locked_rows(model).items()} == {"xyz": [0], "opacity": [2]}
    gsopt.unlock(model, attributes="xyz")
    assert model.locked.tolist() == [False, False, True, False]
    gsopt.unlock(model, attributes="opacity")
    assert model.locks is None


BAD = {
    "attribute": ([0], "colour", InputError, "--lock-attributes colour: no such attribute; there are xyz, "),
    "no attribute": ([0], [], InputError, "--lock-attributes: expected at least one of xyz, "),
    "region": ("sphere:0,0,0", None, InputError, "--lock sphere:0,0,0: expected 4 numbers"),
    "nothing there": ("sphere:9,9,9,1", None, InputError, "no Gaussian is there"),
    "one of two": (
        ["sphere:0,0,0,1", "sphere:9,9,9,1"],
        None,
        InputError,
        "--lock sphere:9,9,9,1: no Gaussian",
    ),
    "mask": (torch.ones(2, dtype=torch.bool), None, ValueError, r"expected a mask \[3\], found \[2\]"),
    "row": ([3], None, ValueError, "expected 0 to 2, found 3 to 3"),
    "floats": ([0.5], None, ValueError, "expected a mask or a list of int64"),
    "nothing": ([], None, ValueError, "expected a mask or a list of int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_locked(case):
    rows, attributes, error, message = BAD[case]
    model = GaussianModel(3, sh_degree=0)
    with pytest.raises(error, match=message):
        gsopt.lock(model, rows, attributes)
    assert model.locks is None


# ---------------------------------------- where locks go


def test_state_dict_takes_locks_along_and_only_then():
    model, other = random_model(3, torch.Generator().manual_seed(0)), GaussianModel(9, sh_degree=1)
    assert list(model.state_dict()) == list(ATTRIBUTES)  # as before there were locks
    gsopt.lock(model, [1], "xyz")
    other.load_state_dict(model.state_dict())
    assert same(other.state_dict(), model.state_dict())
    assert {name: rows.tolist() for name, rows in locked_rows(other).items()} == {"xyz": [1]}
    gsopt.lock(model, [0], "xyz")
    other.load_state_dict(model.state_dict())
    assert locked_rows(other)["xyz"].tolist() == [0, 1]
    gsopt.unlock(model)
    other.load_state_dict(model.state_dict())
    assert other.locks is None


def test_a_part_of_a_module_takes_its_locks_along():
    pair = [torch.nn.ModuleDict({"a": GaussianModel(n, 0), "b": GaussianModel(n, 0)}) for n in (3, 5)]
    gsopt.lock(pair[0]["a"], [2])
    pair[1].load_state_dict(pair[0].state_dict())
    assert pair[1]["a"].locked.tolist() == [False, False, True]
    assert pair[1]["b"].locked is None


def test_locks_of_another_number_of_rows_are_refused():
    model = GaussianModel(3, sh_degree=0)
    state = model.state_dict() | {"locks": torch.ones(2, 6, dtype=torch.bool)}
    with pytest.raises(RuntimeError, match=r"size mismatch for locks"):
        GaussianModel(3, sh_degree=0).load_state_dict(state)


def test_copies_and_dtypes_have_locks_of_their_own():
    model = GaussianModel(3, sh_degree=0)
    gsopt.lock(model, [1])
    twin = copy.deepcopy(model).double()
    gsopt.unlock(model)
    assert locked_rows(twin)["opacity"].tolist() == [1]
    assert twin.locks.dtype == torch.bool


def test_a_ply_has_the_standard_layout(tmp_path):
    model = random_model(3, torch.Generator().manual_seed(0))
    model.save_ply(tmp_path / "plain.ply")
    gsopt.lock(model, [1])
    model.save_ply(tmp_path / "locked.ply")
    assert (tmp_path / "plain.ply").read_bytes() == (tmp_path / "locked.ply").read_bytes()


@pytest.mark.parametrize("act", ["drop by mask", "drop by index", "overwrite", "overwrite all"])
def test_surgery_refuses_to_touch_locked_rows(act):
    """A strategy that forgets them is told, whichever attributes are locked."""
    model = random_model(3, torch.Generator().manual_seed(0))
    gsopt.lock(model, [1], "rotation")
    before = copy.deepcopy(model.state_dict())
    acts = {
        "drop by mask": lambda: keep(model, ATTRIBUTES, None, torch.tensor([True, False, True])),
        "drop by index": lambda: resize(model, ATTRIBUTES, None, torch.tensor([0]), {}),
        "overwrite": lambda: overwrite(model, None, {"xyz": torch.zeros(1, 3)}, torch.tensor([1])),
        "overwrite all": lambda: overwrite(model, None, {"xyz": torch.zeros(3, 3)}),
    }
    with pytest.raises(ValueError, match=r"rows: 1 locked ones would be (dropped|overwritten); .*movable"):
        acts[act]()
    assert same(model.state_dict(), before)


def test_locked_candidates_leave_their_room_to_others():
    """The limit ranks what may grow only."""
    model = random_model(6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.scaling.fill_(-7.0)
        model.opacity.fill_(2.0)
        model.xyz[:, 0] = torch.arange(6)
    gsopt.lock(model, [0, 1, 2])
    info = random_info(6, 1, torch.Generator().manual_seed(0))
    info["radii"][:] = 5
    info["means2d"].grad[0] = torch.tensor([9.0, 8, 7, 6, 5, 4])[:, None] * 1e-5
    strategy = DefaultStrategy(**CALENDAR, max_gaussians=8).resolve(1000)
    strategy.observe(model, info, 7)
    assert strategy.refine(model, None, 7, torch.Generator()) == Refinement(cloned=2)
    assert model.xyz[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4]
    assert model.locked.tolist() == [True] * 3 + [False] * 5


# ---------------------------------------- random sequences against a slow model


class LocksAgainstRows(RuleBasedStateMachine):
    """A model of which each row knows its number, and a list of (number, locked attributes)."""

    @initialize(rows=st.integers(0, 6))
    def build(self, rows):
        self.model, self.rows, self.next = GaussianModel(rows, sh_degree=0), [], 0
        self.rows = [self.new() for _ in range(rows)]
        with torch.no_grad():
            self.model.opacity.copy_(torch.tensor([[number] for number, _ in self.rows]).view(-1, 1))
        self.optimizer = torch.optim.SGD(gaussian_groups(self.model), momentum=0.9)

    def new(self) -> tuple[float, frozenset]:
        self.next += 1
        return float(self.next), frozenset()

    @rule(
        chosen=st.lists(st.booleans(), min_size=9, max_size=9),
        names=st.sets(st.sampled_from(ATTRIBUTES), min_size=1),
    )
    def lock(self, chosen, names):
        mask = torch.tensor([chosen[i % 9] for i in range(len(self.rows))], dtype=torch.bool)
        gsopt.lock(self.model, mask, names)
        self.rows = [
            (n, old | names if m else old) for (n, old), m in zip(self.rows, mask.tolist(), strict=True)
        ]

    @rule(names=st.sets(st.sampled_from(ATTRIBUTES), min_size=1))
    def unlock(self, names):
        gsopt.unlock(self.model, attributes=names)
        self.rows = [(n, old - names) for n, old in self.rows]

    @rule(order=st.randoms(use_true_random=False), share=st.floats(0, 1), new=st.integers(0, 3))
    def resize(self, order, share, new):
        """Keep the locked and some others, in any order, and add some."""
        kept = [i for i, (_, names) in enumerate(self.rows) if names or order.random() < share]
        order.shuffle(kept)
        added = [self.new() for _ in range(new)]
        values = {name: torch.zeros(new, *p.shape[1:]) for name, p in self.model.named_parameters()}
        values["opacity"] = torch.tensor([number for number, _ in added]).view(new, 1)
        resize(self.model, ATTRIBUTES, self.optimizer, torch.tensor(kept, dtype=torch.int64), values)
        self.rows = [self.rows[i] for i in kept] + added

    @rule()
    def drop_all(self):
        """Which only works where nothing is locked."""
        if any(names for _, names in self.rows):
            with pytest.raises(ValueError, match="locked ones would be dropped"):
                keep(self.model, ATTRIBUTES, self.optimizer, torch.zeros(len(self.rows), dtype=torch.bool))
        else:
            keep(self.model, ATTRIBUTES, self.optimizer, torch.zeros(len(self.rows), dtype=torch.bool))
            self.rows = []

    @rule(seed=st.integers(0, 100))
    def step(self, seed):
        """Moves what is not locked; opacities, which are the numbers, are put back."""
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        fill_gradients(self.optimizer, torch.Generator().manual_seed(seed))
        with hold_locked(self.model, self.optimizer):
            self.optimizer.step()
        for name in ("xyz", "scaling", "rotation", "opacity"):
            same_rows = (self.model.get_parameter(name) == before[name]).flatten(1).all(dim=1).tolist()
            assert same_rows == [name in names for _, names in self.rows]
        with torch.no_grad():
            self.model.opacity.copy_(before["opacity"])

    @rule()
    def save_and_load(self):
        other = GaussianModel(2, sh_degree=0)
        other.load_state_dict(self.model.state_dict())
        assert {n: r.tolist() for n, r in locked_rows(other).items()} == self.expected()

    def expected(self) -> dict[str, list[int]]:
        rows = {name: [i for i, (_, names) in enumerate(self.rows) if name in names] for name in ATTRIBUTES}
        return {name: places for name, places in rows.items() if places}

    @invariant()
    def agree(self):
        assert self.model.opacity.flatten().tolist() == [number for number, _ in self.rows]
        assert {name: places.tolist() for name, places in locked_rows(self.model).items()} == self.expected()


LocksAgainstRows.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestLocksAgainstRows = LocksAgainstRows.TestCase
