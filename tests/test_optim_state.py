"""Optimizer state by name: load_optimizer_state for the optimizers of any module."""

import pytest
import torch
from optimizing import gaussian_groups, same, train
from torch import nn

from gsopt.groups import GroupSpec
from gsopt.model import GaussianModel
from gsopt.optim import build_optimizer, load_optimizer_state


class Model(nn.Module):
    def __init__(self, first: str = "linear1", sizes: tuple[int, int, int] = (2, 3, 4)):
        super().__init__()
        layers = {"linear1": nn.Linear(sizes[0], sizes[1]), "linear2": nn.Linear(sizes[1], sizes[2])}
        for name in (first, *(name for name in layers if name != first)):
            self.add_module(name, layers[name])


def adam(model: nn.Module, **options) -> torch.optim.Adam:
    return torch.optim.Adam(model.named_parameters(), lr=0.1, **options)


def trained(model: nn.Module, steps: int = 5, make=adam, **options) -> torch.optim.Optimizer:
    optimizer = make(model, **options)
    train(optimizer, steps)
    return optimizer


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}


def equal_moments(a: dict[str, dict], b: dict[str, dict]) -> bool:
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def test_torch_matches_by_order_and_fails_in_step():
    model, other = Model(), Model(first="linear2")
    optimizer = adam(other)
    optimizer.load_state_dict(trained(model).state_dict())  # says nothing
    with pytest.raises(RuntimeError, match=r"The size of tensor a \(\d\) must match the size of tensor b"):
        train(optimizer, 1)


def test_torch_swaps_moments_silently_where_shapes_agree():
    model, other = Model(sizes=(2, 2, 2)), Model(first="linear2", sizes=(2, 2, 2))
    saved, optimizer = trained(model), adam(other)
    optimizer.load_state_dict(saved.state_dict())
    train(optimizer, 1)  # says nothing either
    swapped = optimizer.state[other.linear2.weight]
    optimizer = adam(other)
    load_optimizer_state(optimizer, saved.state_dict())
    train(optimizer, 1)
    assert not same(swapped, optimizer.state[other.linear2.weight])


def test_training_goes_on_alike_whatever_the_order():
    model = Model()
    saved = trained(model)
    other = Model(first="linear2")
    other.load_state_dict(model.state_dict())
    optimizer = adam(other)
    report = load_optimizer_state(optimizer, saved.state_dict())
    assert report.complete
    assert sorted(report.matched) == ["linear1.bias", "linear1.weight", "linear2.bias", "linear2.weight"]
    for step in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.full_like(parameter, 0.1 * step)
            other.get_parameter(name).grad = parameter.grad.clone()
        saved.step()
        optimizer.step()
    assert same(model.state_dict(), other.state_dict())
    assert equal_moments(moments(model, saved), moments(other, optimizer))


def grouped(names: dict[str, list[str]], **options):
    """An Adam over groups of these names, each of these parameters."""

    def make(model: nn.Module) -> torch.optim.Adam:
        parameters = dict(model.named_parameters())
        groups = [
            {"name": group, "params": [(name, parameters[name]) for name in members]}
            for group, members in names.items()
        ]
        return torch.optim.Adam(groups, lr=0.1, **options)

    return make


def unnamed(model: nn.Module, **options) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.1, **options)


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.named_parameters(), lr=0.1, **options)


NAMES = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
RENAMED = {"linear1.weight": "one.weight", "linear1.bias": "one.bias"}
ONE_GROUP = grouped({"all": NAMES})
TWO_GROUPS = grouped({"first": NAMES[:2], "second": NAMES[2:]})
NO_BIAS = grouped({"weights": [NAMES[0], NAMES[2]]})
CAPTURABLE = {"capturable": True}

CASES = {  # saved by, loaded by, names=, then what the report has beside matched
    "same": (adam, adam, None, {}),
    "one group split in two": (ONE_GROUP, TWO_GROUPS, None, {}),
    "two groups joined": (TWO_GROUPS, ONE_GROUP, None, {}),
    "renamed group": (ONE_GROUP, grouped({"other": NAMES}), None, {}),
    "fewer parameters": (adam, NO_BIAS, None, {"unexpected": [NAMES[1], NAMES[3]]}),
    "more parameters": (NO_BIAS, adam, None, {"missing": [NAMES[1], NAMES[3]]}),
    "file without names": (unnamed, adam, NAMES, {}),
    "optimizer without names": (adam, unnamed, NAMES, {}),
    "amsgrad": (lambda m: adam(m, amsgrad=True), lambda m: adam(m, amsgrad=True), None, {}),
    "amsgrad since": (adam, lambda m: adam(m, amsgrad=True), None, {"state_mismatch": set(NAMES)}),
    "amsgrad no longer": (lambda m: adam(m, amsgrad=True), adam, None, {"unused": set(NAMES)}),
    "capturable": (adam, lambda m: adam(m, **CAPTURABLE), None, {}),
    "fused": (lambda m: adam(m, fused=True), adam, None, {}),
    "adamw": (adam, lambda m: torch.optim.AdamW(m.named_parameters(), lr=0.1), None, {}),
    "another optimizer": (lambda m: sgd(m, momentum=0.9), adam, None, {"state_mismatch": set(NAMES)}),
    "one that keeps no state": (adam, sgd, None, {"unused": set(NAMES)}),
    "adagrad": (*[lambda m: torch.optim.Adagrad(m.named_parameters())] * 2, None, {}),
    "adafactor": (*[lambda m: torch.optim.Adafactor(m.named_parameters())] * 2, None, {}),
}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_state_by_name(case, started):
    save, load, names, differences = CASES[case]
    model, other = Model(), Model()
    saved = trained(model, make=save)
    optimizer = load(other)
    if started and "capturable" not in case:  # which steps on CUDA alone
        train(optimizer, 3)
    report = load_optimizer_state(optimizer, saved.state_dict(), names=names, strict=False)

    for kind in ("missing", "unexpected"):
        assert getattr(report, kind) == differences.get(kind, [])
    for kind in ("shape_mismatch", "state_mismatch", "unused"):
        assert set(getattr(report, kind)) == differences.get(kind, set())
    theirs, ours = moments(model, saved), moments(other, optimizer)
    for name in report.matched:
        kept = {key: theirs[name][key] for key in theirs[name] if key not in report.unused.get(name, [])}
        assert same(kept, ours[name])
    if report.complete:
        load_optimizer_state(optimizer, saved.state_dict(), names=names)
    else:
        with pytest.raises(ValueError, match="nothing was loaded\nmatched: "):
            load_optimizer_state(optimizer, saved.state_dict(), names=names)
    if "capturable" not in case and not report.state_mismatch:
        train(optimizer, 1)


def test_strict_changes_nothing_and_says_everything():
    saved = trained(Model(sizes=(2, 5, 4)), make=NO_BIAS)
    model = Model()
    optimizer = trained(model)
    before = {
        name: {k: v.clone() for k, v in state.items()} for name, state in moments(model, optimizer).items()
    }
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_optimizer_state(optimizer, saved.state_dict())
    assert equal_moments(moments(model, optimizer), before)
    assert (
        str(caught.value).splitlines()
        == [
            "optimizer state does not fit the optimizer; nothing was loaded",
            "matched: none",
            "missing in the file: linear1.bias, linear2.bias",
            "shape mismatch: linear1.weight: exp_avg [5, 2] in the file, expected [3, 2]",
            "shape mismatch: linear2.weight: exp_avg [4, 5] in the file, expected [4, 3]",
            "differs: group 0.name: weights in the file, absent requested, which stays",
        ][:5]
    )


def test_rows_added_since_are_a_shape_mismatch_of_that_parameter_alone():
    saved = build_optimizer("adam", gaussian_groups(GaussianModel(5)))
    train(saved, 2)
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(6)))
    report = load_optimizer_state(optimizer, saved.state_dict(), strict=False)
    assert report.shape_mismatch["opacity"] == "exp_avg [5, 1] in the file, expected [6, 1]"
    assert len(report.shape_mismatch) == 6


def test_hyperparameters_stay_as_requested_and_are_reported():
    saved = build_optimizer("adam", gaussian_groups(GaussianModel(2)))
    train(saved, 2)
    specs = {"opacity": GroupSpec(0.5, weight_decay=0.1, frozen=True)}
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(2), **specs), betas=(0.5, 0.9))
    groups = optimizer.param_groups
    report = load_optimizer_state(optimizer, saved.state_dict())
    assert report.hyperparameters == {
        **{f"{group['name']}.betas": ((0.9, 0.999), (0.5, 0.9)) for group in groups},
        "opacity.lr": (0.025, 0.5),
        "opacity.weight_decay": (0.0, 0.1),
        "opacity.frozen": (False, True),
    }
    assert optimizer.param_groups is groups
    assert groups[5]["betas"] == (0.5, 0.9)
    assert "differs: opacity.lr: 0.025 in the file, 0.5 requested, which stays" in str(report)


def test_a_rate_that_a_scheduler_changed_is_no_difference():
    saved = adam(Model())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(saved, gamma=0.9)
    for _ in range(3):
        train(saved, 1)
        scheduler.step()
    assert load_optimizer_state(adam(Model()), saved.state_dict()).hyperparameters == {}


def test_state_saved_before_the_first_step_makes_the_optimizer_fresh():
    optimizer = trained(Model())
    report = load_optimizer_state(optimizer, adam(Model()).state_dict())
    assert report.complete
    assert optimizer.state_dict()["state"] == {}
    train(optimizer, 1)


def test_a_frozen_group_that_was_never_stepped_loads_and_trains_on():
    model = GaussianModel(3)
    saved = build_optimizer("adam", gaussian_groups(model, xyz=GroupSpec(1.0, frozen=True)))
    train(saved, 3)
    other = GaussianModel(3)
    optimizer = build_optimizer("adam", gaussian_groups(other))
    assert load_optimizer_state(optimizer, saved.state_dict()).complete
    train(optimizer, 1)
    assert optimizer.state[other.xyz]["step"] == 1
    assert optimizer.state[other.opacity]["step"] == 4


def test_an_excluded_group_of_the_file_is_unexpected():
    saved = build_optimizer("adam", gaussian_groups(GaussianModel(3)))
    train(saved, 3)
    fewer = gaussian_groups(GaussianModel(3), xyz=GroupSpec(1.0, optimize=False))
    report = load_optimizer_state(build_optimizer("adam", fewer), saved.state_dict(), strict=False)
    assert report.unexpected == ["xyz"]
    assert len(report.matched) == 5


def test_a_file_without_names_is_read_by_its_group_names():
    model = GaussianModel(3)
    names = {"xyz": "xyz", "f_dc": "feature_dc", "f_rest": "feature_rest", "opacity": "opacity"}
    saved = torch.optim.Adam(
        [{"params": [getattr(model, ours)], "lr": 0.1, "name": name} for name, ours in names.items()]
    )
    train(saved, 3)
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(3)))
    report = load_optimizer_state(optimizer, saved.state_dict(), names=names, strict=False)
    assert report.matched == ["xyz", "feature_dc", "feature_rest", "opacity"]
    assert report.missing == ["scaling", "rotation"]


def test_what_is_loaded_does_not_share_memory_with_the_file():
    model = Model()
    state_dict = trained(model).state_dict()
    before = state_dict["state"][0]["exp_avg"].clone()
    optimizer = adam(Model())
    load_optimizer_state(optimizer, state_dict)
    train(optimizer, 1)
    assert torch.equal(state_dict["state"][0]["exp_avg"], before)


BAD_LOADS = {
    "file without names": (
        unnamed,
        adam,
        None,
        r"the saved optimizer state has no parameter names; give names=",
    ),
    "optimizer without names": (adam, unnamed, None, r"build it from model.named_parameters\(\)"),
    "both without": (unnamed, unnamed, NAMES, r"build it from model.named_parameters\(\)"),
    "too few names": (
        unnamed,
        adam,
        NAMES[:3],
        "saved state has 4 parameters, found 3 names; give one for each",
    ),
    "twice": (
        unnamed,
        adam,
        [*NAMES[:3], NAMES[0]],
        "several parameters with the name linear1.weight; rename",
    ),
    "unknown name": (
        adam,
        adam,
        {"linear9": "a"},
        "linear9: not in the saved state, which has .*linear1.weight",
    ),
}


@pytest.mark.parametrize("case", BAD_LOADS)
def test_names_that_do_not_fit(case):
    save, load, names, message = BAD_LOADS[case]
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(load(Model()), save(Model()).state_dict(), names=names)


def test_something_else_than_a_state_dict():
    with pytest.raises(
        ValueError, match=r"found the keys \['model'\]; give the result of Optimizer.state_dict"
    ):
        load_optimizer_state(adam(Model()), {"model": 1})
