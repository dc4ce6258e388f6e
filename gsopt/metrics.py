"""How close a rendered image is to its photo: PSNR, SSIM, L1.

Images are float tensors [H, W, 3] with values in 0..1. Pixels that a mask [H, W] ignores count in none of
the metrics; `losses.photometric` says how.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gsopt.losses import photometric, ssim, used_mean

__all__ = ["image_metrics", "l1", "mean_metrics", "psnr", "ssim"]

METRICS = ("psnr", "ssim", "l1")
PSNR_CEILING = 100.0  # dB, of two equal images: infinity has no place in JSON


def l1(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference, 0..1, as a 0-dim tensor."""
    return used_mean((image - target).abs(), mask)


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) over all pixels and channels, as a 0-dim tensor.

    At most 100 dB, that of an MSE of 1e-10.
    """
    mse = used_mean((image - target).square(), mask)
    return -10.0 * mse.clamp(min=10.0 ** (-PSNR_CEILING / 10.0)).log10()


@torch.no_grad()
def image_metrics(image: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """psnr, ssim and l1 of one image, as plain numbers; the loss's own kernel finds the latter two."""
    _, terms = photometric(image, target, mask=mask)
    values = {"psnr": psnr(image, target, mask), "ssim": terms["ssim"], "l1": terms["l1"]}
    return {name: value.item() for name, value in values.items()}


def mean_metrics(views: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """Mean over views of each metric; None for all of them where there is no view."""
    if not views:
        return dict.fromkeys(METRICS)
    return {name: sum(view[name] for view in views.values()) / len(views) for name in METRICS}
