"""Growth to a budget: the curve kept to the row, by whom with what score, and what frozen and locked mean."""

import pytest
import torch
from optimizing import gaussian_groups, same
from refining import give_gradients, random_info, random_model
from test_strategy_default import LARGE, OPAQUE, SMALL, rows_of, seen

import gsopt
from gsopt.errors import InputError
from gsopt.groups import GroupSpec
from gsopt.optim import build_optimizer
from gsopt.strategy import BudgetStrategy, Refinement

STEPS = dict(refine_start_iter=4, refine_stop_iter=40, refine_every=3)
ONCE = dict(refine_start_iter=0, refine_stop_iter=2, refine_every=1)  # one refinement, at the budget
FAINT = -6.0  # logit


def refine_once(model, scores, optimizer=None, **options) -> Refinement:
    strategy = BudgetStrategy(**ONCE | options)
    strategy.observe(model, seen(scores), 1)
    return strategy.refine(model, optimizer, 1, torch.Generator().manual_seed(0))


def refine_for(steps: range, model, optimizer, strategy, generator) -> list[int]:
    """Numbers of Gaussians after each step."""
    counts = []
    for step in steps:
        info = random_info(model.num_gaussians, 1, torch.Generator().manual_seed(step))
        strategy.observe(model, info, step)
        if optimizer is not None:
            give_gradients(model, step)
            optimizer.step()
        strategy.refine(model, optimizer, step, generator)
        counts.append(model.num_gaussians)
    return counts


# ---------------------------------------- how many


def test_the_curve_is_a_parabola_with_its_vertex_at_the_last_refinement():
    strategy = BudgetStrategy(
        refine_start_iter=100, refine_stop_iter=1_101, refine_every=100, max_gaussians=500
    )
    targets = {step: strategy.target(step, start=100) for step in (50, 100, 350, 600, 1_100, 2_000)}
    assert targets == {50: 100, 100: 100, 350: 275, 600: 400, 1_100: 500, 2_000: 500}


@pytest.mark.parametrize("budget", [200, 201, 250])
def test_the_number_of_gaussians_is_known_before_the_run(budget):
    generator = torch.Generator().manual_seed(0)
    model = random_model(100, generator)
    strategy = BudgetStrategy(**STEPS, max_gaussians=budget)
    assert strategy.plan(model) == f"100 to {budget} Gaussians by iteration 39"
    counts = refine_for(range(1, 46), model, None, strategy, generator)
    refinements = set(range(6, 40, 3))
    expected = [100]
    for step in range(1, 46):
        expected.append(strategy.target(step, 100) if step in refinements else expected[-1])
    assert counts == expected[1:]
    assert max(counts) == counts[-1] == budget


def test_what_is_pruned_grows_elsewhere():
    model = rows_of((SMALL, OPAQUE), (SMALL, FAINT), (SMALL, OPAQUE), (SMALL, FAINT))
    assert refine_once(model, [1e-5, 1e-3, 1e-6, 1e-3], max_gaussians=4) == Refinement(cloned=2, pruned=2)
    assert model.xyz[:, 0].tolist() == [0, 2, 0, 2]


def test_a_gaussian_grows_once_in_a_refinement_and_unseen_ones_do_not():
    assert refine_once(rows_of((SMALL, OPAQUE)), [1e-5], max_gaussians=9) == Refinement(cloned=1)
    assert refine_once(rows_of((SMALL, OPAQUE)), [0.0], max_gaussians=9) == Refinement()


@pytest.mark.parametrize(("pixels", "expected"), [(600, 10), (844, 12), (10**9, 10**6)])
def test_the_budget_by_default_is_one_for_65_training_pixels(pixels, expected):
    strategy = BudgetStrategy(**ONCE, training_pixels=pixels)
    assert strategy.target(2, start=10) == expected  # never less than there are
    assert BudgetStrategy(**ONCE, training_pixels=pixels, max_gaussians=77).target(2, start=10) == 77


def test_a_run_too_short_for_a_refinement_grows_nothing():
    strategy = BudgetStrategy(max_gaussians=50).resolve(30)
    model = rows_of((SMALL, OPAQUE))
    assert strategy.plan(model) == ""
    assert set(refine_for(range(1, 31), model, None, strategy, torch.Generator())) == {1}


# ---------------------------------------- who

SCORES = {  # budget, scores of (small, small, large, small): what happens, x of those that grow
    "all": (8, [3e-4, 4e-4, 5e-4, 6e-4], Refinement(cloned=3, split=1), {0, 1, 2, 3}),
    "two": (6, [3e-4, 4e-4, 5e-4, 6e-4], Refinement(cloned=1, split=1), {2, 3}),
    "the first of equals": (6, [4e-4, 4e-4, 4e-4, 4e-4], Refinement(cloned=2), {0, 1}),
    "however small the score": (5, [1e-9, 0.0, 0.0, 0.0], Refinement(cloned=1), {0}),
    "none": (4, [3e-4, 4e-4, 5e-4, 6e-4], Refinement(), set()),
}


@pytest.mark.parametrize("case", SCORES)
def test_those_with_the_largest_score_grow(case):
    budget, scores, expected, grown = SCORES[case]
    model = rows_of((SMALL, OPAQUE), (SMALL, OPAQUE), (LARGE, OPAQUE), (SMALL, OPAQUE))
    assert refine_once(model, scores, max_gaussians=budget) == expected
    places = model.xyz[:, 0].detach().round().tolist()
    assert {x for x in range(4) if places.count(x) == 2} == grown
    assert model.num_gaussians == budget


# ---------------------------------------- frozen and locked

FROZEN = {  # frozen attributes: what happens to one small and one large Gaussian that both move
    "xyz": Refinement(cloned=1),
    "scaling": Refinement(cloned=1),
    "rotation": Refinement(cloned=1, split=1),
    "opacity": Refinement(cloned=1, split=1),
}


@pytest.mark.parametrize("how", ["frozen", "excluded"])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_attributes_are_copied_and_never_changed(name, how):
    model = rows_of((SMALL, OPAQUE), (LARGE, OPAQUE))
    spec = GroupSpec(0.1, frozen=how == "frozen", optimize=how != "excluded")
    optimizer = build_optimizer("adam", gaussian_groups(model, **{name: spec}))
    before = getattr(model, name).detach().clone()
    done = refine_once(model, [3e-4, 3e-4], optimizer, max_gaussians=4, revised_opacity=True)
    assert done == FROZEN[name]
    assert torch.equal(getattr(model, name), before[[0, 0, 1, 1] if done.split else [0, 1, 0]])
    assert not getattr(model, name).requires_grad


def test_locked_gaussians_count_and_are_left_alone():
    model = rows_of((SMALL, OPAQUE), (SMALL, FAINT), (SMALL, OPAQUE), (SMALL, OPAQUE))
    gsopt.lock(model, [0, 1])
    assert refine_once(model, [9e-4, 9e-4, 1e-4, 2e-4], max_gaussians=5) == Refinement(cloned=1)
    assert model.xyz[:, 0].tolist() == [0, 1, 2, 3, 3]


# ---------------------------------------- going on


@pytest.mark.parametrize("middle", [2, 6, 8, 30, 42])
def test_a_saved_strategy_goes_on_to_the_same_bits(middle):
    def begin():
        model = random_model(50, torch.Generator().manual_seed(0))
        optimizer = build_optimizer("adam", gaussian_groups(model))
        return model, optimizer, BudgetStrategy(**STEPS, max_gaussians=99)

    straight, generator = begin(), torch.Generator().manual_seed(3)
    refine_for(range(1, 46), *straight, generator)
    first, generator = begin(), torch.Generator().manual_seed(3)
    refine_for(range(1, middle), *first, generator)
    second = BudgetStrategy(**STEPS, max_gaussians=99)
    second.load_state_dict(first[2].state_dict())
    refine_for(range(middle, 46), *first[:2], second, generator)
    assert same(straight[0].state_dict(), first[0].state_dict())


def test_settings_scale_with_the_run():
    short = BudgetStrategy(refine_start_iter=7).resolve(3_000)
    assert (short.refine_start_iter, short.refine_stop_iter, short.refine_every) == (7, 1_500, 100)
    with pytest.raises(ValueError, match=r"call resolve\(iterations\)"):
        BudgetStrategy().needs_grad2d(1)


BAD_SETTINGS = {
    "limit": (dict(max_gaussians=1), "max_gaussians: expected at least the 2 Gaussians .* found 1; raise it"),
    "no limit": (dict(max_gaussians=None), "max_gaussians: .* found none; give --max-gaussians"),
    "refine": (dict(refine_every=0), "refine_every: .* found 0; raise --budget.refine-every"),
    "opacity": (dict(prune_opa=0.5), "prune_opa: expected .* found 0.5; change --budget.prune-opa"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_work(case):
    options, message = BAD_SETTINGS[case]
    with pytest.raises(InputError, match=message):
        BudgetStrategy(**ONCE | dict(max_gaussians=9) | options).check(rows_of((SMALL, 0.0), (SMALL, 0.0)))


def test_the_state_of_another_strategy_is_refused():
    with pytest.raises(ValueError, match="BudgetStrategy: expected grad2d, count, radii, found score"):
        BudgetStrategy(**ONCE).load_state_dict({"score": torch.zeros(1)})
