"""Rates, betas and eps that fit several views a step: Adam's square-root rule."""

import math

import pytest
import torch

from gsopt import InputError, build_groups, build_optimizer, gaussian_specs, scale_for_batch
from gsopt.groups import GroupSpec
from gsopt.model import GaussianModel


@pytest.mark.parametrize("views", [1, 2, 10, 11, 64, 1000])
def test_the_square_root_rule(views):
    specs = gaussian_specs(extent=2.0, iterations=100) | {
        "opacity": GroupSpec(lr=0.1, weight_decay=0.01, options={"betas": (0.0, 0.5), "eps": 1e-8})
    }
    scaled = scale_for_batch(specs, views)
    assert list(scaled) == list(specs)
    root = math.sqrt(views)
    for name, spec in scaled.items():
        assert spec.lr == pytest.approx(specs[name].lr * root)
        assert (spec.schedule, spec.weight_decay) == (specs[name].schedule, specs[name].weight_decay)
    groups = {group["name"]: group for group in _adam(scaled).param_groups}
    assert groups["xyz"]["betas"] == pytest.approx((0.9**views, 0.999**views))
    assert groups["opacity"]["betas"] == pytest.approx((0.0, 0.5**views))
    assert all(0 <= beta < 1 for group in groups.values() for beta in group["betas"])
    assert groups["xyz"]["eps"] == pytest.approx(1e-15 / root, abs=0)
    assert groups["opacity"]["eps"] == pytest.approx(1e-8 / root, abs=0)


def _adam(specs: dict[str, GroupSpec]) -> torch.optim.Adam:
    return torch.optim.Adam(build_groups(GaussianModel(2), specs), lr=0.0, eps=1e-15)


def test_one_view_changes_nothing():
    specs = gaussian_specs(extent=1.0, iterations=10)
    assert scale_for_batch(specs, 1) == specs


def test_few_views_are_as_in_gsplat():
    """gsplat's simple_trainer: 1 - BS (1 - beta), the first order of ours; at 11 views it is negative."""
    scaled = scale_for_batch({"a": GroupSpec(lr=1.0)}, 2)["a"].options["betas"]
    assert scaled == pytest.approx((1 - 2 * 0.1, 1 - 2 * 0.001), abs=0.011)
    assert 1 - 11 * (1 - 0.9) < 0 < scale_for_batch({"a": GroupSpec(lr=1.0)}, 11)["a"].options["betas"][0]


OPTIMIZERS = {  # name, its arguments: betas and eps of 4 views, None where it has no such option
    "adamw": ({"eps": 1e-6, "betas": (0.5, 0.25)}, (0.5**4, 0.25**4), 5e-7),
    "nadam": ({}, (0.9**4, 0.999**4), 0.5e-8),
    "sgd": ({}, None, None),
    "rmsprop": ({}, None, 1e-8),  # only the rate
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers(name):
    args, betas, eps = OPTIMIZERS[name]
    scaled = scale_for_batch(gaussian_specs(extent=1.0, iterations=10), 4, name, **args)
    optimizer = build_optimizer(name, build_groups(GaussianModel(2), scaled))
    for group in optimizer.param_groups:
        assert group.get("betas") == (betas and pytest.approx(betas))
        assert group.get("eps") == (eps and pytest.approx(eps, abs=0))
    assert optimizer.param_groups[-1]["lr"] > 0


@pytest.mark.parametrize("views", [0, -1, 2.0, True, "4"])
def test_views_that_are_no_number_of_views(views):
    with pytest.raises(ValueError, match="views: expected a whole number of 1 or more, found"):
        scale_for_batch({"a": GroupSpec(lr=1.0)}, views)
    with pytest.raises(InputError, match="no such optimizer"):
        scale_for_batch({"a": GroupSpec(lr=1.0)}, 4, "adams")


@pytest.mark.parametrize("views", [4, 16])
def test_noise_takes_parameters_as_far_as_with_single_views(views):
    """What the rule is for: 960 views of pure noise, one or several a step, spread 4,000 values alike."""

    def spread(views: int, specs: dict[str, GroupSpec]) -> float:
        generator = torch.Generator().manual_seed(views)
        parameter = torch.nn.Parameter(torch.zeros(4000))
        optimizer = torch.optim.Adam(build_groups({"a": parameter}, specs), lr=0.0, eps=1e-15)
        for _ in range(960 // views):
            parameter.grad = torch.randn(views, 4000, generator=generator).mean(0)
            optimizer.step()
        return parameter.std().item()

    specs = {"a": GroupSpec(lr=0.01)}
    alone = spread(1, specs)
    assert spread(views, scale_for_batch(specs, views)) == pytest.approx(alone, rel=0.1)
    assert spread(views, specs) < 0.7 * alone  # without the rule
