"""Builders for tests of optimizers: groups of a small model, steps with random gradients."""

import torch

from gsopt.groups import GroupSpec, build_groups, gaussian_specs
from gsopt.model import GaussianModel


def gaussian_groups(model: GaussianModel, **changes: GroupSpec) -> list[dict]:
    """Groups of the model at the original rates, but for the specs in `changes`."""
    return build_groups(model, gaussian_specs(1.0, 1000) | changes)


def fill_gradients(optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """A random gradient for each parameter; drawn for frozen ones too, so that the others' stay the same."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if parameter.requires_grad else None


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Steps with random gradients that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        fill_gradients(optimizer, generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two dicts of tensors have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def mask(*rows: int, count: int = 5) -> torch.Tensor:
    """A mask of `count` rows in which these are set."""
    return torch.isin(torch.arange(count), torch.tensor(rows))


def tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters and all their state, in order."""
    return [
        tensor
        for group in optimizer.param_groups
        for p in group["params"]
        for tensor in (p.detach(), *(optimizer.state[p][key] for key in sorted(optimizer.state[p])))
    ]
