"""Locked Gaussians: the proof on bits, for every optimizer, through densification."""

import inspect
from dataclasses import replace

import pytest
import torch
from optimizing import fill_gradients, gaussian_groups, train
from refining import give_gradients, random_info, random_model

import gsopt
from gsopt.groups import GroupSpec, freeze, unfreeze
from gsopt.locks import clear_locked_gradients, hold_locked, locked_rows
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy, Refinement, Strategy, movable
from gsopt.surgery import per_row_state

STEPS = dict(refine_start_iter=4, refine_stop_iter=190, refine_every=7, reset_every=30)
OPTIONS = {  # given where the optimizer has the option
    "momentum": 0.9,
    "weight_decay": 0.1,
    "nesterov": True,
    "amsgrad": True,
    "centered": True,
    "initial_accumulator_value": 0.5,
}


MIXED = {"xyz": "sgd", "scaling": "visible_adam", "opacity": "rmsprop"}  # the others: adam


def optimizers() -> list[str]:
    """All of torch.optim that can train Gaussians, ours, and several in one."""
    classes = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return [*sorted(classes - {"Optimizer", "LBFGS", "Muon", "SparseAdam"}), "VisibleAdam", "mixed"]


def build(name: str, model: GaussianModel) -> torch.optim.Optimizer:
    if name == "mixed":
        specs = {attribute: GroupSpec(1e-3, optimizer=MIXED.get(attribute)) for attribute in ATTRIBUTES}
        return build_optimizer("adam", gaussian_groups(model, **specs))
    cls = getattr(torch.optim, name, gsopt.VisibleAdam)
    options = {key: value for key, value in OPTIONS.items() if key in inspect.signature(cls).parameters}
    decay = options.pop("weight_decay", 0.0)
    specs = {attribute: GroupSpec(1e-3, weight_decay=decay) for attribute in ATTRIBUTES}
    name = "visible_adam" if name == "VisibleAdam" else name
    return build_optimizer(name, gaussian_groups(model, **specs), **options)


def rows_of(model: GaussianModel, optimizer: torch.optim.Optimizer, rows: dict) -> dict[str, torch.Tensor]:
    """Values and moments of some rows of each attribute."""
    found = {}
    for name, places in rows.items():
        parameter = model.get_parameter(name)
        state = per_row_state(optimizer, parameter)
        found |= {f"{name}.{key}": tensor[places] for key, tensor in state.items()}
        found[name] = parameter.detach()[places]
    return found


def changed(before: dict, after: dict) -> set[str]:
    """What has other bits; moments that there were not before should be zero."""
    return {
        name
        for name, tensor in after.items()
        if not torch.equal(bits(before.get(name, torch.zeros_like(tensor))), bits(tensor))
    }


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


def refine_for(
    steps: range, model: GaussianModel, optimizer: torch.optim.Optimizer, strategy: Strategy
) -> list[Refinement]:
    """Steps with random gradients, as the trainer does them."""
    done = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        strategy.observe(model, random_info(model.num_gaussians, 1, generator), step)
        fill_gradients(optimizer, generator)
        if hasattr(optimizer, "add_visible"):
            optimizer.add_visible(model, torch.rand(model.num_gaussians, generator=generator) < 0.7)
        with hold_locked(model, optimizer):
            optimizer.step()
        optimizer.zero_grad()
        done.append(strategy.refine(model, optimizer, step, generator))
    return done


SHARES = {  # rows locked of 60, most Gaussians: a few rows are put back, of many the optimizer sees no more
    "few": (torch.arange(0, 60, 3), 120),
    "most": (torch.tensor([row for row in range(60) if row % 3]), 75),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", optimizers())
def test_locked_rows_keep_their_bits_for_200_steps(name, share):
    """In every optimizer, with momentum and weight decay, across clone, split, prune and opacity reset."""
    rows, limit = SHARES[share]
    model = random_model(60, torch.Generator().manual_seed(0))
    optimizer = build(name, model)
    freeze(optimizer, ["rotation", "opacity"])  # these have no moments yet when the rows are locked
    train(optimizer, 3)
    unfreeze(optimizer, ["rotation", "opacity"])
    gsopt.lock(model, rows)
    free = {attribute: torch.nonzero(~model.locked).flatten() for attribute in ATTRIBUTES}
    held, moving = (rows_of(model, optimizer, rows) for rows in (locked_rows(model), free))

    strategy = DefaultStrategy(**STEPS, max_gaussians=limit).resolve(1000)
    refine_for(range(1, 2), model, optimizer, strategy)
    assert changed(moving, rows_of(model, optimizer, free)) >= set(ATTRIBUTES)
    done = refine_for(range(2, 201), model, optimizer, strategy)

    assert all(sum(getattr(d, what) for d in done) for what in ("cloned", "split", "pruned", "reset"))
    assert int(model.locked.sum()) == len(rows)
    after = rows_of(model, optimizer, locked_rows(model))
    assert after.keys() >= held.keys()
    assert any("." in entry for entry in after)  # there are moments
    assert changed(held, after) == set()


WHEN = {name: steps for name, steps in STEPS.items() if name != "reset_every"}
OTHERS = {  # and what they do
    "mcmc": (MCMCStrategy(**WHEN, min_opacity=0.05), {"relocated", "added"}),
    "budget": (BudgetStrategy(**WHEN, grow_scale3d=0.03), {"cloned", "split", "pruned"}),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("strategy", OTHERS)
def test_locked_rows_keep_their_bits_under_the_other_strategies(strategy, name, share):
    """Through relocation, addition and noise; growth to a fixed number."""
    rows, limit = SHARES[share]
    model = random_model(60, torch.Generator().manual_seed(0))
    optimizer = build(name, model)
    train(optimizer, 3)
    gsopt.lock(model, rows)
    held = rows_of(model, optimizer, locked_rows(model))
    settings, expected = OTHERS[strategy]
    done = refine_for(range(1, 201), model, optimizer, replace(settings, max_gaussians=limit).resolve(1000))
    assert {what for d in done for what, count in d.counts.items() if count} == expected
    assert model.num_gaussians == limit
    assert int(model.locked.sum()) == len(rows)
    assert changed(held, rows_of(model, optimizer, locked_rows(model))) == set()


@pytest.mark.parametrize("share", SHARES)
def test_native_adam_is_held_too(share):
    model = random_model(60, torch.Generator().manual_seed(0))
    specs = {name: GroupSpec(1e-3, weight_decay=0.1) for name in ATTRIBUTES}
    optimizer = build_optimizer("adamw", gaussian_groups(model, **specs), native=True)
    train(optimizer, 3)
    rows, limit = SHARES[share]
    gsopt.lock(model, rows)
    held = rows_of(model, optimizer, locked_rows(model))
    strategy = DefaultStrategy(**STEPS, max_gaussians=limit).resolve(1000)
    assert any(done.pruned for done in refine_for(range(1, 101), model, optimizer, strategy))
    assert changed(held, rows_of(model, optimizer, locked_rows(model))) == set()


@pytest.mark.parametrize("attributes", ["xyz", ["scaling", "rotation"], ["opacity", "feature-rest"]])
def test_only_the_attributes_named_are_held(attributes):
    model = random_model(20, torch.Generator().manual_seed(0))
    optimizer = build("AdamW", model)
    gsopt.lock(model, torch.arange(10), attributes)
    names = [attributes] if isinstance(attributes, str) else [name.replace("-", "_") for name in attributes]
    first = {name: torch.arange(10) for name in ATTRIBUTES}
    before = rows_of(model, optimizer, first)
    done = refine_for(range(1, 60), model, optimizer, DefaultStrategy(**STEPS).resolve(1000))
    assert sum(d.cloned + d.split + d.pruned for d in done) > 10
    assert torch.nonzero(model.locked).flatten().tolist() == list(range(10))  # whatever is locked of them
    others = changed(before, rows_of(model, optimizer, first))
    assert {name for name in others if "." not in name} == set(ATTRIBUTES) - set(names)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", [name for name in optimizers() if name != "Adafactor"])
def test_the_others_train_as_if_nothing_were_locked(name, share):
    """To the rounding of the vector unit; but Adafactor scales by norms over all rows it sees."""
    models = [random_model(60, torch.Generator().manual_seed(0)) for _ in range(2)]
    moved = []
    for model in models:
        optimizer = build(name, model)
        train(optimizer, 2)
        if model is models[1]:
            gsopt.lock(model, SHARES[share][0])
        for step in range(5):
            fill_gradients(optimizer, torch.Generator().manual_seed(step))
            with hold_locked(model, optimizer):
                optimizer.step()
        moved.append(rows_of(model, optimizer, {name: torch.arange(60) for name in ATTRIBUTES}))
    for entry, expected in moved[0].items():
        torch.testing.assert_close(moved[1][entry][~models[1].locked], expected[~models[1].locked], msg=entry)


def test_frozen_groups_and_locks_compose():
    model = random_model(20, torch.Generator().manual_seed(0))
    optimizer = build("SGD", model)
    train(optimizer, 2)
    gsopt.lock(model, torch.arange(10), ["xyz", "opacity"])
    freeze(optimizer, ["xyz"])
    everything, first = ({name: torch.arange(n) for name in ATTRIBUTES} for n in (20, 10))
    before, before_first = (rows_of(model, optimizer, rows) for rows in (everything, first))
    strategy = DefaultStrategy(**STEPS | dict(refine_stop_iter=1)).resolve(1000)
    refine_for(range(1, 6), model, optimizer, strategy)
    others = changed(before, rows_of(model, optimizer, everything))
    assert others == before.keys() - {"xyz", "xyz.momentum_buffer"}
    unfreeze(optimizer, ["xyz"])
    refine_for(range(6, 9), model, optimizer, strategy)
    assert "xyz" in changed(before, rows_of(model, optimizer, everything))
    others = changed(before_first, rows_of(model, optimizer, first))
    locked = {f"{name}{entry}" for name in ("xyz", "opacity") for entry in ("", ".momentum_buffer")}
    assert others == before.keys() - locked


def test_a_step_that_fails_leaves_locked_rows_alone():
    model = random_model(4, torch.Generator().manual_seed(0))
    gsopt.lock(model, [1])
    before = model.xyz.detach().clone()

    def fall_over():
        with hold_locked(model, None), torch.no_grad():
            model.xyz += 1
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fall_over()
    assert torch.equal(model.xyz, before + torch.tensor([1.0, 0, 1, 1])[:, None])


@pytest.mark.parametrize("rows", [[1], [0, 1, 3, 4, 5]])
def test_a_closure_that_makes_the_gradients_is_held(rows):
    model = random_model(8, torch.Generator().manual_seed(0))
    optimizer = build("SGD", model)
    gsopt.lock(model, rows)
    before = model.xyz.detach().clone()
    with hold_locked(model, optimizer):
        optimizer.step(lambda: fill_gradients(optimizer, torch.Generator().manual_seed(0)))
    assert torch.equal((model.xyz == before).all(dim=1), model.locked)


@pytest.mark.parametrize("share", SHARES)
def test_a_step_leaves_parameters_and_gradients_as_objects(share):
    """What else knows them, an optimizer or a user, finds them again."""
    model = random_model(60, torch.Generator().manual_seed(0))
    optimizer = build("Adam", model)
    train(optimizer, 1)
    gsopt.lock(model, SHARES[share][0])
    fill_gradients(optimizer, torch.Generator().manual_seed(0))
    places = [
        (p, p.data_ptr(), p.grad, p.grad.clone(), optimizer.state[p]["exp_avg"]) for p in model.parameters()
    ]
    with hold_locked(model, optimizer):
        optimizer.step()
    for parameter, address, gradient, values, moments in places:
        assert parameter.data_ptr() == address
        assert parameter.grad is gradient
        assert torch.equal(gradient, values)
        assert optimizer.state[parameter]["exp_avg"] is moments
    (model.xyz.sum() + model.opacity.sum()).backward()  # the next backward pass fits


class Tabled(torch.optim.SGD):
    """Keeps momentum, and three numbers that have nothing to do with rows."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("table", torch.arange(3.0))


def test_state_that_is_not_per_row_is_left_alone():
    """Although it is as long as what the optimizer is shown."""
    model = random_model(9, torch.Generator().manual_seed(0))
    optimizer = Tabled(gaussian_groups(model), momentum=0.9)
    train(optimizer, 1)
    gsopt.lock(model, torch.arange(6))
    for step in range(2):
        fill_gradients(optimizer, torch.Generator().manual_seed(step))
        with hold_locked(model, optimizer):
            optimizer.step()
    assert optimizer.state[model.xyz]["table"].tolist() == [0, 1, 2]
    assert len(optimizer.state[model.xyz]["momentum_buffer"]) == 9


def test_no_state_is_made_up():
    """A parameter that the optimizer does not have, and one that has no state."""
    model = random_model(9, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([model.xyz], lr=0.1)
    give_gradients(model, 0)
    gsopt.lock(model, torch.arange(6))
    with hold_locked(model, optimizer):
        optimizer.step()
    assert model.scaling not in optimizer.state
    assert all(not state for state in optimizer.state.values())


class Declaring(torch.optim.SGD):
    """Knows of rows itself: it must be shown all of them."""

    def add_visible(self, rows):
        self.rows = rows

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                with torch.no_grad():
                    parameter[self.rows] += 1


def test_an_optimizer_with_masks_of_rows_is_shown_all_rows():
    model = random_model(6, torch.Generator().manual_seed(0))
    optimizer = Declaring(gaussian_groups(model), lr=0.1)
    optimizer.add_visible(torch.tensor([True, False, True, False, True, False]))
    fill_gradients(optimizer, torch.Generator().manual_seed(0))
    gsopt.lock(model, [2, 3, 4, 5])
    before = model.xyz.detach().clone()
    with hold_locked(model, optimizer):
        optimizer.step()
    assert (model.xyz != before).any(dim=1).tolist() == [True] + [False] * 5


def test_gradients_of_locked_rows_can_be_cleared():
    model = random_model(4, torch.Generator().manual_seed(0))
    fill_gradients(build("SGD", model), torch.Generator().manual_seed(0))
    model.rotation.grad = None
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    gsopt.lock(model, [2], ["xyz", "rotation"])
    clear_locked_gradients(model)
    assert (model.xyz.grad == 0).all(dim=1).tolist() == [False, False, True, False]
    assert all(torch.equal(model.get_parameter(n).grad, g) for n, g in before.items() if n != "xyz")


def test_nothing_is_copied_where_nothing_is_locked():
    model = GaussianModel(3, sh_degree=0)
    assert (model.locked, model.locks, locked_rows(model), movable(model)) == (None, None, {}, None)
    gsopt.lock(model, [0])
    first, again = locked_rows(model), locked_rows(model)
    assert first["xyz"] is again["xyz"]  # found once, not in every step
    model.locks[2, 0] = True
    assert locked_rows(model)["xyz"].tolist() == [0, 2]
    gsopt.unlock(model)
    assert (model.locked, locked_rows(model)) == (None, {})
