"""Rates, betas and eps that fit several views a step: Adam's square-root rule."""

import math

import pytest
import torch

from gsopt import build_groups, build_optimizer, build_scheduler, gaussian_specs, scale_for_batch
from gsopt.groups import GroupSpec
from gsopt.model import GaussianModel

SPECS = gaussian_specs(extent=2.0, iterations=100) | {
    "opacity": GroupSpec(lr=0.1, weight_decay=0.01, options={"betas": (0.0, 0.5), "eps": 1e-8}),
    "scaling": GroupSpec(lr=0.2, frozen=True),
}


def groups_of(optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {group["name"]: group for group in optimizer.param_groups}


@pytest.mark.parametrize("views", [1, 2, 9, 10, 11, 64, 1000])
def test_the_square_root_rule(views):
    model, root = GaussianModel(2), math.sqrt(views)
    optimizer = torch.optim.Adam(build_groups(model, SPECS), lr=0.0, eps=1e-15)
    specs = scale_for_batch(optimizer, SPECS, views)
    scheduler = build_scheduler(optimizer, specs)
    groups = groups_of(optimizer)
    for name, spec in SPECS.items():
        assert groups[name]["lr"] == pytest.approx(spec.lr * root)
        assert groups[name]["weight_decay"] == spec.weight_decay
        assert specs[name].lr == pytest.approx(spec.lr * root)
    assert groups["xyz"]["betas"] == pytest.approx((0.9**views, 0.999**views))
    assert groups["opacity"]["betas"] == pytest.approx((0.0, 0.5**views))
    assert all(0 <= beta < 1 for group in groups.values() for beta in group["betas"])
    assert groups["xyz"]["eps"] == pytest.approx(1e-15 / root, abs=0)
    assert groups["opacity"]["eps"] == pytest.approx(1e-8 / root, abs=0)
    scheduler.load_state_dict({"step": 100})
    assert groups["xyz"]["lr"] == pytest.approx(0.01 * SPECS["xyz"].lr * root)  # the schedule's end


def test_one_view_changes_nothing():
    optimizer = torch.optim.Adam(build_groups(GaussianModel(2), SPECS), lr=0.0, eps=1e-15)
    before = [dict(group) for group in optimizer.param_groups]
    assert scale_for_batch(optimizer, SPECS, 1) == SPECS
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == [
        {k: v for k, v in group.items() if k != "params"} for group in before
    ]


@pytest.mark.parametrize("views", [2, 5, 9, 10, 11, 64])
def test_betas_of_gsplat(views):
    """Its simple_trainer has 1 - views (1 - beta): the first order of ours, no beta at all from 10 on."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    scale_for_batch(optimizer, {}, views)
    for ours, beta in zip(optimizer.param_groups[0]["betas"], (0.9, 0.999), strict=True):
        theirs = 1 - views * (1 - beta)
        assert 0 <= ours - theirs <= (views * (1 - beta)) ** 2 / 2  # what the first order leaves out
        assert 0 < ours < 1


OPTIMIZERS = {  # name, its arguments: betas and eps for 4 views, None where it has none
    "adamw": ({"eps": 1e-6, "betas": (0.5, 0.25)}, (0.5**4, 0.25**4), 5e-7),
    "nadam": ({}, (0.9**4, 0.999**4), 0.5e-8),
    "sgd": ({"momentum": 0.9}, None, None),
    "rmsprop": ({}, None, 1e-8),  # only the rate
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers(name, native):
    args, betas, eps = OPTIMIZERS[name]
    specs = gaussian_specs(extent=1.0, iterations=10)
    optimizer = build_optimizer(name, build_groups(GaussianModel(2), specs), native=native, **args)
    scale_for_batch(optimizer, specs, 4)
    for group_name, group in groups_of(optimizer).items():
        assert group["lr"] == pytest.approx(2 * specs[group_name].lr)
        assert group.get("betas") == (betas and pytest.approx(betas))
        assert group.get("eps") == (eps and pytest.approx(eps, abs=0))
        assert group.get("momentum") == args.get("momentum", group.get("momentum"))


@pytest.mark.parametrize("views", [0, -1, 2.0, True, "4"])
def test_what_is_no_number_of_views(views):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="views: expected a whole number of 1 or more, found"):
        scale_for_batch(optimizer, {}, views)
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("views", [4, 16])
def test_noise_takes_parameters_as_far_as_with_single_views(views):
    """What the rule is for: 960 views of pure noise, one or several a step, spread 4,000 values alike."""

    def spread(views: int, scaled: bool) -> float:
        generator = torch.Generator().manual_seed(views)
        parameter = torch.nn.Parameter(torch.zeros(4000))
        optimizer = build_optimizer("adam", build_groups({"a": parameter}, {"a": GroupSpec(lr=0.01)}))
        if scaled:
            scale_for_batch(optimizer, {}, views)
        for _ in range(960 // views):
            parameter.grad = torch.randn(views, 4000, generator=generator).mean(0)
            optimizer.step()
        return parameter.std().item()

    alone = spread(1, False)
    assert spread(views, True) == pytest.approx(alone, rel=0.1)
    assert spread(views, False) < 0.7 * alone
