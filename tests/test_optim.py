"""Optimizers by name, and what frozen means, to the bit."""

import inspect
import pickle

import pytest
import torch
from optimizing import gaussian_groups, same, train
from torch import nn

from gsopt.errors import InputError
from gsopt.groups import GroupSpec, freeze, gaussian_specs, unfreeze
from gsopt.model import GaussianModel
from gsopt.optim import build_optimizer

# ---------------------------------------- by name

ALL = [
    "adam",
    "adamw",
    "sgd",
    "nadam",
    "radam",
    "adagrad",
    "adadelta",
    "adamax",
    "asgd",
    "rmsprop",
    "rprop",
    "adafactor",
]


@pytest.mark.parametrize("name", [*ALL, "Adam", "RMSprop"])
def test_every_optimizer_of_torch_trains_the_model(name):
    model = GaussianModel(5)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = build_optimizer(name, gaussian_groups(model))
    assert type(optimizer).__name__.lower() == name.lower()
    train(optimizer, steps=2)
    assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", ALL)
def test_steps_have_the_bits_of_torch_own_optimizer(name):
    ours, theirs = GaussianModel(50), GaussianModel(50)
    optimizer = build_optimizer(name, gaussian_groups(ours))
    plain = next(
        value for key, value in vars(torch.optim).items() if key.lower() == name and isinstance(value, type)
    )
    assert isinstance(optimizer, plain)
    known = inspect.signature(plain).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in known}
    torch_own = plain(gaussian_groups(theirs), **options)
    for each in (optimizer, torch_own):
        train(each, steps=3)
    assert same(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    kept, wanted = optimizer.state_dict(), torch_own.state_dict()
    assert kept["param_groups"] == wanted["param_groups"]
    assert all(same(kept["state"][i], wanted["state"][i]) for i in wanted["state"])


def test_an_optimizer_is_pickled_as_that_of_torch():
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(3)))
    train(optimizer, steps=1)
    copy = pickle.loads(pickle.dumps(optimizer))
    assert type(copy) is torch.optim.Adam
    train(copy, steps=1)


def test_adam_has_the_epsilon_of_the_original_unless_told():
    assert build_optimizer("adam", gaussian_groups(GaussianModel(1))).param_groups[0]["eps"] == 1e-15
    other = build_optimizer("adam", gaussian_groups(GaussianModel(1)), eps=1e-8, betas=(0.5, 0.9))
    assert other.param_groups[0]["eps"] == 1e-8
    assert other.param_groups[0]["betas"] == (0.5, 0.9)


def test_a_group_may_have_its_own_options():
    groups = gaussian_groups(GaussianModel(1), opacity=GroupSpec(0.1, options={"betas": (0.1, 0.2)}))
    optimizer = build_optimizer("adam", groups)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999)] * 5 + [(0.1, 0.2)]


BAD_OPTIMIZERS = {
    "unknown": ("adm", {}, {}, "optimizer adm: no such optimizer; choose from adadelta, adafactor"),
    "lbfgs": ("lbfgs", {}, {}, "optimizer lbfgs: cannot train Gaussians: it takes no parameter groups"),
    "muon": ("Muon", {}, {}, "it takes only matrices"),
    "sparseadam": ("SparseAdam", {}, {}, "it takes only sparse gradients"),
    "option": ("adam", {"momentum": 0.9}, {}, "no such option: momentum; choose from lr, betas, eps"),
    "value": ("adam", {"betas": (2.0, 0.9)}, {}, "Invalid beta parameter"),
    "no effect": (
        "adam",
        {"weight_decay": 0.1},
        {},
        "weight_decay: has no effect, as each group states its own",
    ),
    "no decay": (
        "rprop",
        {},
        {"opacity": GroupSpec(1.0, weight_decay=0.1)},
        "has no weight decay, but these groups ask for it: opacity",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIMIZERS)
def test_bad_optimizers(case):
    name, args, changes, message = BAD_OPTIMIZERS[case]
    with pytest.raises(InputError, match=message):
        build_optimizer(name, gaussian_groups(GaussianModel(1), **changes), **args)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
@pytest.mark.parametrize("rows", [1, 333, 30_011])
def test_fused_steps_have_the_same_bits_with_any_number_of_threads(name, rows):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model = GaussianModel(rows, sh_degree=1)
            options = {"momentum": 0.9} if name == "sgd" else {}
            optimizer = build_optimizer(name, gaussian_groups(model), **options)
            assert optimizer.defaults["fused"]
            train(optimizer, steps=3)
            results.append([p.detach() for p in model.parameters()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


BAD_OPTIONS_OF_A_GROUP = {
    "not one of it": ("adam", {"momentum": 0.9}, "no such option: momentum; choose from lr, betas"),
    "not a pair": ("adam", {"betas": 0.9}, "betas: expected 2 numbers with a comma between, found 0.9"),
    "three of two": ("adam", {"betas": (0.9, 0.9, 0.9)}, "betas: expected 2 numbers"),
    "not a number": ("sgd", {"momentum": True}, "momentum: expected a number, found True"),
    "not a switch": ("sgd", {"nesterov": 0.9}, "nesterov: expected true or false, found 0.9"),
    "out of range": ("adam", {"betas": (2.0, 0.9)}, "Invalid beta parameter at index 0: 2.0; change the"),
    "negative": ("sgd", {"momentum": -0.5}, "Invalid momentum value: -0.5"),
    "not together": ("sgd", {"nesterov": True}, "Nesterov momentum requires a momentum"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS_OF_A_GROUP)
def test_bad_options_of_a_group(case):
    """torch would take all of them, and ignore them or fail in the first step."""
    name, options, message = BAD_OPTIONS_OF_A_GROUP[case]
    groups = gaussian_groups(GaussianModel(1), opacity=GroupSpec(0.1, options=options))
    with pytest.raises(InputError, match=f"optimizer {name}: group opacity: .*{message}"):
        build_optimizer(name, groups)


def test_an_option_of_a_group_may_need_one_of_the_whole_optimizer():
    groups = gaussian_groups(GaussianModel(1), opacity=GroupSpec(0.1, options={"nesterov": True}))
    optimizer = build_optimizer("sgd", groups, momentum=0.9)
    assert [group["nesterov"] for group in optimizer.param_groups] == [False] * 5 + [True]


# ---------------------------------------- frozen, to the bit

FROZEN = {
    "adam": ("adam", {}),
    "adam, not fused": ("adam", {"fused": False}),
    "adam, amsgrad": ("adam", {"amsgrad": True}),
    "adamw": ("adamw", {}),
    "sgd with momentum": ("sgd", {"momentum": 0.9}),
    "sgd with nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
    **{name: (name, {}) for name in ALL[3:] if name != "rprop"},  # which has no weight decay
}


def snapshot(model: GaussianModel, optimizer: torch.optim.Optimizer, name: str) -> dict[str, torch.Tensor]:
    parameter = getattr(model, name)
    state = {k: v.clone() for k, v in optimizer.state[parameter].items() if isinstance(v, torch.Tensor)}
    return {"value": parameter.detach().clone(), **state}


@pytest.mark.parametrize("case", FROZEN)
def test_a_frozen_group_keeps_values_and_moments_to_the_bit(case):
    name, options = FROZEN[case]
    torch.manual_seed(0)
    model = GaussianModel(20, sh_degree=1)
    with torch.no_grad():
        model.xyz.normal_()
    decay = {key: GroupSpec(0.01, weight_decay=0.1) for key in gaussian_specs(1.0, 1)}
    optimizer = build_optimizer(name, gaussian_groups(model, **decay), **options)
    train(optimizer, steps=10)

    before, moving = snapshot(model, optimizer, "xyz"), snapshot(model, optimizer, "scaling")
    freeze(optimizer, "xyz")
    train(optimizer, steps=200, seed=1)
    assert same(snapshot(model, optimizer, "xyz"), before)
    assert not same(snapshot(model, optimizer, "scaling"), moving)

    unfreeze(optimizer, "xyz")
    train(optimizer, steps=1)
    assert not torch.equal(model.xyz, before["value"])


def test_a_thawed_group_goes_on_with_the_moments_it_had():
    models = [GaussianModel(5, 0), GaussianModel(5, 0)]
    optimizers = [build_optimizer("adam", gaussian_groups(model)) for model in models]
    for optimizer in optimizers:
        train(optimizer, steps=10)
    freeze(optimizers[0], "xyz")
    train(optimizers[0], steps=50)
    unfreeze(optimizers[0], "xyz")
    for optimizer in optimizers:
        train(optimizer, steps=10, seed=3)
    assert same(snapshot(models[0], optimizers[0], "xyz"), snapshot(models[1], optimizers[1], "xyz"))


def test_the_way_to_freeze_that_freezes_nothing():
    wrong = nn.Parameter(torch.zeros(3).requires_grad_(False))
    assert wrong.requires_grad, "nn.Parameter(x.requires_grad_(False)) requires grad all the same"
    assert not nn.Parameter(torch.zeros(3), requires_grad=False).requires_grad
    assert not nn.Parameter(torch.zeros(3)).requires_grad_(False).requires_grad
