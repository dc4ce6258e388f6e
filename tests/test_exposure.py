"""Exposure: an affine map of the colours of each view."""

import pytest
import torch

from gsopt.exposure import Exposure
from gsopt.runtime import torch_threads


def image(height: int = 5, width: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_at_first_colours_stay_as_they_are():
    exposure = Exposure(3)
    assert torch.equal(exposure(image(), 2), image())
    assert torch.equal(exposure.matrices, torch.eye(3, 4).repeat(3, 1, 1))


def test_the_map_is_a_row_vector_times_the_matrix_and_an_offset():
    """The convention of `exposure.json` of the original."""
    exposure = Exposure(2, centred=False)
    with torch.no_grad():
        exposure.delta[1] = torch.tensor([[1.0, 5, 0, 0.1], [0, 0, 0, 0.2], [0, 0, -0.5, 0.3]])
    (found,) = exposure(torch.tensor([[[0.1, 0.2, 0.4]]]), 1)
    assert found[0].tolist() == pytest.approx([0.1 * 2 + 0.1, 0.1 * 5 + 0.2 + 0.2, 0.4 * 0.5 + 0.3])


def test_its_gradient_is_right():
    exposure = Exposure(2).double()
    with torch.no_grad():
        exposure.delta.normal_(generator=torch.Generator().manual_seed(1))
    given = image(dtype=torch.float64).requires_grad_()

    def render(picture: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(exposure, {"delta": delta}, (picture, 1))

    assert torch.autograd.gradcheck(render, (given, exposure.delta))


@pytest.mark.parametrize(("centred", "others"), [(True, True), (False, False)])
def test_which_views_a_picture_moves(centred, others):
    """The view it is of; and the others the opposite way, where the mean stays the identity."""
    exposure = Exposure(3, centred)
    exposure(image(), 1).sum().backward()
    first, seen, last = exposure.delta.grad
    assert seen.any()
    assert bool(first.any()) == bool(last.any()) == others
    assert torch.allclose(first + seen + last, torch.zeros(3, 4), atol=1e-5) == centred


def test_the_mean_over_the_views_is_the_identity():
    exposure = Exposure(5)
    with torch.no_grad():
        exposure.delta.normal_(generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(exposure.matrices.mean(0), torch.eye(3, 4))


def test_the_bits_of_its_gradient_do_not_depend_on_the_number_of_threads():
    found = []
    for threads in (1, 2, 3):
        exposure, picture = Exposure(1, centred=False), image(301, 403).requires_grad_()
        with torch_threads(threads):
            (exposure(picture, 0) * image(301, 403)).mean().backward()
        found.append((exposure.delta.grad, picture.grad))
    for delta, picture in found[1:]:
        assert torch.equal(delta, found[0][0])
        assert torch.equal(picture, found[0][1])


def test_gain_and_offset_of_each_photo_are_learnt():
    scene = image(8, 8)
    gains, offsets = torch.tensor([1.0, 0.6, 1.4]), torch.tensor([0.0, 0.1, -0.1])
    photos = [gain * scene + offset for gain, offset in zip(gains, offsets, strict=True)]
    exposure = Exposure(3)
    optimizer = torch.optim.Adam(exposure.parameters(), lr=0.01)
    for step in range(900):
        loss = (exposure(scene, step % 3) - photos[step % 3]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.cat([gains[:, None, None] * torch.eye(3), offsets[:, None, None].expand(3, 3, 1)], dim=2)
    assert loss < 1e-4
    torch.testing.assert_close(exposure.matrices.detach(), expected, rtol=0, atol=0.05)


def test_weight_decay_pulls_to_the_identity():
    exposure = Exposure(1, centred=False)
    with torch.no_grad():
        exposure.delta.fill_(0.5)
    exposure.delta.grad = torch.zeros_like(exposure.delta)
    torch.optim.SGD(exposure.parameters(), lr=0.1, weight_decay=1.0).step()
    assert exposure.matrices[0, 0, 0].item() == pytest.approx(1.45)
    assert exposure.matrices[0, 0, 1].item() == pytest.approx(0.45)


def test_no_views():
    with pytest.raises(ValueError, match="num_views: expected 1 or more, found 0"):
        Exposure(0)
