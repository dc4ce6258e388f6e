"""What strategies add up: the kernel's pass against its twin in plain PyTorch."""

import pytest
import torch

from gsopt.native import get_num_threads, set_num_threads
from gsopt.strategy.statistics import add_gradients, add_gradients_reference


def random_call(count: int, cameras: int, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    radii = torch.randint(-1, 3, (cameras, count, 2), generator=generator, dtype=torch.int32)
    gradients = torch.randn(cameras, count, 2, generator=generator)
    return torch.rand(count, generator=generator), torch.full((count,), 3.0), radii, gradients, (200.0, 150.0)


@pytest.mark.parametrize(("count", "cameras"), [(0, 1), (1, 1), (17, 1), (3_000, 1), (3_000, 3)])
def test_the_kernel_does_what_its_twin_does(count, cameras):
    norms, counts, *seen = random_call(count, cameras)
    expected = norms.double(), counts.double()
    add_gradients_reference(*expected, *seen)
    add_gradients(norms, counts, *seen)
    torch.testing.assert_close(norms.double(), expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(counts.double(), expected[1])


def test_only_what_both_radii_show_counts():
    norms, counts = torch.zeros(3), torch.zeros(3)
    radii = torch.tensor([[[2, 1], [2, 0], [0, 1]]], dtype=torch.int32)
    add_gradients(norms, counts, radii, torch.tensor([3.0, 4.0]).expand(1, 3, 2).contiguous(), (1.0, 1.0))
    assert norms.tolist() == [5.0, 0.0, 0.0]
    assert counts.tolist() == [1.0, 0.0, 0.0]


def test_bits_do_not_depend_on_the_number_of_threads():
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            norms, counts, *seen = random_call(5_000, 2)
            add_gradients(norms, counts, *seen)
            found.append(norms)
    finally:
        set_num_threads(before)
    assert all(torch.equal(norms, found[0]) for norms in found)


def test_tensors_that_the_kernel_cannot_read_go_the_other_way():
    norms, counts, radii, gradients, scale = random_call(100, 1)
    spread = torch.stack([gradients, gradients], dim=-1)[..., 0]  # not contiguous
    found = norms.clone(), counts.clone()
    add_gradients(*found, radii, spread, scale)
    add_gradients(norms, counts, radii, gradients, scale)
    torch.testing.assert_close(found, (norms, counts))
