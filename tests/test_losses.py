"""The loss: the native kernel against plain PyTorch, and that against known values."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from skimage.metrics import structural_similarity

from gsopt.losses import photometric, photometric_reference, ssim
from gsopt.native import get_num_threads, set_num_threads


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


SIZES = [(1, 1), (1, 40), (40, 1), (5, 7), (11, 11), (16, 16), (37, 53), (130, 70), (300, 21)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_kernel_agrees_with_float64(size, weight):
    image = picture(*size, 3).requires_grad_()
    target = (picture(*size, 3, seed=1) * 255).to(torch.uint8)
    loss, parts = photometric(image, target, weight)
    (gradient,) = torch.autograd.grad(3 * loss, image)
    twin = image.detach().double().requires_grad_()
    expected, expected_parts = photometric_reference(twin, target, weight)
    (expected_gradient,) = torch.autograd.grad(3 * expected, twin)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name in ("l1", "ssim"):
        assert parts[name].item() == pytest.approx(expected_parts[name].item(), rel=1e-5, abs=1e-6)
    error = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
    assert error < 1e-4


def test_float_and_byte_targets_mean_the_same():
    image, target = picture(20, 30, 3), (picture(20, 30, 3, seed=1) * 255).to(torch.uint8)
    assert photometric(image, target)[0].item() == pytest.approx(photometric(image, target / 255)[0].item())


def test_equal_pictures_have_no_loss():
    image = picture(20, 30, 3)
    loss, parts = photometric(image, image.clone())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert parts["ssim"].item() == pytest.approx(1, abs=1e-6)


def test_ssim_agrees_with_a_direct_sum_over_windows():
    """The definition, window by window, without convolutions."""
    x, y = picture(9, 8, 3, dtype=torch.float64), picture(9, 8, 3, seed=1, dtype=torch.float64)
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps)[..., None] / taps.sum() ** 2
    padded = [torch.zeros(19, 18, 3, dtype=torch.float64) for _ in range(2)]
    padded[0][5:14, 5:13], padded[1][5:14, 5:13] = x, y
    total = torch.zeros((), dtype=torch.float64)
    for i in range(9):
        for j in range(8):
            a, b = (p[i : i + 11, j : j + 11] for p in padded)
            mean_a, mean_b = ((window * p).sum((0, 1)) for p in (a, b))
            var_a, var_b = ((window * p**2).sum((0, 1)) - m**2 for p, m in ((a, mean_a), (b, mean_b)))
            cov = (window * a * b).sum((0, 1)) - mean_a * mean_b
            index = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
            total += (index / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()
    assert ssim(x, y).item() == pytest.approx(total.item() / 72, rel=1e-10)


def test_bits_do_not_depend_on_the_number_of_threads():
    image = picture(211, 97, 3).requires_grad_()
    target = (picture(211, 97, 3, seed=1) * 255).to(torch.uint8)
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            set_num_threads(threads)
            loss, _ = photometric(image, target)
            found.append((loss.item(), torch.autograd.grad(loss, image)[0]))
    finally:
        set_num_threads(before)
    for loss, gradient in found[1:]:
        assert loss == found[0][0]
        assert torch.equal(gradient, found[0][1])


def test_two_threads_at_once():
    """A viewer measures while training goes on."""
    pictures = [(picture(n, 40, 3), picture(n, 40, 3, seed=1)) for n in range(20, 60)]
    expected = [photometric(*pair)[0].item() for pair in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: photometric(*pair)[0].item(), pictures * 5))
    assert found == expected * 5


@pytest.mark.parametrize(
    ("image", "target", "message"),
    [
        (torch.zeros(4, 4), torch.zeros(4, 4), r"image: expected shape \[H, W, 3\], found \[4, 4\]"),
        (torch.zeros(0, 4, 3), torch.zeros(0, 4, 3), r"image: expected shape"),
        (torch.zeros(4, 4, 3), torch.zeros(4, 5, 3), r"target: expected the image's shape \[4, 4, 3\]"),
        (
            torch.zeros(4, 4, 3),
            torch.zeros(4, 4, 3, device="meta"),
            "target: expected the image's device cpu",
        ),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, 3), "image: expected floating point"),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.int64), "target: expected uint8 or floating"),
    ],
)
def test_unusable_arguments_are_named(image, target, message):
    with pytest.raises(ValueError, match=message):
        photometric(image, target)


@pytest.mark.parametrize("size", [(11, 12), (37, 53), (64, 30)], ids=str)
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_ssim_agrees_with_scikit_image(size, noise):
    """In black borders, wider than a window, what either takes for the pixels outside makes no difference."""
    image, other = torch.zeros(2, size[0] + 22, size[1] + 22, 3, dtype=torch.float64).unbind()
    image[11:-11, 11:-11] = picture(*size, 3, dtype=torch.float64)
    other[11:-11, 11:-11] = picture(*size, 3, seed=1, dtype=torch.float64)
    target = (torch.lerp(image, other, noise) * 255).to(torch.uint8)
    expected = structural_similarity(
        image.numpy(),
        target.double().div(255).numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )[1].mean()
    assert expected < 0.9999
    assert ssim(image, target).item() == pytest.approx(expected, rel=1e-9)
    assert photometric(image.float(), target)[1]["ssim"].item() == pytest.approx(expected, rel=1e-5)
