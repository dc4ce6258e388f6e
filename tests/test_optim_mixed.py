"""Different optimizers for different groups behave to the outside as one optimizer of torch."""

import copy
import pickle

import pytest
import torch
from optimizing import gaussian_groups, mask, tensors, train
from torch import nn
from torch.optim import lr_scheduler

import gsopt
from gsopt.errors import InputError
from gsopt.groups import GroupSpec, build_groups, build_scheduler, freeze, gaussian_specs, unfreeze
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import MixedOptimizer, build_optimizer, load_optimizer_state
from gsopt.surgery import resize

SPECS = {
    "feature_rest": GroupSpec(0.01, optimizer="SGD", options={"momentum": 0.9, "nesterov": True}),
    "opacity": GroupSpec(0.02, optimizer="visible_adam"),
    "scaling": GroupSpec(0.03, optimizer="rprop"),
}
PARTS = {"xyz": "adam", "feature_dc": "adam", "rotation": "adam"} | {
    "feature_rest": "sgd",
    "opacity": "visible_adam",
    "scaling": "rprop",
}


def mixed(model: GaussianModel, native: bool = True, **changes: GroupSpec) -> MixedOptimizer:
    return build_optimizer("adam", gaussian_groups(model, **(SPECS | changes)), native=native)


def test_it_is_one_optimizer_to_look_at():
    model = GaussianModel(5, sh_degree=1)
    optimizer = mixed(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [group["name"] for group in optimizer.param_groups] == list(ATTRIBUTES)
    assert {group["name"]: group["optimizer"] for group in optimizer.param_groups} == PARTS
    kinds = {name: type(part).__mro__ for name, part in optimizer.parts.items()}
    assert torch.optim.Adam in kinds["adam"]
    assert torch.optim.SGD in kinds["sgd"]
    assert gsopt.VisibleAdam in kinds["visible_adam"]
    rest = next(group for group in optimizer.param_groups if group["name"] == "feature_rest")
    assert (rest["lr"], rest["momentum"], rest["nesterov"]) == (0.01, 0.9, True)
    train(optimizer, 1)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("native", [True, False])
def test_each_group_is_updated_as_by_its_optimizer_alone(native):
    together, apart = GaussianModel(30, sh_degree=1), GaussianModel(30, sh_degree=1)
    optimizer = mixed(together, native)
    alone = []
    for group in gaussian_groups(apart, **SPECS):
        name = group.pop("optimizer", "adam")
        alone.append(build_optimizer(name, [group], native=native))
    for seed in range(8):
        train(optimizer, 1, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in apart.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for each in alone:
            each.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [None, "adam", "Adam"])
def test_one_optimizer_for_all_is_that_of_torch(name):
    changes = {attribute: GroupSpec(0.1, optimizer=name) for attribute in ATTRIBUTES}
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(2), **changes))
    plain = build_optimizer("adam", gaussian_groups(GaussianModel(2)))
    assert type(optimizer) is type(plain)
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()


def test_all_groups_may_have_one_that_is_not_the_run_s():
    changes = {attribute: GroupSpec(0.1, optimizer="sgd") for attribute in ATTRIBUTES}
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(2), **changes))
    assert isinstance(optimizer, torch.optim.SGD)


def test_frozen_groups_keep_their_bits_in_every_part():
    model = GaussianModel(9, sh_degree=1)
    decay = {name: GroupSpec(0.01, weight_decay=0.1) for name in ("xyz", "rotation")}
    decay["feature_rest"] = GroupSpec(0.01, weight_decay=0.1, optimizer="sgd", options={"momentum": 0.9})
    optimizer = mixed(model, **decay)
    train(optimizer, 3)
    names = ["xyz", "feature_rest", "opacity", "scaling"]
    freeze(optimizer, names)
    frozen = [getattr(model, name) for name in names]
    before = [[p.detach().clone(), *map(torch.clone, optimizer.state[p].values())] for p in frozen]
    train(optimizer, 200, seed=1)
    for parameter, kept in zip(frozen, before, strict=True):
        now = [parameter.detach(), *optimizer.state[parameter].values()]
        assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))
    unfreeze(optimizer, names)
    train(optimizer, 1)
    assert all(not torch.equal(p, kept[0]) for p, kept in zip(frozen, before, strict=True))


def test_rows_move_with_the_state_of_each_part():
    model = GaussianModel(4, sh_degree=1)
    optimizer = mixed(model)
    train(optimizer, 2)
    kept = {name: optimizer.state[getattr(model, name)] for name in ATTRIBUTES}
    kept = {name: {key: value.clone() for key, value in state.items()} for name, state in kept.items()}
    new = {name: p.detach()[:1].clone() for name, p in model.named_parameters()}
    resize(model, ATTRIBUTES, optimizer, torch.tensor([2, 0]), new)
    state = {name: optimizer.state[getattr(model, name)] for name in ATTRIBUTES}
    per_row = {"feature_rest": "momentum_buffer", "opacity": "step", "scaling": "prev", "xyz": "exp_avg"}
    for name, key in per_row.items():
        assert torch.equal(state[name][key][:2], kept[name][key][[2, 0]])
        assert not state[name][key][2].any()
    assert state["xyz"]["step"].tolist() == 2
    assert state["scaling"]["step_size"][2].tolist() == [pytest.approx(0.03)] * 3  # where Rprop begins
    for part in optimizer.parts.values():
        assert part.per_row_state if isinstance(part, gsopt.VisibleAdam) else True
    train(optimizer, 2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_rows_that_are_seen_reach_the_part_that_asks_for_them():
    model = GaussianModel(5, sh_degree=1)
    optimizer = mixed(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.add_visible(model, mask(1, 3))
    train(optimizer, 1)
    assert (model.opacity != before["opacity"]).flatten().tolist() == mask(1, 3).tolist()
    assert (model.xyz != before["xyz"]).all()
    with pytest.raises(ValueError, match="none of these parameters is the optimizer's"):
        optimizer.add_visible(GaussianModel(5), mask(1))


SCHEDULERS = {
    "ours": lambda optimizer: build_scheduler(optimizer, gaussian_specs(1.0, 10) | SPECS),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_schedulers_drive_all_parts(case):
    model = GaussianModel(3, sh_degree=1)
    optimizer = mixed(model)
    scheduler = SCHEDULERS[case](optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    for loss in (1.0, 1.0, 1.0):
        train(optimizer, 1)
        scheduler.step(*([loss] if case == "plateau" else []))
    changed = [group["lr"] < rate for group, rate in zip(optimizer.param_groups, rates, strict=True)]
    assert changed == [name == "xyz" for name in ATTRIBUTES] if case == "ours" else all(changed)
    for part in optimizer.parts.values():
        assert all(any(group is own for own in optimizer.param_groups) for group in part.param_groups)


def test_a_group_added_later():
    model, extra = GaussianModel(3, sh_degree=1), nn.Parameter(torch.ones(2, 2))
    optimizer = mixed(model)
    optimizer.add_param_group({"params": [("extra", extra)], "name": "extra", "lr": 0.1, "optimizer": "sgd"})
    train(optimizer, 1)
    assert not torch.equal(extra, torch.ones(2, 2))
    assert optimizer.param_groups[-1]["momentum"] == 0
    stranger = {"params": [("other", nn.Parameter(torch.ones(1)))], "name": "other"}
    optimizer.add_param_group(stranger)
    expected = r"group other: optimizer: expected one of adam, sgd, rprop, visible_adam, found None"
    with pytest.raises(ValueError, match=expected):
        optimizer.step()


def test_closure_is_called_once_for_all_parts():
    model = GaussianModel(3, sh_degree=1)
    optimizer, losses = mixed(model), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses.append(sum((p - 1).square().sum() for p in model.parameters()))
        losses[-1].backward()
        return losses[-1]

    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    assert closure() < losses[0]


# ---------------------------------------- state

COPIES = {
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_trains_on_alike(way):
    optimizer = mixed(GaussianModel(30, sh_degree=1))
    train(optimizer, 3)
    other = COPIES[way](optimizer)
    assert type(other) in (MixedOptimizer, type(optimizer))
    for each in (optimizer, other):
        train(each, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(optimizer), tensors(other), strict=True))


@pytest.mark.parametrize("how", ["torch", "by name", "by name, other order", "by name, started"])
def test_training_goes_on_alike_after_loading(how):
    first, second = GaussianModel(30, sh_degree=1), GaussianModel(30, sh_degree=1)
    optimizer = mixed(first)
    optimizer.add_visible(first, mask(0, 7, count=30))
    train(optimizer, 3)
    second.load_state_dict(first.state_dict())
    groups = gaussian_groups(second, **SPECS)
    other = build_optimizer("adam", groups[::-1] if "order" in how else groups, native=True)
    if "started" in how:
        train(other, 1)
        second.load_state_dict(first.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    assert set(saved) == {"state", "param_groups"}
    assert [group["param_names"] for group in saved["param_groups"]] == [[name] for name in ATTRIBUTES]
    if how == "torch":
        other.load_state_dict(saved)
    else:
        assert load_optimizer_state(other, saved).complete
    for seed in range(3):
        for model, each in ((first, optimizer), (second, other)):
            generator = torch.Generator().manual_seed(seed)
            for name in ATTRIBUTES:
                parameter = getattr(model, name)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            each.add_visible(model, mask(7, 9, count=30))
            each.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_one_adam_goes_where_it_fits():
    adam = build_optimizer("adam", gaussian_groups(GaussianModel(4, sh_degree=1)))
    train(adam, 2)
    optimizer = mixed(GaussianModel(4, sh_degree=1))
    report = load_optimizer_state(optimizer, adam.state_dict(), strict=False)
    assert set(report.matched) == {"xyz", "feature_dc", "rotation", "opacity"}
    assert set(report.converted) == {"opacity"}
    assert report.state_mismatch == {
        "feature_rest": "needs momentum_buffer, found step, exp_avg, exp_avg_sq in the file",
        "scaling": "needs prev, step_size, found step, exp_avg, exp_avg_sq in the file",
    }
    assert report.hyperparameters["opacity.optimizer"] == ("absent", "visible_adam")
    train(optimizer, 1)


def test_torch_s_own_loading_refuses_state_of_other_optimizers():
    adam = build_optimizer("adam", gaussian_groups(GaussianModel(4)))
    with pytest.raises(
        ValueError, match="group xyz: expected state of adam, found that of None; load it with"
    ):
        mixed(GaussianModel(4)).load_state_dict(adam.state_dict())


# ---------------------------------------- what cannot be

BAD = {
    "unknown": ({"xyz": GroupSpec(0.1, optimizer="adm")}, {}, "group xyz: optimizer adm: no such optimizer"),
    "no decay": (
        {"xyz": GroupSpec(0.1, weight_decay=0.1, optimizer="rprop")},
        {},
        "optimizer rprop: has no weight decay, but these groups ask for it: xyz",
    ),
    "betas of a group": (
        {"xyz": GroupSpec(0.1, options={"betas": (0.9, 2.0)})},
        {},
        "optimizer adam: group xyz: Invalid beta parameter at index 1: 2.0",
    ),
    "nesterov without momentum": (
        {"xyz": GroupSpec(0.1, optimizer="sgd", options={"nesterov": True})},
        {},
        "optimizer sgd: group xyz: Nesterov momentum requires a momentum",
    ),
    "kind of value": (
        {"xyz": GroupSpec(0.1, options={"betas": 0.9})},
        {},
        "optimizer adam: group xyz: betas: expected 2 numbers with a comma between, found 0.9",
    ),
    "options of none": (
        {name: GroupSpec(0.1, optimizer="sgd") for name in ATTRIBUTES},
        {"betas": (0.5, 0.9)},
        "optimizer adam: betas: has no effect, as each group has an optimizer of its own",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_optimizers_of_groups_that_cannot_be(case):
    changes, args, message = BAD[case]
    with pytest.raises(InputError, match=message):
        build_optimizer("adam", gaussian_groups(GaussianModel(1), **changes), **args)


def test_the_optimizer_of_a_group_is_a_field_and_no_option():
    with pytest.raises(ValueError, match="options: optimizer cannot be an option; use the field"):
        GroupSpec(0.1, options={"optimizer": "sgd"})
    groups = build_groups({"w": nn.Parameter(torch.ones(1))}, {"w": GroupSpec(0.1, optimizer="sgd")})
    assert groups[0]["optimizer"] == "sgd"
