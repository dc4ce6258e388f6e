"""Windows of steps in which a group is frozen: which steps they cover, their text, what groups do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizing import gaussian_groups, same, train

from gsopt.errors import InputError
from gsopt.freeze_windows import FreezeWindow, check_in_run, idle_steps, parse_freezes
from gsopt.groups import GroupSpec, apply_freezes, build_groups, freeze, gaussian_specs
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer

# ---------------------------------------- which steps


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        (FreezeWindow(0, 500), [0, 1, 499], [500, 501]),
        (FreezeWindow(500, 502), [500, 501], [0, 499, 502]),
        (FreezeWindow(3000), [3000, 10**9], [0, 2999]),
        (FreezeWindow(), [0, 10**9], []),
    ],
    ids=str,
)
def test_a_window_has_its_start_and_not_its_end(window, inside, outside):
    assert all(step in window for step in inside)
    assert not any(step in window for step in outside)


BAD_WINDOWS = {
    "empty": ((5, 5), "end: expected a whole number, at least 6, found 5"),
    "backwards": ((5, 3), "end: expected a whole number, at least 6, found 3"),
    "negative": ((-1, 3), "start: expected a whole number, at least 0, found -1"),
    "part of a step": ((0.5, 3), "start: expected a whole number, at least 0, found 0.5"),
    "ends in a part": ((0, 3.5), "end: .* found 3.5"),
}


@pytest.mark.parametrize("case", BAD_WINDOWS)
def test_bad_windows(case):
    bounds, message = BAD_WINDOWS[case]
    with pytest.raises(ValueError, match=message):
        FreezeWindow(*bounds)


# ---------------------------------------- text


def test_windows_of_a_command_line():
    found = parse_freezes(
        ["xyz@0:500", "opacity@0:1000", "rotation@3000:", "xyz@2000:2500", "scaling", "feature-rest@:10"],
        ATTRIBUTES,
    )
    assert found == {
        "xyz": (FreezeWindow(0, 500), FreezeWindow(2000, 2500)),
        "opacity": (FreezeWindow(0, 1000),),
        "rotation": (FreezeWindow(3000, None),),
        "scaling": (FreezeWindow(0, None),),
        "feature_rest": (FreezeWindow(0, 10),),
    }


bounds = st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True).map(sorted)


@given(bounds=bounds, order=st.randoms())
def test_windows_are_their_text_and_back_in_any_order(bounds, order):
    windows = [FreezeWindow(*pair) for pair in zip(bounds[::2], bounds[1::2], strict=False)]
    order.shuffle(windows)
    assert parse_freezes([f"xyz@{window}" for window in windows], ["xyz"]) == {"xyz": tuple(windows)}


BAD_TEXTS = {
    "xzy": "no attribute is called 'xzy'; there are xyz, feature_dc",
    "xzy@0:5": "no attribute is called 'xzy'; there are xyz, feature_dc",
    "xyz@": 'expected a window START:END after "@", found ""',
    "xyz@500": 'expected a window START:END after "@", found "500"',
    "xyz@0:1e3": '"1e3" is not a whole number of steps; expected START:END',
    "xyz@0.5:3": '"0.5" is not a whole number of steps',
    "xyz@-5:3": "start: expected a whole number, at least 0, found -5",
    "xyz@5:5": "end: expected a whole number, at least 6, found 5",
    "xyz@9:5": "end: expected a whole number, at least 10, found 5",
    "opacity@99:101": "windows 0:100 and 99:101 overlap; make one of them",
    "opacity@50:60": "windows 0:100 and 50:60 overlap",
    "opacity": "windows 0:(100)? and 0:(100)? overlap",
    "opacity@0:100": "windows 0:100 and 0:100 overlap",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_bad_text_is_quoted_with_its_flag(text):
    with pytest.raises(InputError, match=f"^--freeze {text}: {BAD_TEXTS[text]}"):
        parse_freezes(["opacity@0:100", text], ATTRIBUTES)


@pytest.mark.parametrize("start", [100, 101])
def test_a_window_that_begins_when_the_run_is_over(start):
    windows = {"xyz": (FreezeWindow(0, 5), FreezeWindow(start, 200))}
    with pytest.raises(
        InputError, match=f"--freeze xyz@{start}:200: begins after the last of 100 iterations"
    ):
        check_in_run(windows, 100)
    check_in_run(windows, start + 1)  # that it ends after the run is fine


NAMES = ["a", "b"]
IDLE = {  # windows of a and b in a run of 10: steps in which nothing trains
    "none": ({}, None),
    "one": ({"a": [(0, None)]}, None),
    "both": ({"a": [(0, None)], "b": [(0, None)]}, range(10)),
    "both, at first": ({"a": [(0, 4)], "b": [(0, 3), (4, 9)]}, range(3)),
    "where they overlap": ({"a": [(2, 6)], "b": [(4, 9)]}, range(4, 6)),
    "one after the other": ({"a": [(0, 5)], "b": [(5, None)]}, None),
    "on to the end": ({"a": [(0, None)], "b": [(7, 100)]}, range(7, 10)),
    "after the end": ({"a": [(0, None)], "b": [(12, 15)]}, None),
    "across a seam": ({"a": [(0, 4), (4, 8)], "b": [(2, 6)]}, range(2, 6)),
}


@pytest.mark.parametrize("case", IDLE)
def test_steps_in_which_nothing_trains(case):
    bounds, expected = IDLE[case]
    windows = {name: tuple(FreezeWindow(*pair) for pair in pairs) for name, pairs in bounds.items()}
    assert idle_steps(windows, NAMES, 10) == expected


# ---------------------------------------- groups


def specs_with(**changes: GroupSpec) -> dict[str, GroupSpec]:
    return gaussian_specs(1.0, 100) | changes


WINDOWED = specs_with(
    xyz=GroupSpec(0.1, freeze=[(0, 3), (5, 6)]),  # pairs will do
    opacity=GroupSpec(0.1, freeze=(FreezeWindow(4),)),
)


def frozen_groups(optimizer: torch.optim.Optimizer) -> set[str]:
    frozen = {group["name"] for group in optimizer.param_groups if group["frozen"]}
    for group in optimizer.param_groups:
        assert all(p.requires_grad != (group["name"] in frozen) for p in group["params"])
    return frozen


def test_groups_freeze_and_thaw_by_the_step_alone():
    expected = [{"xyz"}] * 3 + [set(), {"opacity"}, {"xyz", "opacity"}, {"opacity"}]
    optimizer = build_optimizer("adam", build_groups(GaussianModel(2), WINDOWED))
    assert frozen_groups(optimizer) == {"xyz"}  # as the first step wants it
    for step in (*range(7), 3, 0, 5):  # in any order
        apply_freezes(optimizer, WINDOWED, step)
        assert frozen_groups(optimizer) == expected[step]


def test_groups_without_windows_are_left_alone():
    optimizer = build_optimizer("adam", build_groups(GaussianModel(2), WINDOWED))
    freeze(optimizer, "rotation")
    for step in range(7):
        apply_freezes(optimizer, WINDOWED, step)
        assert "rotation" in frozen_groups(optimizer)
    specs = specs_with(xyz=GroupSpec(0.1, frozen=True))
    optimizer = build_optimizer("adam", build_groups(GaussianModel(2), specs))
    apply_freezes(optimizer, specs, 50)
    assert frozen_groups(optimizer) == {"xyz"}


def test_the_spec_of_a_group_is_found_as_for_a_scheduler():
    specs = specs_with(**{"fine.xyz": GroupSpec(0.1)}) | {"xyz": GroupSpec(0.1, freeze=[(0, 5)])}
    optimizer = build_optimizer(
        "adam", build_groups({"coarse": GaussianModel(1), "fine": GaussianModel(1)}, specs)
    )
    apply_freezes(optimizer, specs, 0)
    assert frozen_groups(optimizer) == {"coarse.xyz"}


def test_windows_of_no_group_are_an_error():
    optimizer = build_optimizer("adam", gaussian_groups(GaussianModel(1)))
    with pytest.raises(
        ValueError, match='no group for the freeze windows of "xzy"; choose from "xyz", "feat'
    ):
        apply_freezes(optimizer, {"xzy": GroupSpec(1.0, freeze=[(0, 5)])}, 0)


BAD_SPECS = {
    "overlap": (dict(freeze=[(0, 5), (4, 6)]), "windows 0:5 and 4:6 overlap"),
    "frozen": (dict(freeze=[(0, 5)], frozen=True), "windows have no effect with frozen=True"),
    "excluded": (dict(freeze=[(0, 5)], optimize=False), "windows have no effect with optimize=False"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_specs_whose_windows_make_no_sense(case):
    arguments, message = BAD_SPECS[case]
    with pytest.raises(ValueError, match=message):
        GroupSpec(1.0, **arguments)


def state_of(optimizer: torch.optim.Optimizer, name: str) -> dict[str, torch.Tensor]:
    (parameter,) = next(group["params"] for group in optimizer.param_groups if group["name"] == name)
    return {"value": parameter.detach().clone()} | {
        k: v.clone() for k, v in optimizer.state[parameter].items()
    }


def test_after_a_window_a_group_goes_on_as_if_the_steps_in_it_had_not_been():
    specs = specs_with(xyz=GroupSpec(0.1, freeze=[(10, 60)]))
    windowed = build_optimizer("adam", build_groups(GaussianModel(5), specs))
    plain = build_optimizer("adam", gaussian_groups(GaussianModel(5), xyz=GroupSpec(0.1)))
    for step in range(70):
        apply_freezes(windowed, specs, step)
        train(windowed, 1, seed=step)
        if step not in range(10, 60):
            train(plain, 1, seed=step)
    assert same(state_of(windowed, "xyz"), state_of(plain, "xyz"))
    assert state_of(windowed, "xyz")["step"] == 20
    assert state_of(windowed, "opacity")["step"] == 70
