"""Growth does not run away: 30,000 Gaussians of every kind, and never a row more than the limit."""

from dataclasses import replace

import pytest
import torch
from optimizing import gaussian_groups
from refining import give_gradients, random_info, random_model

import gsopt
from gsopt.errors import InputError
from gsopt.optim import build_optimizer
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy
from gsopt.strategy.growth import default_limit
from gsopt.surgery import per_row_state

ROWS = 30_000
WHEN = dict(refine_start_iter=1, refine_stop_iter=14, refine_every=2)
STRATEGIES = {
    "default": DefaultStrategy(**WHEN, reset_every=8, grow_grad2d=1e-5),
    "default, by size on the screen": DefaultStrategy(**WHEN, reset_every=8, refine_scale2d_stop_iter=14),
    "mcmc": MCMCStrategy(**WHEN, growth=1.3),
    "budget": BudgetStrategy(**WHEN),
}


def counts(strategy, locked: int = 0) -> tuple[list[int], int]:
    """Numbers of Gaussians after each of 15 steps, and how many were ever wanted beyond the first."""
    generator = torch.Generator().manual_seed(0)
    model = random_model(ROWS, generator)
    if locked:
        gsopt.lock(model, torch.arange(locked))
    optimizer = build_optimizer("adam", gaussian_groups(model))
    found, grown = [], 0
    for step in range(1, 16):
        give_gradients(model, step)
        strategy.observe(model, random_info(model.num_gaussians, 1, generator), step)
        optimizer.step()
        done = strategy.refine(model, optimizer, step, generator)
        grown += done.cloned + done.split + done.added
        found.append(model.num_gaussians)
        assert all(len(parameter) == found[-1] for parameter in model.parameters())
        assert len(per_row_state(optimizer, model.xyz)["exp_avg"]) == found[-1]
    return found, grown


@pytest.mark.parametrize("locked", [0, 5_000])
@pytest.mark.parametrize("limit", [ROWS, ROWS + 1, ROWS + 4_321])
@pytest.mark.parametrize("name", STRATEGIES)
def test_no_row_more_than_the_limit(name, limit, locked):
    strategy = replace(STRATEGIES[name], max_gaussians=limit).resolve(30)
    found, grown = counts(strategy, locked)
    assert max(found) <= limit
    assert grown > 0 or limit == ROWS  # it did want to grow
    if limit > ROWS + 1:
        assert max(found) == limit or name.startswith("default")  # which prunes after it has grown


@pytest.mark.parametrize("kind", [MCMCStrategy, BudgetStrategy])
def test_the_limit_by_default_is_so_many_pixels_for_each(kind):
    strategy = kind(training_pixels=650_000)
    assert default_limit(strategy) == 10_000
    assert default_limit(replace(strategy, max_gaussians=77)) == 77
    assert default_limit(replace(strategy, pixels_per_gaussian=10.0)) == 65_000


@pytest.mark.parametrize("kind", [MCMCStrategy, BudgetStrategy])
def test_pixels_of_a_gaussian_are_more_than_none(kind):
    strategy = kind(**WHEN, growth=1.3) if kind is MCMCStrategy else kind(**WHEN, max_gaussians=9)
    with pytest.raises(
        InputError, match=r"pixels_per_gaussian: .* more than 0, found 0; change --\w+.pixels"
    ):
        replace(strategy, pixels_per_gaussian=0.0).check(random_model(3, torch.Generator()))
