"""Locked Gaussians: the proof on bits, for every optimizer, through densification."""

import inspect

import pytest
import torch
from optimizing import fill_gradients, gaussian_groups, train
from refining import random_info, random_model

import gsopt
from gsopt.groups import GroupSpec, freeze, unfreeze
from gsopt.locks import clear_locked_gradients, hold_locked, locked_rows
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.strategy import DefaultStrategy, Refinement, movable
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


def optimizers() -> list[str]:
    """All of torch.optim that can train Gaussians: what it refuses is tested in test_optim.py."""
    classes = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return sorted(classes - {"Optimizer", "LBFGS", "Muon", "SparseAdam"})


def build(name: str, model: GaussianModel) -> torch.optim.Optimizer:
    cls = getattr(torch.optim, name)
    options = {key: value for key, value in OPTIONS.items() if key in inspect.signature(cls).parameters}
    decay = options.pop("weight_decay", 0.0)
    specs = {attribute: GroupSpec(1e-3, weight_decay=decay) for attribute in ATTRIBUTES}
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
    steps: range, model: GaussianModel, optimizer: torch.optim.Optimizer, strategy: DefaultStrategy
) -> list[Refinement]:
    """Steps with random gradients, as the trainer does them."""
    done = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        strategy.observe(model, random_info(model.num_gaussians, 1, generator), step)
        fill_gradients(optimizer, generator)
        with hold_locked(model, optimizer):
            optimizer.step()
        optimizer.zero_grad()
        done.append(strategy.refine(model, optimizer, step, generator))
    return done


@pytest.mark.parametrize(("before", "steps"), [(3, 200), (0, 40)], ids=["with moments", "from the start"])
@pytest.mark.parametrize("name", optimizers())
def test_locked_rows_keep_their_bits(name, before, steps):
    """In every optimizer, with momentum and weight decay, across clone, split, prune and opacity reset."""
    model = random_model(60, torch.Generator().manual_seed(0))
    optimizer = build(name, model)
    train(optimizer, before)
    gsopt.lock(model, torch.arange(0, 60, 3))
    free = {attribute: torch.nonzero(~model.locked).flatten() for attribute in ATTRIBUTES}
    held, moving = (rows_of(model, optimizer, rows) for rows in (locked_rows(model), free))

    strategy = DefaultStrategy(**STEPS).resolve(1000)
    refine_for(range(1, 2), model, optimizer, strategy)
    assert changed(moving, rows_of(model, optimizer, free)) >= set(ATTRIBUTES)
    done = refine_for(range(2, steps + 1), model, optimizer, strategy)

    assert all(sum(getattr(d, what) for d in done) for what in ("cloned", "split", "pruned", "reset"))
    assert int(model.locked.sum()) == 20
    after = rows_of(model, optimizer, locked_rows(model))
    assert after.keys() >= held.keys()
    assert any("." in entry for entry in after)  # there are moments
    assert changed(held, after) == set()


def test_native_adam_is_held_too():
    model = random_model(60, torch.Generator().manual_seed(0))
    specs = {name: GroupSpec(1e-3, weight_decay=0.1) for name in ATTRIBUTES}
    optimizer = build_optimizer("adamw", gaussian_groups(model, **specs), native=True)
    train(optimizer, 3)
    gsopt.lock(model, torch.arange(0, 60, 3))
    held = rows_of(model, optimizer, locked_rows(model))
    refine_for(range(1, 201), model, optimizer, DefaultStrategy(**STEPS).resolve(1000))
    assert model.num_gaussians != 60
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


def test_the_others_train_as_if_nothing_were_locked():
    models = [random_model(20, torch.Generator().manual_seed(0)) for _ in range(2)]
    gsopt.lock(models[1], [0, 5])
    for model in models:
        optimizer = build("Adam", model)
        for step in range(10):
            fill_gradients(optimizer, torch.Generator().manual_seed(step))
            with hold_locked(model, optimizer):
                optimizer.step()
    free = ~models[1].locked
    assert all(torch.equal(a[free], b[free]) for a, b in zip(*(m.parameters() for m in models), strict=True))


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


def test_a_closure_that_makes_the_gradients_is_held():
    model = random_model(4, torch.Generator().manual_seed(0))
    optimizer = build("SGD", model)
    gsopt.lock(model, [1])
    before = model.xyz.detach().clone()
    with hold_locked(model, optimizer):
        optimizer.step(lambda: fill_gradients(optimizer, torch.Generator().manual_seed(0)))
    assert (model.xyz != before).any(dim=1).tolist() == [True, False, True, True]


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
    first = locked_rows(model)
    assert locked_rows(model) is first  # every step asks for it
    gsopt.unlock(model)
    assert (model.locked, locked_rows(model)) == (None, {})
