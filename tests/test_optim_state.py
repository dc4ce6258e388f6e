"""Optimizer state by name: load_optimizer_state for the optimizers of any module."""

import copy

import pytest
import torch
from optimizing import gaussian_groups, same, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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
    saved = trained(model).state_dict()
    optimizer = adam(other)
    optimizer.load_state_dict(saved)  # says nothing
    message = r"The size of tensor a \(2\) must match the size of tensor b \(3\)"
    with pytest.raises(RuntimeError, match=message):
        train(optimizer, 1)

    optimizer = adam(other)
    load_optimizer_state(optimizer, saved)
    train(optimizer, 1)


def test_torch_swaps_moments_silently_where_shapes_agree():
    model, other = Model(sizes=(2, 2, 2)), Model(first="linear2", sizes=(2, 2, 2))
    saved = trained(model)
    optimizer = adam(other)
    optimizer.load_state_dict(saved.state_dict())  # says nothing, and nothing will
    assert same(optimizer.state[other.linear2.weight], saved.state[model.linear1.weight])
    assert same(optimizer.state[other.linear1.bias], saved.state[model.linear2.bias])
    train(optimizer, 1)

    optimizer = adam(other)
    load_optimizer_state(optimizer, saved.state_dict())
    assert equal_moments(moments(other, optimizer), moments(model, saved))


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


CAPTURABLE = {"capturable": True}


def saved_capturable(model: nn.Module) -> torch.optim.Adam:
    """An Adam whose state_dict is as a capturable one of CUDA writes it; on a CPU none can step."""
    optimizer = adam(model)
    optimizer.register_state_dict_post_hook(lambda _, saved: saved["param_groups"][0].update(CAPTURABLE))
    return optimizer


NAMES = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
RENAMED = {"linear1.weight": "one.weight", "linear1.bias": "one.bias"}
ONE_GROUP = grouped({"all": NAMES})
TWO_GROUPS = grouped({"first": NAMES[:2], "second": NAMES[2:]})
NO_BIAS = grouped({"weights": [NAMES[0], NAMES[2]]})

CASES = {  # saved by, loaded by, names=, then what the report has beside matched
    "same": (adam, adam, None, {}),
    "one group split in two": (ONE_GROUP, TWO_GROUPS, None, {}),
    "two groups joined": (TWO_GROUPS, ONE_GROUP, None, {}),
    "fewer groups": (TWO_GROUPS, grouped({"first": NAMES[:2]}), None, {"unexpected": NAMES[2:]}),
    "more groups": (grouped({"first": NAMES[:2]}), TWO_GROUPS, None, {"missing": NAMES[2:]}),
    "renamed group": (ONE_GROUP, grouped({"other": NAMES}), None, {}),
    "fewer parameters": (adam, NO_BIAS, None, {"unexpected": [NAMES[1], NAMES[3]]}),
    "more parameters": (NO_BIAS, adam, None, {"missing": [NAMES[1], NAMES[3]]}),
    "file without names": (unnamed, adam, NAMES, {}),
    "optimizer without names": (adam, unnamed, NAMES, {}),
    "amsgrad": (lambda m: adam(m, amsgrad=True), lambda m: adam(m, amsgrad=True), None, {}),
    "amsgrad since": (adam, lambda m: adam(m, amsgrad=True), None, {"state_mismatch": set(NAMES)}),
    "amsgrad no longer": (lambda m: adam(m, amsgrad=True), adam, None, {"unused": set(NAMES)}),
    "capturable": (adam, lambda m: adam(m, **CAPTURABLE), None, {}),
    "capturable no longer": (saved_capturable, adam, None, {}),
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
    if started and case != "capturable":  # which steps on CUDA alone
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
    if case != "capturable" and not report.state_mismatch:
        train(optimizer, 1)


def test_strict_changes_nothing_and_says_everything():
    file = {"linear1.weight": torch.zeros(5, 2), "linear2.weight": torch.zeros(4, 3), "old": torch.zeros(1)}
    saved = torch.optim.Adam([(name, nn.Parameter(value)) for name, value in file.items()], lr=0.5)
    train(saved, 2)
    saved = saved.state_dict()
    del saved["state"][1]["exp_avg_sq"]
    model = Model()
    optimizer = trained(model)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_optimizer_state(optimizer, saved)
    assert str(caught.value).splitlines() == [
        "optimizer state does not fit the optimizer; nothing was loaded",
        "matched: none",
        "missing in the file: linear1.bias, linear2.bias",
        "unexpected, not in the optimizer: old",
        "shape mismatch: linear1.weight: exp_avg [5, 2] in the file, expected [3, 2]",
        "state mismatch: linear2.weight: needs exp_avg_sq, found step, exp_avg in the file",
        "differs: group 0.lr: 0.5 in the file, 0.1 requested, which stays",
    ]
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(same(after["state"][index], before["state"][index]) for index in range(4))


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


def test_options_of_groups_that_became_one_are_all_reported():
    model = Model()
    groups = TWO_GROUPS(model).param_groups
    saved = torch.optim.Adam([groups[0] | {"lr": 0.2}, groups[1] | {"lr": 0.3}])
    report = load_optimizer_state(ONE_GROUP(Model()), saved.state_dict())
    assert report.hyperparameters == {
        "all.lr": (0.2, 0.1),
        "all.lr of linear2.weight": (0.3, 0.1),
        "all.lr of linear2.bias": (0.3, 0.1),
    }


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
    assert report.fresh == report.matched == NAMES
    assert f"without state in the file, so they begin anew: {', '.join(NAMES)}" in str(report)
    assert optimizer.state_dict()["state"] == {}
    train(optimizer, 1)


def test_a_frozen_group_that_was_never_stepped_loads_and_trains_on():
    model = GaussianModel(3)
    saved = build_optimizer("adam", gaussian_groups(model, xyz=GroupSpec(1.0, frozen=True)))
    train(saved, 3)
    other = GaussianModel(3)
    optimizer = build_optimizer("adam", gaussian_groups(other))
    report = load_optimizer_state(optimizer, saved.state_dict())
    assert (report.complete, report.fresh) == (True, ["xyz"])
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


class Copies(TorchDispatchMode):
    """Counts the tensors that are copied."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, 3 * 4), (torch.float64, 3 * 4)])
def test_each_tensor_is_copied_once(dtype, expected):
    """Whether types differ or not: 3 entries of each of the 4 parameters."""
    state_dict = trained(Model()).state_dict()
    optimizer = adam(Model().to(dtype))
    with Copies() as copies:
        load_optimizer_state(optimizer, state_dict)
    assert copies.count == expected


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


@pytest.mark.parametrize(
    ("given", "found"), [({"model": 1, 2: 3}, r"the keys \['model', '2'\]"), ([], "list"), (None, "NoneType")]
)
def test_something_else_than_a_state_dict(given, found):
    with pytest.raises(ValueError, match=f"found {found}; give the result of Optimizer.state_dict"):
        load_optimizer_state(adam(Model()), given)
