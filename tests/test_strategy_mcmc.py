"""MCMC: the published formulas in float64, gsplat's relocation row for row, what frozen and locked mean."""

import math

import pytest
import torch
from optimizing import gaussian_groups, same, train
from refining import give_gradients, random_model

import gsopt
from gsopt.errors import InputError
from gsopt.geometry import quat_scale_to_covar
from gsopt.groups import GroupSpec
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.strategy import MCMCStrategy, Refinement, mcmc
from gsopt.surgery import per_row_state

EVERY = dict(refine_start_iter=0, refine_stop_iter=1000, refine_every=1)  # refine after each step
STILL = EVERY | dict(noise_lr=0.0)


def rows_of(opacities: list[float]) -> GaussianModel:
    """One Gaussian for each opacity, told apart by x."""
    model = GaussianModel(len(opacities), sh_degree=1)
    with torch.no_grad():
        model.xyz[:, 0] = torch.arange(len(opacities))
        model.scaling.fill_(math.log(0.05))
        model.opacity[:, 0] = torch.tensor(opacities).logit()
    return model


def refine(model, optimizer=None, seed=0, **options) -> Refinement:
    strategy = MCMCStrategy(**STILL | options)
    return strategy.refine(model, optimizer, mcmc.NOISE_EVERY, torch.Generator().manual_seed(seed))


# ---------------------------------------- the formulas


def equation_9(opacity: float, count: int) -> tuple[float, float]:
    """New opacity, and factor on the scales, as published: a double sum."""
    new = 1 - (1 - opacity) ** (1 / count)
    total = math.fsum(
        math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1)
        for i in range(1, count + 1)
        for k in range(i)
    )
    return new, opacity / total


@pytest.mark.parametrize("count", [1, 2, 3, 10, 51])
def test_shares_are_those_of_equation_9(count):
    opacities = torch.tensor([1e-4, 0.005, 0.1, 0.5, 0.9, 0.99, 0.9999], dtype=torch.float64)
    new, factor = mcmc.shares(opacities, torch.full((7,), count))
    expected = torch.tensor([equation_9(o, count) for o in opacities.tolist()], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([new, factor], dim=1), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("opacity", "count"), [(0.05, 2), (0.5, 2), (0.5, 7), (0.95, 3), (0.999, 51)])
def test_shares_look_like_the_one(opacity, count):
    """What shows of equal Gaussians behind each other, 1 - (1 - o g)^n: at the centre, and along a line."""
    new, factor = (t.item() for t in mcmc.shares(torch.tensor([opacity]), torch.tensor([count])))
    assert 1 - (1 - new) ** count == pytest.approx(opacity, rel=1e-6)
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    one = opacity * torch.exp(-x.square() / 2)
    many = 1 - (1 - new * torch.exp(-(x / factor).square() / 2)) ** count
    assert many.sum().item() == pytest.approx(one.sum().item(), rel=1e-6)


def test_more_shares_than_the_table_has_count_as_51_and_full_opacity_is_finite():
    assert torch.equal(
        torch.stack(mcmc.shares(torch.tensor([0.5]), torch.tensor([60]))),
        torch.stack(mcmc.shares(torch.tensor([0.5]), torch.tensor([51]))),
    )
    for values in mcmc.shares(torch.ones(51), torch.arange(1, 52)):
        assert ((values > 0) & values.isfinite()).all()


def test_noise_is_that_of_equation_8():
    """xyz += rate * noise_lr * gate(opacity) * covariance @ draw, in float64; scales in scene extents.

    The noise of four steps at once is twice as large.
    """
    model = random_model(200, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.opacity.copy_(torch.linspace(0.0005, 0.099, 200).logit()[:, None])
    optimizer = build_optimizer("adam", gaussian_groups(model, xyz=GroupSpec(2e-4)))
    before = model.xyz.detach().double()
    strategy = MCMCStrategy(**EVERY | dict(refine_every=10), scene_scale=2.0)
    for step in range(1, 5):
        assert torch.equal(model.xyz, before.float())
        strategy.refine(model, optimizer, step, torch.Generator().manual_seed(5))

    draws = 2 * torch.randn(200, 3, generator=torch.Generator().manual_seed(5)).double()
    opacities = model.opacities.detach().double()
    gate = 1 / (1 + torch.exp(-100 * ((1 - opacities) - 0.995)))
    covariance = quat_scale_to_covar(model.quats.detach().double(), model.scales.detach().double() / 2)
    noise = torch.einsum("nij,nj->ni", covariance, draws * gate[:, None] * 2e-4 * 5e5)
    assert noise.abs().max() > 1e-3
    torch.testing.assert_close(model.xyz.detach().double() - before, noise, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "how",
    ["no optimizer", "xyz frozen", "xyz excluded", "noise_lr 0", "rate 0", "all opaque"],
)
def test_where_there_is_no_noise(how):
    model = rows_of([0.9, 0.9] if how == "all opaque" else [0.1, 0.02])
    spec = {"rate 0": GroupSpec(0.0), "xyz frozen": GroupSpec(1.0, frozen=True)}.get(how, GroupSpec(1.0))
    spec = GroupSpec(1.0, optimize=False) if how == "xyz excluded" else spec
    optimizer = build_optimizer("adam", gaussian_groups(model, xyz=spec))
    before = model.xyz.detach().clone()
    strategy = MCMCStrategy(**EVERY | dict(noise_lr=0.0 if how == "noise_lr 0" else 5e5))
    generator = torch.Generator().manual_seed(0)
    strategy.refine(model, None if how == "no optimizer" else optimizer, mcmc.NOISE_EVERY, generator)
    assert torch.equal(model.xyz, before)


def test_terms_of_the_loss():
    model = rows_of([0.2, 0.6])
    terms = MCMCStrategy(**EVERY, scene_scale=5.0).regularization(model)
    assert terms["opacity_reg"].item() == pytest.approx(0.01 * 0.4)
    assert terms["scale_reg"].item() == pytest.approx(0.01 * 0.05 / 5)
    model.opacity.requires_grad_(False)
    assert set(MCMCStrategy(**EVERY).regularization(model)) == {"scale_reg"}
    assert set(MCMCStrategy(**EVERY, scale_reg=0.0).regularization(model)) == set()


# ---------------------------------------- draws


def test_draws_follow_the_weights():
    weights = torch.tensor([0.0, 0.5, 0.25, 0.0, 0.25, 0.0])
    rows = mcmc.draw(weights, 40_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(rows, minlength=6) / 40_000
    torch.testing.assert_close(shares, weights, atol=0.01, rtol=0)
    assert shares[[0, 3, 5]].tolist() == [0, 0, 0]
    assert torch.equal(rows, mcmc.draw(weights, 40_000, torch.Generator().manual_seed(0)))
    assert mcmc.draw(torch.tensor([0.0, 1e-20]), 3, torch.Generator()).tolist() == [1, 1, 1]
    assert mcmc.draw(weights, 0, torch.Generator()).tolist() == []


# ---------------------------------------- relocation and addition


def theirs(model: GaussianModel, first: torch.Tensor, second: torch.Tensor, monkeypatch, limit: int) -> dict:
    """What `gsplat.MCMCStrategy` makes of the model, with these draws of live and of all Gaussians.

    Its kernel needs CUDA: here the double sum of equation 9 stands in for it.
    """
    gsplat = pytest.importorskip("gsplat", reason="the parity test needs the extra cuda")
    from gsplat.strategy import ops

    def relocation(opacities, scales, ratios, binoms):
        found = [equation_9(o, n) for o, n in zip(opacities.tolist(), ratios.tolist(), strict=True)]
        new, factor = torch.tensor(found, dtype=torch.float64).T
        return new.float(), (factor[:, None] * scales).float()

    draws = iter([first, second])
    monkeypatch.setattr(ops, "compute_relocation", relocation)
    monkeypatch.setattr(ops, "_multinomial_sample", lambda weights, n, replacement: next(draws)[:n])
    monkeypatch.setattr("gsplat.strategy.mcmc.inject_noise_to_position", lambda **_: None)
    names = {
        **{"means": "xyz", "scales": "scaling", "quats": "rotation", "opacities": "opacity"},
        **{"sh0": "feature_dc", "shN": "feature_rest"},
    }
    params = {
        name: torch.nn.Parameter(getattr(model, ours).detach().clone().squeeze(1) if name == "opacities"
        else getattr(model, ours).detach().clone())
        for name, ours in names.items()
    }  # fmt: skip
    optimizers = {name: torch.optim.Adam([parameter], lr=0.0) for name, parameter in params.items()}
    strategy = gsplat.MCMCStrategy(refine_start_iter=0, refine_every=1, cap_max=limit)
    strategy.step_post_backward(params, optimizers, strategy.initialize_state(), 1, {}, lr=0.0)
    return {
        ours: params[name].detach().reshape(-1, *getattr(model, ours).shape[1:])
        for name, ours in names.items()
    }


@pytest.mark.parametrize("limit", [400, 310, 300, 250])
def test_relocated_and_added_as_gsplat_does(limit, monkeypatch):
    """The same values; relocated rows are ours at the end, gsplat's in the places of the dead."""
    model = random_model(300, torch.Generator().manual_seed(1))
    dead = model.opacities <= 0.005
    kept, count = int((~dead).sum()), int(dead.sum())
    order = torch.cat([torch.nonzero(~dead).flatten(), torch.nonzero(dead).flatten()])  # ours -> gsplat's
    generator = torch.Generator().manual_seed(2)
    first = torch.randint(kept // 4, (count,), generator=generator)  # of a few, so that many share
    second = torch.randint(300, (15,), generator=generator)
    added = max(0, min(15, limit - 300))
    expected = theirs(model, first, order[second], monkeypatch, limit)

    draws = iter([first, second])
    monkeypatch.setattr(mcmc, "draw", lambda weights, n, generator: next(draws)[:n])
    done = refine(model, max_gaussians=limit, spread=0.0)
    assert count > 10
    assert done == Refinement(relocated=count, added=added)
    places = torch.cat([order, torch.arange(300, 300 + added)])
    for name in ATTRIBUTES:
        torch.testing.assert_close(
            model.get_parameter(name).detach(), expected[name][places], rtol=1e-5, atol=1e-6
        )


def test_moments_are_zero_at_both_ends_of_a_relocation_and_stay_at_a_source_of_new_ones(monkeypatch):
    """gsplat keeps the dead one's moments; an added Gaussian's source is a kept row that changes a little."""
    model = rows_of([0.5, 0.4, 0.001] + [0.3] * 37)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    train(optimizer, 3)
    draws = iter([torch.tensor([0]), torch.tensor([1, 1])])
    monkeypatch.setattr(mcmc, "draw", lambda weights, n, generator: next(draws))
    before = {name: optimizer.state[model.get_parameter(name)]["exp_avg"].clone() for name in ATTRIBUTES}
    with torch.no_grad():
        model.opacity.copy_(torch.tensor([0.5, 0.4, 0.001] + [0.3] * 37).logit()[:, None])
    assert refine(model, optimizer) == Refinement(relocated=1, added=2)
    for name in ATTRIBUTES:
        moments = per_row_state(optimizer, model.get_parameter(name))["exp_avg"]
        assert (moments[39:] == 0).all()  # one relocated, two added
        assert (moments[0] == 0).all()  # where it went
        if name in ("opacity", "scaling"):  # overwritten
            assert (moments[1] == 0).all()
        else:
            assert torch.equal(moments[1], before[name][1])
        assert torch.equal(moments[2:39], before[name][3:])


CALENDAR = {  # settings: steps of 1..12 in which Gaussians are added
    "every": ({}, list(range(1, 13))),
    "every third": (dict(refine_every=3), [3, 6, 9, 12]),
    "start": (dict(refine_start_iter=9), [10, 11, 12]),
    "stop": (dict(refine_stop_iter=3), [1, 2]),
}


@pytest.mark.parametrize("case", CALENDAR)
def test_calendar(case):
    changes, expected = CALENDAR[case]
    strategy, model = MCMCStrategy(**STILL | changes), rows_of([0.5] * 40)
    done = {step: strategy.refine(model, None, step, torch.Generator()) for step in range(1, 13)}
    assert [step for step, found in done.items() if found.added] == expected
    assert done[expected[0]].added == 2  # 5% of 40
    assert model.num_gaussians == 40 + sum(found.added for found in done.values())


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_copies_begin_at_places_drawn_from_their_gaussian(spread):
    """In one place they would have equal gradients and moments, and stay together."""
    model = rows_of([0.001] * 1000 + [0.9])
    with torch.no_grad():
        model.rotation[-1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        model.scaling[-1] = torch.tensor([1.0, 2.0, 3.0]).log()
    assert refine(model, spread=spread) == Refinement(relocated=1000, added=50)
    copies = model.xyz.detach()[1:] - model.xyz.detach()[0]
    scales = model.scales.detach()[:1]  # what is shared is a little smaller
    covariance = quat_scale_to_covar(torch.nn.functional.normalize(model.rotation.detach()[:1]), scales)[0]
    found = copies.T @ copies / len(copies)
    torch.testing.assert_close(found, spread**2 * covariance, rtol=0.2, atol=0.1 * spread * covariance.max())
    assert torch.equal(copies, torch.zeros_like(copies)) == (spread == 0)


def test_what_is_made_of_points_begins_as_opaque_as_it_says():
    model = rows_of([0.1, 0.2, 0.3])
    gsopt.lock(model, torch.tensor([1]))
    MCMCStrategy(**STILL, init_opacity=0.7).prepare(model)
    assert model.opacities.tolist() == pytest.approx([0.7, 0.2, 0.7])
    model.opacity.requires_grad_(False)
    MCMCStrategy(**STILL).prepare(model)
    assert model.opacities.tolist() == pytest.approx([0.7, 0.2, 0.7])


@pytest.mark.parametrize("limit", [100, 137, None])
def test_growth_ends_at_the_limit(limit):
    strategy = MCMCStrategy(**STILL, max_gaussians=limit)
    model, counts = rows_of([0.5] * 100), []
    for step in range(1, 12):
        strategy.refine(model, None, step, torch.Generator().manual_seed(step))
        counts.append(model.num_gaussians)
    assert counts[0] == min(105, limit or 105)
    assert counts[-1] == (limit or 165)  # 5% of whole numbers, rounded down


def test_the_limit_by_default_is_one_for_65_training_pixels():
    model = rows_of([0.5] * 100)
    assert refine(model, training_pixels=6_694).added == 2
    assert refine(model, training_pixels=6_000).added == 0  # it has more: they stay
    assert refine(model, training_pixels=6_000, max_gaussians=103).added == 1


def test_settings_scale_with_the_run():
    assert MCMCStrategy().resolve(30_000) == MCMCStrategy(
        refine_start_iter=500, refine_stop_iter=25_000, refine_every=100, growth=1.05
    )
    short = MCMCStrategy(refine_start_iter=7).resolve(15_000)
    assert (short.refine_start_iter, short.refine_stop_iter, short.refine_every) == (7, 12_500, 100)
    assert short.growth == pytest.approx(1.05**2)  # as much in half as many refinements
    assert MCMCStrategy().resolve(3_000).growth == pytest.approx(1.05**5)
    assert MCMCStrategy(growth=1.1).resolve(3_000).growth == 1.1
    assert MCMCStrategy(refine_every=100).resolve(60_000).growth == 1.05
    with pytest.raises(ValueError, match=r"call resolve\(iterations\)"):
        MCMCStrategy().refine(rows_of([0.5]), None, 1, torch.Generator())


# ---------------------------------------- frozen and locked

FROZEN = {  # frozen attribute: what happens to 40 Gaussians of which one is dead, and whether shares are made
    "xyz": (Refinement(added=2), {"opacity", "scaling"}),
    "scaling": (Refinement(added=2), {"opacity"}),
    "opacity": (Refinement(added=2), set()),
    "rotation": (Refinement(relocated=1, added=2), {"opacity", "scaling"}),
    "feature_dc": (Refinement(relocated=1, added=2), {"opacity", "scaling"}),
}


@pytest.mark.parametrize("how", ["frozen", "excluded"])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_attributes_are_copied_and_never_changed(name, how):
    expected, shared = FROZEN[name]
    model = rows_of([0.001] + [0.5] * 39)
    model.origin = torch.nn.Parameter(torch.arange(40.0)[:, None], requires_grad=False)
    spec = GroupSpec(0.1, frozen=how == "frozen", optimize=how != "excluded")
    optimizer = build_optimizer("adam", gaussian_groups(model, **{name: spec}))
    before = {key: model.get_parameter(key).detach().clone() for key in ATTRIBUTES}
    assert refine(model, optimizer, noise_lr=5e5) == expected
    origin = model.origin[:, 0].long()
    assert torch.equal(model.get_parameter(name), before[name][origin])
    assert not model.get_parameter(name).requires_grad
    changed = {
        key for key in ("opacity", "scaling") if not torch.equal(getattr(model, key), before[key][origin])
    }
    assert changed == shared


def test_locked_gaussians_are_neither_moved_nor_copied():
    model = rows_of([0.001] * 20 + [0.9] * 10 + [0.001] * 10)
    optimizer = build_optimizer("adam", gaussian_groups(model, xyz=GroupSpec(1.0)))
    gsopt.lock(model, torch.arange(30))
    before = {key: model.get_parameter(key).detach().clone() for key in ATTRIBUTES}
    assert refine(model, optimizer) == Refinement()  # no live one that is not locked
    with torch.no_grad():
        model.opacity[35:] = 1.0
    assert refine(model, optimizer, noise_lr=5e5) == Refinement(relocated=5, added=2)
    assert model.locked.tolist() == [True] * 30 + [False] * 12
    assert (model.xyz[30:, 0] > 32).all()
    for key in ATTRIBUTES:
        assert torch.equal(model.get_parameter(key)[:30], before[key][:30])


# ---------------------------------------- the same bits


def test_the_same_bits_with_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            model = random_model(40_001, generator)
            optimizer = build_optimizer("adam", gaussian_groups(model))
            strategy = MCMCStrategy(**EVERY)
            for step in range(1, 5):
                give_gradients(model, step)
                optimizer.step()
                strategy.refine(model, optimizer, step, generator)
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    assert len(results[0]["xyz"]) > 40_001
    assert same(*results)


BAD_SETTINGS = {
    "limit": (dict(max_gaussians=1), "max_gaussians: expected at least the 2 Gaussians .* found 1; raise it"),
    "refine": (dict(refine_every=0), "refine_every: .* found 0; raise --mcmc.refine-every"),
    "opacity": (dict(min_opacity=0.0), "min_opacity: expected .* found 0.0; change --mcmc.min-opacity"),
    "first opacity": (dict(init_opacity=1.0), "init_opacity: .* 0 and 1, found 1.0; change --mcmc.init-"),
    "growth": (dict(growth=0.9), "growth: expected 1 or more, found 0.9; raise --mcmc.growth"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_work(case):
    options, message = BAD_SETTINGS[case]
    with pytest.raises(InputError, match=message):
        MCMCStrategy(**EVERY | options).check(rows_of([0.5, 0.5]))
