"""PSNR, SSIM and L1 against their definitions."""

import math

import pytest
import torch

from gsopt import metrics


def noise(seed: int, height: int = 20, width: int = 17) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("difference", "psnr", "l1"), [(0.1, 20.0, 0.1), (0.01, 40.0, 0.01), (1.0, 0.0, 1.0), (0.0, 100.0, 0.0)]
)
def test_constant_difference(difference, psnr, l1):
    target = torch.zeros(8, 9, 3)
    found = metrics.image_metrics(target + difference, target)
    assert found["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert found["l1"] == pytest.approx(l1, abs=1e-7)


def test_psnr_pools_all_pixels_and_channels():
    image = torch.zeros(1, 2, 3)
    image[0, 0, 0] = 0.6
    assert metrics.psnr(image, torch.zeros_like(image)).item() == pytest.approx(
        -10 * math.log10(0.36 / 6), abs=1e-5
    )


def test_equal_images_have_ssim_1():
    assert metrics.ssim(noise(0), noise(0)).item() == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_symmetric_and_falls_with_noise():
    image, other = noise(0), noise(1)
    assert metrics.ssim(image, other).item() == pytest.approx(metrics.ssim(other, image).item(), abs=1e-6)
    values = [metrics.ssim(image, image.lerp(other, weight)).item() for weight in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values, reverse=True)


def test_ssim_is_the_mean_of_the_formula_at_every_pixel():
    """Wang et al. 2004, eq. 13, written as loops, with zeros beyond the border."""
    x, y = noise(2, 7, 6).double(), noise(3, 7, 6).double()
    weight = [math.exp(-0.5 * (d / 1.5) ** 2) for d in range(-5, 6)]
    total = sum(weight)
    values = []
    for channel in range(3):
        for row in range(7):
            for column in range(6):
                sums = [0.0] * 5
                for i in range(max(row - 5, 0), min(row + 6, 7)):
                    for j in range(max(column - 5, 0), min(column + 6, 6)):
                        w = weight[i - row + 5] * weight[j - column + 5] / total**2
                        a, b = x[i, j, channel].item(), y[i, j, channel].item()
                        sums = [s + w * v for s, v in zip(sums, (a, b, a * a, b * b, a * b), strict=True)]
                mx, my, xx, yy, xy = sums
                luminance = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
                structure = (2 * (xy - mx * my) + 9e-4) / (xx - mx * mx + yy - my * my + 9e-4)
                values.append(luminance * structure)
    mean = sum(values) / len(values)
    assert metrics.ssim(x, y).item() == pytest.approx(mean, abs=1e-10)
    assert metrics.image_metrics(x.float(), y.float())["ssim"] == pytest.approx(mean, abs=1e-6)


def test_ignored_pixels_have_no_influence():
    image, photo, mask = noise(0), noise(1), noise(2)[..., 0] < 0.7
    expected = metrics.image_metrics(image, photo, mask)
    used = (image - photo)[mask].double()
    assert expected["l1"] == pytest.approx(used.abs().mean().item(), rel=1e-6)
    assert expected["psnr"] == pytest.approx(-10 * used.square().mean().log10().item(), rel=1e-6)
    assert metrics.l1(image, photo, mask).item() == pytest.approx(expected["l1"], rel=1e-6)
    assert metrics.ssim(image, photo, mask).item() == pytest.approx(expected["ssim"], abs=1e-6)
    assert expected != metrics.image_metrics(image, photo)
    image[~mask], photo[~mask] = float("nan"), 0.5
    assert metrics.image_metrics(image, photo, mask) == expected


def test_mean_over_views():
    views = {"a": {"psnr": 20.0, "ssim": 0.5, "l1": 0.1}, "b": {"psnr": 30.0, "ssim": 0.7, "l1": 0.3}}
    assert metrics.mean_metrics(views) == pytest.approx({"psnr": 25.0, "ssim": 0.6, "l1": 0.2})
    assert metrics.mean_metrics({}) == {"psnr": None, "ssim": None, "l1": None}
