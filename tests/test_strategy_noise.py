"""The noise of MCMC: the kernel's pass against its twin in plain PyTorch, and the twin against matrices."""

import pytest
import torch

from gsopt.geometry import quat_scale_to_covar
from gsopt.native import get_num_threads, set_num_threads
from gsopt.strategy.noise import (
    along_covariance,
    noise_gate,
    perturb,
    perturb_reference,
    rows_below,
    rows_below_reference,
    turned,
)

STRENGTH = 80.0


def random_call(count: int, chosen: int, seed: int = 0) -> list[torch.Tensor]:
    """xyz, rows, draws, opacity, rotation, scaling."""
    generator = torch.Generator().manual_seed(seed)
    xyz, draws = torch.randn(count, 3, generator=generator), torch.randn(chosen, 3, generator=generator)
    rows = torch.randperm(count, generator=generator)[:chosen].sort().values
    opacity = 3 * torch.randn(count, 1, generator=generator) - 3
    rotation = torch.randn(count, 4, generator=generator)
    scaling = torch.randn(count, 3, generator=generator) - 4
    return [xyz, rows, draws, opacity, rotation, scaling]


def in_double(call: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor if tensor.dtype == torch.int64 else tensor.double() for tensor in call]


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, 0), (5, 0), (1, 1), (40, 17), (3_000, 1_234), (9_000, 9_000)]
)
def test_the_kernel_does_what_its_twin_does(count, chosen):
    call = random_call(count, chosen)
    expected = in_double(call)
    perturb_reference(*expected, STRENGTH)
    before = call[0].clone()
    perturb(*call, STRENGTH)
    torch.testing.assert_close(call[0].double(), expected[0], rtol=2e-6, atol=1e-6)
    others = torch.ones(count, dtype=torch.bool)
    others[call[1]] = False
    assert torch.equal(call[0][others], before[others])


@pytest.mark.parametrize("count", [0, 1, 3_001])
@pytest.mark.parametrize("some", [False, True])
def test_rows_are_those_that_the_twin_finds(count, some):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, 1, generator=generator)
    values[::7] = 0.25  # the limit itself is not below
    allowed = torch.rand(count, generator=generator) < 0.5 if some else None
    expected = rows_below_reference(values, 0.25, allowed)
    assert torch.equal(rows_below(values, 0.25, allowed), expected)
    assert torch.equal(rows_below(values.repeat(1, 2)[:, :1], 0.25, allowed), expected)  # not contiguous


@pytest.mark.parametrize("logit", [-200.0, -20.0, 20.0, 200.0])
def test_opacities_of_0_and_1_and_a_rotation_of_0(logit):
    call = random_call(64, 64)
    call[3].fill_(logit)
    call[4][::2] = 0
    expected, before = in_double(call), call[0].clone()
    perturb_reference(*expected, STRENGTH)
    perturb(*call, STRENGTH)
    torch.testing.assert_close(call[0].double(), expected[0], rtol=2e-6, atol=1e-6)
    assert torch.equal(call[0], before) == (logit > 0)  # what is opaque stays


def test_the_twin_is_the_covariance_as_a_matrix():
    xyz, _, draws, _, rotation, scaling = in_double(random_call(50, 50))
    covariance = quat_scale_to_covar(torch.nn.functional.normalize(rotation, dim=-1), scaling.exp())
    expected = torch.einsum("nij,nj->ni", covariance, draws)
    torch.testing.assert_close(along_covariance(rotation, scaling, draws), expected)
    torch.testing.assert_close(turned(rotation, turned(rotation, xyz), -1), xyz)


def test_the_gate_is_that_of_equation_8():
    opacities = torch.tensor([0.0, 0.005, 0.1, 1.0], dtype=torch.float64)
    assert noise_gate(opacities).tolist() == pytest.approx([0.6225, 0.5, 7.485e-5, 0], abs=1e-4, rel=1e-3)


def test_bits_do_not_depend_on_the_number_of_threads():
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            call = random_call(9_001, 8_765)
            perturb(*call, STRENGTH)
            found.append(call[0])
    finally:
        set_num_threads(before)
    assert all(torch.equal(xyz, found[0]) for xyz in found)


def test_tensors_that_the_kernel_cannot_read_go_the_other_way():
    call, spread = random_call(100, 60), random_call(100, 60)
    spread[5] = torch.stack([spread[5], spread[5]], dim=-1)[..., 0]  # not contiguous
    perturb(*call, STRENGTH)
    perturb(*spread, STRENGTH)
    torch.testing.assert_close(call[0], spread[0])
