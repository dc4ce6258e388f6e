"""The loss: the native kernel against plain PyTorch, and that against known values."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from skimage.metrics import structural_similarity

from gsopt.losses import depth_l1, inverse_depth, photometric, photometric_reference, ssim
from gsopt.native import available_isas, get_num_threads, set_num_threads


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


def masks(*size: int) -> dict[str, torch.Tensor]:
    """A few masks [H, W], by what they use."""
    random = picture(*size, seed=3)
    half = torch.zeros(size, dtype=torch.bool)
    half[size[0] // 2 :] = True
    return {"some": random < 0.4, "most": random < 0.95, "half": half, "none": random < 0, "all": random < 2}


def mask_problems() -> list[str]:
    """Where the kernel with a mask is not its twin, or something that is ignored has an influence."""
    found = []
    for size in SIZES:
        for name, mask in masks(*size).items():
            image, target = picture(*size, 3), (picture(*size, 3, seed=1) * 255).to(torch.uint8)
            where = f"{size} {name}"
            loss, parts, gradient = with_gradient(photometric, image, target, mask)
            twin = with_gradient(photometric_reference, image.double(), target, mask)
            for got, expected in zip((loss, *parts.values()), (twin[0], *twin[1].values()), strict=True):
                if abs(got - expected) > 1e-5 * abs(expected) + 1e-6:
                    found.append(f"{where}: {got} for {expected}")
            if (gradient - twin[2]).abs().max() > 1e-4 * twin[2].abs().max():
                found.append(f"{where}: gradient")
            for function in (photometric, photometric_reference):
                before = with_gradient(function, image, target, mask)
                image2, target2 = image.clone(), target.clone()
                image2[~mask], target2[~mask] = float("nan"), 255 - target2[~mask]
                after = with_gradient(function, image2, target2, mask)
                if before[:2] != after[:2] or not torch.equal(before[2], after[2]):
                    found.append(f"{where}: ignored pixels have an influence in {function.__name__}")
                if before[2][~mask].any():
                    found.append(f"{where}: a gradient at ignored pixels from {function.__name__}")
    return found


def with_gradient(function, image, target, mask):
    """Loss, parts and gradient."""
    image = image.detach().requires_grad_()
    loss, parts = function(image, target, 0.2, mask)
    (gradient,) = torch.autograd.grad(loss, image)
    return loss.item(), {name: part.item() for name, part in parts.items()}, gradient


_OTHER_ISA = """
import sys
sys.path.insert(0, sys.argv[1])
from test_losses import mask_problems
from gsopt.native import library
print([library().gsopt_isa().decode(), mask_problems()])
"""


@pytest.mark.parametrize("isa", available_isas())
def test_masks_with_every_instruction_set(isa):
    command = [sys.executable, "-c", _OTHER_ISA, os.path.dirname(__file__)]
    environment = {**os.environ, "GSOPT_ISA": isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str([isa, []])


def test_a_rectangle_that_is_used_is_a_picture_of_its_own():
    image, target = picture(60, 50, 3), picture(60, 50, 3, seed=1)
    mask = torch.zeros(60, 50, dtype=torch.bool)
    mask[7:33, 11:48] = True
    cut = slice(7, 33), slice(11, 48)
    for function, kind in ((photometric, torch.float32), (photometric_reference, torch.float64)):
        whole = with_gradient(function, image.to(kind), target.to(kind), mask)
        alone = with_gradient(function, image[cut].to(kind), target[cut].to(kind), None)
        tight = {"rel": 1e-5 if kind == torch.float32 else 1e-12}
        assert whole[0] == pytest.approx(alone[0], **tight)
        assert whole[1] == pytest.approx(alone[1], **tight)
        assert (whole[2][cut] - alone[2]).abs().max() <= tight["rel"] * alone[2].abs().max()


def test_a_mask_of_everything_is_none():
    image, target = picture(37, 53, 3), picture(37, 53, 3, seed=1)
    everything = torch.ones(37, 53, dtype=torch.bool)
    with_mask, without = (with_gradient(photometric, image, target, mask) for mask in (everything, None))
    assert with_mask[:2] == without[:2]
    assert torch.equal(with_mask[2], without[2])


def test_where_nothing_is_used_nothing_is_lost():
    nothing = torch.zeros(20, 30, dtype=torch.bool)
    for function in (photometric, photometric_reference):
        loss, parts, gradient = with_gradient(
            function, picture(20, 30, 3), picture(20, 30, 3, seed=1), nothing
        )
        assert (loss, parts) == (0, {"l1": 0, "ssim": 1})
        assert not gradient.any()


def test_inverse_depth_is_that_of_what_is_seen():
    """Weights w at one z: w / z. Nothing: infinitely far. Two at different z: w^2 over the sum of w z."""
    alpha = torch.tensor([0.8, 0.0, 0.9], dtype=torch.float64)
    depth = torch.tensor([0.8 * 4, 0.0, 0.5 * 2 + 0.4 * 5], dtype=torch.float64)
    expected = torch.tensor([0.2, 0.0, 0.81 / 3], dtype=torch.float64)
    torch.testing.assert_close(inverse_depth(depth, alpha), expected)
    inputs = [tensor.requires_grad_() for tensor in (depth, alpha)]
    gradients = torch.autograd.grad(inverse_depth(*inputs).sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    seen = [tensor.detach()[[0, 2]].requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(inverse_depth, seen)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(None, 0.2), ([[True, False], [True, True]], 0.1), ([[False, False], [True, False]], 0.0)],
    ids=["all", "some", "only unknown"],
)
def test_depths_count_where_they_are_known_and_used(mask, expected):
    target = torch.tensor([[0.5, 0.1], [float("nan"), 0.3]])
    inverse = (torch.tensor([[0.6, 0.5], [9.0, 0.2]])).requires_grad_()
    mask = None if mask is None else torch.tensor(mask)
    loss = depth_l1(inverse, target, mask)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, inverse)
    counted = ~target.isnan() if mask is None else ~target.isnan() & mask
    assert torch.equal(gradient != 0, counted)


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


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(4, 5, dtype=torch.bool),
        torch.ones(4, 4, dtype=torch.uint8),
        torch.ones(4, 4, dtype=torch.bool, device="meta"),
    ],
    ids=["shape", "dtype", "device"],
)
def test_unusable_masks_are_named(mask):
    with pytest.raises(ValueError, match=r"mask: expected bool \[4, 4\] on cpu, found"):
        photometric(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), mask=mask)


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
