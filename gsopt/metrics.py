"""How close a rendered image is to its photo: PSNR, SSIM, L1.

Images are float tensors [H, W, 3] with values in 0..1. Every function returns a 0-dim tensor on their device.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels; Wang et al. 2004, section III.B
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (K1 L)^2, (K2 L)^2 with L = 1
PSNR_CEILING = 100.0  # dB, of two equal images: infinity has no place in JSON


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, 0..1."""
    return (image - target).abs().mean()


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) over all pixels and channels; at most 100 dB."""
    mse = (image - target).square().mean()
    return -10.0 * mse.clamp(min=10.0 ** (-PSNR_CEILING / 10.0)).log10()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity, -1..1 (Wang et al. 2004, eq. 13).

    Gaussian window of 11x11 pixels with sigma 1.5, zeros beyond the border, each channel by itself: the
    variant of the 3DGS papers, so that figures can be compared.
    """
    x, y = image.permute(2, 0, 1)[:, None], target.permute(2, 0, 1)[:, None]  # [3, 1, H, W]
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1).flatten(0, 1)[:, None])
        .unflatten(0, (3, 5))
        .unbind(1)
    )  # each [3, 1, H, W]
    var_x, var_y, cov = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return (luminance * structure).mean()


def image_metrics(image: Tensor, target: Tensor) -> dict[str, float]:
    """psnr, ssim and l1 of one image, as plain numbers."""
    return {name: metric(image, target).item() for name, metric in METRICS.items()}


def mean_metrics(views: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Mean over views of each metric; None for all of them where there is no view."""
    if not views:
        return dict.fromkeys(METRICS)
    return {name: sum(view[name] for view in views.values()) / len(views) for name in METRICS}


METRICS = {"psnr": psnr, "ssim": ssim, "l1": l1}


def _blur(images: Tensor) -> Tensor:
    """The Gaussian window over [B, 1, H, W], as a column and then a row."""
    offsets = torch.arange(SSIM_WINDOW, device=images.device, dtype=images.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = window / window.sum()  # [11]
    columns = conv2d(images, window[None, None, :, None], padding=(SSIM_WINDOW // 2, 0))
    return conv2d(columns, window[None, None, None, :], padding=(0, SSIM_WINDOW // 2))
