"""Named groups: specs, what lands in which group, freezing, the scheduler."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from gsopt.errors import InputError
from gsopt.groups import GroupSpec, build_groups, build_scheduler, freeze, gaussian_specs, unfreeze
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.schedules import Constant, LogLinear

ONE = GroupSpec(lr=1.0)


def layout(groups) -> dict[str, list[str]]:
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


# ---------------------------------------- the table


def test_gaussian_specs_is_the_table_of_the_original():
    specs = gaussian_specs(extent=2.0, iterations=30_000)
    assert {name: spec.lr for name, spec in specs.items()} == pytest.approx(
        {
            "xyz": 3.2e-4,
            "feature_dc": 2.5e-3,
            "feature_rest": 1.25e-4,
            "scaling": 5e-3,
            "rotation": 1e-3,
            "opacity": 2.5e-2,
        }
    )
    xyz = specs.pop("xyz")
    rates = [xyz.lr * xyz.schedule(step) for step in (0, 15_000, 30_000, 90_000)]
    assert rates == pytest.approx([3.2e-4, 3.2e-5, 3.2e-6, 3.2e-6])
    assert all(spec.schedule is None for spec in specs.values())


def test_the_table_covers_the_model():
    assert tuple(gaussian_specs(1.0, 100)) == ATTRIBUTES


@pytest.mark.parametrize("extent", [0.0, -1.0, float("nan"), float("inf")])
def test_an_extent_that_is_no_length(extent):
    with pytest.raises(InputError, match="extent of the scene: expected a positive length"):
        gaussian_specs(extent, 100)


BAD_SPECS = {
    "lr": (dict(lr=-1.0), "lr: expected a number of 0 or more, found -1.0"),
    "nan": (dict(lr=float("nan")), "lr: .* found nan"),
    "weight decay": (dict(lr=1.0, weight_decay=-0.1), "weight_decay: expected a number of 0 or more"),
    "option": (dict(lr=1.0, options={"lr": 2.0}), "options: lr cannot be an option; use the field"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_bad_specs(case):
    arguments, message = BAD_SPECS[case]
    with pytest.raises(ValueError, match=message):
        GroupSpec(**arguments)


# ---------------------------------------- which parameter lands where


class Twolayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(2, 3)
        self.linear2 = nn.Linear(3, 4)


def joint() -> dict[str, nn.Module]:
    return {"coarse": GaussianModel(2, 0), "fine": GaussianModel(3, 0), "poses": nn.Embedding(4, 6)}


def gaussian(**changes) -> dict[str, GroupSpec]:
    return gaussian_specs(1.0, 100) | changes


W1, B1 = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
LAYOUTS = {
    "one model": (GaussianModel(2), gaussian(), {name: [name] for name in ATTRIBUTES}),
    "excluded": (
        GaussianModel(2),
        gaussian(xyz=GroupSpec(lr=1.0, optimize=False)),
        {name: [name] for name in ATTRIBUTES[1:]},
    ),
    "joint": (
        joint(),
        gaussian(poses=ONE),
        {f"{model}.{name}": [f"{model}.{name}"] for model in ("coarse", "fine") for name in ATTRIBUTES}
        | {"poses": ["poses.weight"]},
    ),
    "modules and parameters": (
        {"object": GaussianModel(1, 0), "exposure": W1},
        gaussian(exposure=ONE),
        {f"object.{name}": [f"object.{name}"] for name in ATTRIBUTES} | {"exposure": ["exposure"]},
    ),
    "loose parameters": ({"W1": W1, "b1": B1}, {"W1": ONE, "b1": ONE}, {"W1": ["W1"], "b1": ["b1"]}),
    "named parameters": ([("W1", W1), ("b1", B1)], {"W1": ONE, "b1": ONE}, {"W1": ["W1"], "b1": ["b1"]}),
    "generator": (
        Twolayer().named_parameters(),
        {"linear1": ONE, "linear2": ONE},
        {
            "linear1": ["linear1.weight", "linear1.bias"],
            "linear2": ["linear2.weight", "linear2.bias"],
        },
    ),
    "weights but not biases": (
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
        {"weight": ONE, "bias": ONE},
        {"weight": ["0.weight", "1.weight"], "bias": ["0.bias", "1.bias"]},
    ),
    "the full name beats its start, the start beats its end": (
        Twolayer(),
        {"linear1.bias": ONE, "linear1": ONE, "bias": ONE, "weight": ONE},
        {
            "linear1": ["linear1.weight"],
            "linear1.bias": ["linear1.bias"],
            "weight": ["linear2.weight"],
            "bias": ["linear2.bias"],
        },
    ),
    "layers of two models": (
        {"a": Twolayer(), "b": nn.Linear(1, 1)},
        {"weight": ONE, "bias": ONE},
        {
            "a.weight": ["a.linear1.weight", "a.linear2.weight"],
            "a.bias": ["a.linear1.bias", "a.linear2.bias"],
            "b.weight": ["b.weight"],
            "b.bias": ["b.bias"],
        },
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_each_parameter_is_in_one_group(case):
    models, specs, expected = LAYOUTS[case]
    groups = build_groups(models, specs)
    assert layout(groups) == expected
    opt = torch.optim.Adam(groups, lr=0.0, eps=1e-15)
    assert [group["param_names"] for group in opt.param_groups] == list(expected.values())


def test_weight_decay_on_weights_but_not_biases():
    """With gradients of zero, decay is all that happens."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    specs = {"weight": GroupSpec(lr=0.5, weight_decay=1e-2), "bias": GroupSpec(lr=0.5)}
    optimizer = torch.optim.SGD(build_groups(model, specs), lr=0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(optimizer, steps=10)
    for name, parameter in model.named_parameters():
        left = (1 - 0.5 * 1e-2) ** 10 if name.endswith("weight") else 1.0
        torch.testing.assert_close(parameter.detach(), left * before[name])


def test_the_keys_of_a_group():
    spec = GroupSpec(lr=0.5, weight_decay=0.1, options={"betas": (0.5, 0.9)})
    (group,) = build_groups({"W1": W1}, {"W1": spec})
    assert group == {
        "name": "W1",
        "params": [("W1", W1)],
        "lr": 0.5,
        "weight_decay": 0.1,
        "frozen": False,
        "betas": (0.5, 0.9),
    }


def test_in_joint_groups_the_full_name_beats_the_attribute():
    special = GroupSpec(lr=7.0)
    groups = build_groups(joint(), gaussian(poses=ONE) | {"coarse.xyz": special})
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["coarse.xyz"] == 7.0
    assert rates["fine.xyz"] == pytest.approx(1.6e-4)


BAD_GROUPS = {
    "both sides": (
        GaussianModel(1),
        {"xzy": ONE, **{name: ONE for name in ATTRIBUTES[1:]}},
        ValueError,
        'parameters without spec: "xyz"; specs without parameter: "xzy"; all parameters: "xyz", "feature_dc"',
    ),
    "no spec": (
        joint(),
        gaussian(),
        ValueError,
        'without spec: "poses.weight"; specs without parameter: none',
    ),
    "unnamed": ([W1, B1], {}, TypeError, r"found Parameter; give named_parameters\(\)"),
    "a tensor": (W1, {}, TypeError, "expected a module, a dict of modules or parameters.* found Parameter"),
    "a plain tensor": (
        {"W1": torch.zeros(2)},
        {"W1": ONE},
        TypeError,
        '"W1": expected a module or nn.Parameter',
    ),
    "twice": ({"a": W1, "b": W1}, {"a": ONE, "b": ONE}, ValueError, '"a" and "b" are one parameter'),
    "one name": ([("a", W1), ("a", B1)], {"a": ONE}, ValueError, 'two parameters have the name "a"'),
    "nothing": ({"a": W1}, {"a": GroupSpec(1.0, optimize=False)}, ValueError, "nothing is left to optimize"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_errors_list_both_sides(case):
    models, specs, error, message = BAD_GROUPS[case]
    try:
        with pytest.raises(error, match=message):
            build_groups(models, specs)
    finally:
        W1.requires_grad_(True)


# ---------------------------------------- frozen and excluded


def test_excluded_and_frozen_parameters_do_not_require_grad():
    model = GaussianModel(2)
    model.xyz.grad = torch.ones_like(model.xyz)
    specs = gaussian(xyz=GroupSpec(1.0, frozen=True), opacity=GroupSpec(1.0, optimize=False))
    groups = {group["name"]: group for group in build_groups(model, specs)}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"xyz", "opacity"}
    assert model.xyz.grad is None
    assert [name for name, group in groups.items() if group["frozen"]] == ["xyz"]
    assert "opacity" not in groups


def test_a_parameter_without_grad_begins_frozen_and_needs_no_spec():
    model = GaussianModel(2)
    model.opacity.requires_grad_(False)
    groups = build_groups(model, gaussian())
    assert [group["name"] for group in groups if group["frozen"]] == ["opacity"]
    specs = gaussian()
    del specs["opacity"]
    assert "opacity" not in layout(build_groups(model, specs))


def test_freeze_and_unfreeze():
    model = GaussianModel(2)
    opt = torch.optim.Adam(build_groups(model, gaussian()), lr=0.0, eps=1e-15)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    freeze(opt, ["xyz", "opacity"])
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"xyz", "opacity"}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"xyz", "opacity"}
    assert [group["frozen"] for group in opt.param_groups] == [True, False, False, False, False, True]
    freeze(opt, "xyz")  # again, and as one name

    unfreeze(opt, ["xyz", "opacity"])
    assert all(p.requires_grad for p in model.parameters())
    assert not any(group["frozen"] for group in opt.param_groups)


@pytest.mark.parametrize("act", [freeze, unfreeze])
def test_an_unknown_name_lists_the_choices_and_changes_nothing(act):
    model = GaussianModel(2)
    opt = torch.optim.SGD(build_groups(model, gaussian(xyz=GroupSpec(1.0, frozen=True))))
    with pytest.raises(InputError, match='the name "opacitty"; choose from "xyz", "feature_dc"'):
        act(opt, ["xyz", "opacity", "opacitty"])
    assert [group["frozen"] for group in opt.param_groups] == [True] + [False] * 5


# ---------------------------------------- scheduler


def train(opt, *schedulers, steps: int) -> None:
    """Steps with gradients of zero, and of the schedulers in their order."""
    for _ in range(steps):
        for group in opt.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        opt.step()
        for scheduler in schedulers:
            scheduler.step()


def rates(opt) -> dict[str, float]:
    return {group["name"]: float(group["lr"]) for group in opt.param_groups}


def test_the_scheduler_drives_the_groups_that_have_a_schedule():
    specs = gaussian(opacity=GroupSpec(0.1, schedule=LogLinear(0.5, 10)))
    opt = torch.optim.Adam(build_groups(GaussianModel(1), specs), lr=0.0)
    scheduler = build_scheduler(opt, specs)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    start = rates(opt)
    assert start["xyz"] == pytest.approx(1.6e-4)
    train(opt, scheduler, steps=10)
    assert rates(opt) == pytest.approx(start | {"xyz": 1.6e-4 * 0.01**0.1, "opacity": 0.05})
    assert scheduler.get_last_lr() == list(rates(opt).values())
    train(opt, scheduler, steps=190)
    assert rates(opt) == pytest.approx(start | {"xyz": 1.6e-6, "opacity": 0.05})


def test_a_schedule_counts_from_the_first_step():
    specs = {"W1": GroupSpec(1.0, schedule=lambda step: step / 10)}
    opt = torch.optim.SGD(build_groups({"W1": W1}, specs))
    scheduler = build_scheduler(opt, specs)
    assert rates(opt) == {"W1": 0.0}
    train(opt, scheduler, steps=3)
    assert rates(opt) == pytest.approx({"W1": 0.3})


def test_in_joint_groups_each_spec_drives_its_own():
    specs = gaussian(poses=ONE) | {"coarse.xyz": GroupSpec(1.0, schedule=Constant(0.5))}
    opt = torch.optim.Adam(build_groups(joint(), specs), lr=0.0)
    train(opt, build_scheduler(opt, specs), steps=50)
    assert rates(opt)["coarse.xyz"] == 0.5
    assert rates(opt)["fine.xyz"] == pytest.approx(1.6e-5)
    assert rates(opt)["poses"] == 1.0


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_users_scheduler_drives_the_groups_without_schedule(ours_first):
    specs = {"W1": GroupSpec(1.0, schedule=LogLinear(0.01, 10)), "b1": GroupSpec(1.0)}
    opt = torch.optim.SGD(build_groups({"W1": W1, "b1": B1}, specs))
    pair = [build_scheduler(opt, specs), lr_scheduler.StepLR(opt, step_size=4, gamma=0.5)]
    if ours_first:
        train(opt, *pair, steps=9)
        assert rates(opt)["b1"] == 0.25
    else:
        train(opt, *reversed(pair), steps=9)
        assert rates(opt) == pytest.approx({"W1": 0.01**0.9, "b1": 0.25})


THEIRS = {  # a scheduler of torch: factors after steps 0 to 5
    "exponential": (lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.5), [0.5**n for n in range(6)]),
    "step": (lambda opt: lr_scheduler.StepLR(opt, step_size=2, gamma=0.1), [1, 1, 0.1, 0.1, 0.01, 0.01]),
}


@pytest.mark.parametrize("case", THEIRS)
def test_a_users_scheduler_instead_of_ours(case):
    """Where no spec has a schedule. What it counts is its own calls, here one for each step."""
    build, factors = THEIRS[case]
    specs = gaussian(xyz=GroupSpec(2.0))
    opt = torch.optim.Adam(build_groups(GaussianModel(1), specs), lr=0.0)
    start, theirs = rates(opt), build(opt)
    for factor in factors:
        assert rates(opt) == pytest.approx({name: rate * factor for name, rate in start.items()})
        train(opt, theirs, steps=1)


@pytest.mark.parametrize(("ours_first", "extra"), [(True, 0.5), (False, 1.0)])
def test_two_schedulers_on_one_group(ours_first, extra):
    """Ours starts anew from the step; torch's multiplies what it finds, so only its last call shows."""
    specs = {"W1": GroupSpec(1.0, schedule=LogLinear(0.01, 10))}
    opt = torch.optim.SGD(build_groups({"W1": W1}, specs))
    pair = [build_scheduler(opt, specs), lr_scheduler.ExponentialLR(opt, gamma=0.5)]
    train(opt, *(pair if ours_first else reversed(pair)), steps=1)
    assert rates(opt)["W1"] == pytest.approx(0.01**0.1 * extra)
    train(opt, *(pair if ours_first else reversed(pair)), steps=8)
    assert rates(opt)["W1"] == pytest.approx(0.01**0.9 * extra)


def test_its_state_is_the_step_and_loading_sets_the_rates():
    specs = gaussian()
    opt = torch.optim.Adam(build_groups(GaussianModel(1), specs), lr=0.0)
    scheduler = build_scheduler(opt, specs)
    train(opt, scheduler, steps=30)
    assert scheduler.state_dict() == {"step": 30}

    again = torch.optim.Adam(build_groups(GaussianModel(1), specs), lr=0.0)
    resumed = build_scheduler(again, specs)
    resumed.load_state_dict({"step": 30})
    assert rates(again) == rates(opt)
    assert resumed.get_last_lr() == scheduler.get_last_lr()
    train(opt, scheduler, steps=5)
    train(again, resumed, steps=5)
    assert rates(again) == rates(opt)


def test_a_learning_rate_that_is_a_tensor_stays_that_tensor():
    specs = {"W1": GroupSpec(1.0, schedule=LogLinear(0.01, 10))}
    opt = torch.optim.SGD(build_groups({"W1": W1}, specs))
    lr = opt.param_groups[0]["lr"] = torch.tensor(1.0)
    scheduler = build_scheduler(opt, specs)
    train(opt, scheduler, steps=10)
    assert lr.item() == pytest.approx(0.01)
    scheduler.load_state_dict({"step": 5})
    assert lr.item() == pytest.approx(0.1)
    assert opt.param_groups[0]["lr"] is lr


def test_a_schedule_without_group_is_an_error():
    opt = torch.optim.SGD(build_groups({"W1": W1}, {"W1": ONE}))
    with pytest.raises(ValueError, match='no group for the schedule of "xyz"; choose from "W1"'):
        build_scheduler(opt, {"xyz": GroupSpec(1.0, schedule=Constant())})
