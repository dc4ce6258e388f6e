"""Adaptive density control: what becomes of which Gaussian, when, frozen or not."""

import math

import pytest
import torch
from optimizing import gaussian_groups, same, train
from refining import STEPS, give_gradients, random_info, random_model

from gsopt.errors import InputError
from gsopt.geometry import quat_scale_to_covar
from gsopt.groups import GroupSpec
from gsopt.model import GaussianModel
from gsopt.optim import build_optimizer
from gsopt.strategy import DefaultStrategy, NoStrategy, Refinement, Strategy

EXACT = dict(  # every setting in steps, so that nothing scales: refine after each step
    refine_start_iter=0,
    refine_stop_iter=100,
    refine_every=1,
    reset_every=1000,
    refine_scale2d_stop_iter=0,
    pause_refine_after_reset=0,
)


# ---------------------------------------- one refinement, looked at closely

SMALL, LARGE = math.log(0.005), math.log(0.05)  # below and above grow_scale3d of a scene of extent 1
OPAQUE, FAINT = 2.0, -6.0  # logits


def rows_of(*rows: tuple[float, float]) -> GaussianModel:
    """One Gaussian for each pair of (log scale, opacity logit), told apart by x."""
    model = GaussianModel(len(rows), sh_degree=1)
    with torch.no_grad():
        model.xyz[:, 0] = torch.arange(len(rows))
        model.scaling.copy_(torch.tensor([[scale] * 3 for scale, _ in rows]))
        model.opacity.copy_(torch.tensor([[opacity] for _, opacity in rows]))
    return model


def seen(scores: list[float], times: int = 1) -> dict:
    """Info in which the mean gradient of the rows, in NDC, is `scores`."""
    means2d = torch.zeros(1, len(scores), 2, requires_grad=True)
    means2d.grad = torch.zeros(1, len(scores), 2)
    means2d.grad[0, :, 0] = torch.tensor(scores) / 50
    radii = torch.ones(1, len(scores), 2, dtype=torch.int32)
    return {"means2d": means2d, "radii": radii, "width": 100, "height": 100, "n_cameras": 1}


def refine_once(model, scores, optimizer=None, step=1, **options) -> Refinement:
    strategy = DefaultStrategy(**EXACT | options)
    strategy.observe(model, seen(scores), step)
    return strategy.refine(model, optimizer, step, torch.Generator().manual_seed(0))


KINDS = {  # log scale, opacity, score: what happens
    "still": (SMALL, OPAQUE, 1e-4, Refinement()),
    "small": (SMALL, OPAQUE, 3e-4, Refinement(cloned=1)),
    "large": (LARGE, OPAQUE, 3e-4, Refinement(split=1)),
    "faint": (SMALL, FAINT, 1e-4, Refinement(pruned=1)),
    "small and faint: its copy goes too": (SMALL, FAINT, 3e-4, Refinement(cloned=1, pruned=2)),
    "large and faint: both halves go": (LARGE, FAINT, 3e-4, Refinement(split=1, pruned=2)),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_becomes_of_one_gaussian(case):
    scale, opacity, score, expected = KINDS[case]
    model = rows_of((SMALL, OPAQUE), (scale, opacity))
    assert refine_once(model, [0.0, score]) == expected
    assert model.num_gaussians == 2 + expected.cloned + expected.split - expected.pruned
    assert model.xyz[0, 0] == 0


def test_huge_gaussians_go_once_opacities_have_been_reset():
    huge = (math.log(0.2), OPAQUE)
    assert refine_once(rows_of(huge, huge), [0, 0], step=9, reset_every=9).pruned == 0
    assert refine_once(rows_of(huge, huge), [0, 0], step=10, reset_every=9).pruned == 2


def test_a_clone_is_a_copy_and_halves_lie_within_their_gaussian():
    model = rows_of((SMALL, OPAQUE), (LARGE, OPAQUE))
    refine_once(model, [3e-4, 3e-4])
    assert model.num_gaussians == 4
    assert torch.equal(model.xyz[0], model.xyz[1])
    halves = model.xyz[2:]
    assert (halves != torch.tensor([1.0, 0, 0])).all()
    assert ((halves - torch.tensor([1.0, 0, 0])).abs() < 4 * 0.05).all()
    torch.testing.assert_close(model.scales[2:], torch.full((2, 3), 0.05 / 1.6))
    assert torch.equal(model.opacity, torch.full((4, 1), OPAQUE))


def test_halves_spread_like_their_gaussian():
    """Covariance of many halves: R diag(s)² Rᵀ."""
    model = GaussianModel(20_000, sh_degree=0)
    scales, quat = torch.tensor([0.02, 0.05, 0.1]), torch.tensor([0.8, -0.4, 1.0, 0.2])
    with torch.no_grad():
        model.scaling.copy_(scales.log())
        model.rotation.copy_(quat)
        model.opacity.fill_(OPAQUE)
    refine_once(model, [3e-4] * 20_000)
    assert model.num_gaussians == 40_000
    expected = quat_scale_to_covar(quat[None], scales[None])[0]
    torch.testing.assert_close(torch.cov(model.xyz.detach().T), expected, atol=1e-4, rtol=0.05)


def test_revised_opacity_makes_both_halves_together_as_opaque():
    model = rows_of((LARGE, OPAQUE))
    before = model.opacities[0].item()
    refine_once(model, [3e-4], revised_opacity=True)
    first, second = model.opacities.tolist()
    assert 1 - (1 - first) * (1 - second) == pytest.approx(before)


# ---------------------------------------- when

CALENDAR = {  # settings: steps in 1..30 at which rows may change, and at which opacities are reset
    "defaults of STEPS": ({}, [6, 9, 12, 15, 18, 21, 24, 27, 30], [12, 24]),
    "start": (dict(refine_start_iter=9), [12, 15, 18, 21, 24, 27, 30], [12, 24]),
    "stop": (dict(refine_stop_iter=12), [6, 9], []),
    "pause": (dict(pause_refine_after_reset=4), [6, 9, 18, 21, 30], [12, 24]),
}


@pytest.mark.parametrize("case", CALENDAR)
def test_calendar(case):
    changes, grow, reset = CALENDAR[case]
    strategy = DefaultStrategy(**STEPS | changes).resolve(30_000)
    model = rows_of((SMALL, OPAQUE))
    grown, were_reset = [], []
    for step in range(1, 31):
        assert strategy.needs_grad2d(step) == (step < strategy.refine_stop_iter)
        strategy.observe(model, seen([3e-4] * model.num_gaussians), step)
        done = strategy.refine(model, None, step, torch.Generator())
        grown += [step] if done.cloned else []
        were_reset += [step] if done.reset else []
    assert (grown, were_reset) == (grow, reset)


def test_settings_scale_with_the_run_and_explicit_ones_stay():
    short = DefaultStrategy(refine_every=5).resolve(7_000)
    assert (short.refine_start_iter, short.refine_stop_iter, short.reset_every) == (117, 3500, 1000)
    assert (short.refine_every, short.refine_scale2d_stop_iter, short.pause_refine_after_reset) == (5, 0, 0)
    assert short.grow_grad2d == DefaultStrategy().grow_grad2d
    shortest = DefaultStrategy().resolve(500)
    assert (shortest.refine_every, shortest.reset_every) == (100, 1000)  # what no run can shorten
    with pytest.raises(ValueError, match=r"call resolve\(iterations\)"):
        DefaultStrategy().needs_grad2d(1)


# ---------------------------------------- opacity reset


@pytest.mark.parametrize("steps", [0, 3])
def test_a_reset_lowers_opacities_and_forgets_their_moments(steps):
    model = rows_of((SMALL, OPAQUE), (SMALL, -5.0))
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, steps)
    before = model.opacity[1].item()
    assert refine_once(model, [0, 0], optimizer, step=9, reset_every=9, refine_every=100).reset
    assert model.opacities[0].item() == pytest.approx(0.01)
    assert model.opacity[1].item() == before
    if steps:
        assert (optimizer.state[model.opacity]["exp_avg"] == 0).all()
        assert (optimizer.state[model.xyz]["exp_avg"] != 0).all()
    train(optimizer, 1)


# ---------------------------------------- frozen

FROZEN = {  # frozen attributes: what happens to one small and one large Gaussian that both move
    "xyz": Refinement(cloned=1),
    "scaling": Refinement(cloned=1),
    "rotation": Refinement(cloned=1, split=1),
    "feature_dc": Refinement(cloned=1, split=1),
    "opacity": Refinement(cloned=1, split=1),
}


@pytest.mark.parametrize("how", ["frozen", "excluded"])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_attributes_are_copied_and_never_changed(name, how):
    model = rows_of((SMALL, OPAQUE), (LARGE, OPAQUE))
    spec = GroupSpec(0.1, frozen=how == "frozen", optimize=how != "excluded")
    optimizer = build_optimizer("adam", gaussian_groups(model, **{name: spec}))
    before = getattr(model, name).detach().clone()
    done = refine_once(model, [3e-4, 3e-4], optimizer, step=9, reset_every=9, revised_opacity=True)
    assert (done.cloned, done.split) == (FROZEN[name].cloned, FROZEN[name].split)
    assert done.reset == (name != "opacity")
    parents = [0, 0, 1, 1] if done.split else [0, 1, 0]
    assert torch.equal(getattr(model, name), before[parents])
    assert not getattr(model, name).requires_grad


# ---------------------------------------- the limit

LIMITS = {  # most Gaussians, scores of (small, small, large, small): x of those that grow
    "room for all": (8, [3e-4, 4e-4, 5e-4, 6e-4], {0, 1, 2, 3}),
    "for two": (6, [3e-4, 4e-4, 5e-4, 6e-4], {2, 3}),
    "for two, the first of equals": (6, [4e-4, 4e-4, 4e-4, 4e-4], {0, 1}),
    "for none": (4, [3e-4, 4e-4, 5e-4, 6e-4], set()),
    "more room than candidates": (6, [0.0, 0.0, 0.0, 6e-4], {3}),
}


@pytest.mark.parametrize("case", LIMITS)
def test_the_limit_leaves_the_largest_gradients(case):
    limit, scores, expected = LIMITS[case]
    model = rows_of((SMALL, OPAQUE), (SMALL, OPAQUE), (LARGE, OPAQUE), (SMALL, OPAQUE))
    done = refine_once(model, scores, max_gaussians=limit)
    assert done.cloned + done.split == len(expected)
    grown = model.xyz[:, 0].detach().round().tolist()
    assert {x for x in range(4) if grown.count(x) == 2} == expected
    assert model.num_gaussians <= limit


@pytest.mark.parametrize("screen", [{}, dict(refine_scale2d_stop_iter=40, grow_scale2d=0.05)])
def test_growth_never_passes_the_limit(screen):
    """Also where Gaussians small in the scene and large on the screen are both cloned and split."""
    generator = torch.Generator().manual_seed(0)
    model, strategy = random_model(100, generator), DefaultStrategy(**STEPS, **screen, max_gaussians=150)
    strategy = strategy.resolve(30_000)
    counts = []
    for step in range(1, 40):
        strategy.observe(model, random_info(model.num_gaussians, 1, generator), step)
        strategy.refine(model, None, step, generator)
        counts.append(model.num_gaussians)
    assert 149 <= max(counts) <= 150


BAD_SETTINGS = {
    "limit": (dict(max_gaussians=1), "max_gaussians: expected at least the 2 Gaussians .* found 1; raise it"),
    "refine": (dict(refine_every=0), "refine_every: expected 1 or more steps, found 0"),
    "reset": (dict(reset_every=0), "reset_every: expected 1 or more steps, found 0"),
    "opacity": (dict(prune_opa=0.0), "prune_opa: expected an opacity between 0 and 0.5, found 0.0"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_work(case):
    options, message = BAD_SETTINGS[case]
    with pytest.raises(InputError, match=message):
        DefaultStrategy(**EXACT | options).check(rows_of((SMALL, OPAQUE), (SMALL, OPAQUE)))


# ---------------------------------------- going on


def refine_for(steps: range, model, optimizer, strategy, generator) -> None:
    for step in steps:
        info = random_info(model.num_gaussians, 1, torch.Generator().manual_seed(step))
        strategy.observe(model, info, step)
        give_gradients(model, step)
        optimizer.step()
        strategy.refine(model, optimizer, step, generator)


@pytest.mark.parametrize("middle", [5, 6, 12, 14])
def test_a_saved_strategy_goes_on_to_the_same_bits(middle):
    def begin():
        model = random_model(50, torch.Generator().manual_seed(0))
        return (
            model,
            build_optimizer("adam", gaussian_groups(model)),
            DefaultStrategy(**STEPS).resolve(30_000),
        )

    straight, generator = begin(), torch.Generator().manual_seed(3)
    refine_for(range(1, 31), *straight, generator)

    first, generator = begin(), torch.Generator().manual_seed(3)
    refine_for(range(1, middle), *first, generator)
    second = DefaultStrategy(**STEPS).resolve(30_000)
    second.load_state_dict(first[2].state_dict())
    refine_for(range(middle, 31), first[0], first[1], second, generator)
    assert same(straight[0].state_dict(), first[0].state_dict())


def test_the_same_bits_with_any_number_of_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            model = random_model(40_001, generator)
            strategy = DefaultStrategy(**STEPS).resolve(30_000)
            for step in range(1, 7):
                strategy.observe(model, random_info(model.num_gaussians, 1, generator), step)
                strategy.refine(model, None, step, generator)
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    assert len(results[0]["xyz"]) > 40_001
    assert same(*results)


def test_means2d_without_gradient_says_what_to_call():
    info = seen([0.0])
    info["means2d"].grad = None
    with pytest.raises(ValueError, match=r"call retain_grad\(\) before the backward pass"):
        DefaultStrategy(**EXACT).observe(rows_of((SMALL, OPAQUE)), info, 1)


def test_statistics_of_other_rows_are_refused():
    strategy = DefaultStrategy(**EXACT)
    strategy.observe(rows_of((SMALL, OPAQUE)), seen([0.0]), 1)
    with pytest.raises(ValueError, match="expected statistics of 2 Gaussians, found 1"):
        strategy.refine(rows_of((SMALL, OPAQUE), (SMALL, OPAQUE)), None, 1, torch.Generator())
    with pytest.raises(ValueError, match="expected grad2d, count, radii, found score"):
        strategy.load_state_dict({"score": torch.zeros(1)})


# ---------------------------------------- the others


@pytest.mark.parametrize("strategy", [NoStrategy(), Strategy()])
def test_no_strategy_changes_nothing(strategy):
    model = rows_of((SMALL, FAINT))
    strategy = strategy.resolve(100)
    strategy.check(model)
    assert not strategy.needs_grad2d(1)
    strategy.observe(model, {}, 1)
    assert strategy.refine(model, None, 1, torch.Generator()) == Refinement()
    strategy.load_state_dict(strategy.state_dict())
    with pytest.raises(ValueError, match="keeps no state, found count"):
        strategy.load_state_dict({"count": torch.zeros(1)})
