"""Pruning a trained model for size: which Gaussians the pictures can do without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.model import GaussianModel
from gsopt.render import rasterization


def contributions(model: GaussianModel, cameras: Sequence[Camera], **options: Any) -> Tensor:
    """How much each Gaussian shows in the images: the sum of its blending weights over all their pixels.

    A pixel is the sum of weights times colours, so the gradient of the sum of all pixels by the colour of a
    Gaussian, of one channel, is the sum of its weights, exactly as the rasterizer composites.

    Args:
        model: the Gaussians.
        cameras: of the images, such as those of the training views.
        options: go to `gsopt.rasterization`.

    Returns:
        Pixels' worth, 0 where a Gaussian is never seen. float64 [N]
    """
    like = model.xyz
    with torch.no_grad():
        shapes = (model.means, model.quats, model.scales, model.opacities)
        total = torch.zeros(model.num_gaussians, dtype=torch.float64, device=like.device)
    for camera in cameras:
        color = like.new_zeros(model.num_gaussians, 1, requires_grad=True)
        with torch.enable_grad():
            image, _, _ = rasterization(
                *shapes,
                color,
                camera.viewmat.to(like)[None],
                camera.K.to(like)[None],
                camera.width,
                camera.height,
                packed=False,
                **options,
            )
        (weights,) = torch.autograd.grad(image.sum(), color)  # [N, 1]
        total += weights[:, 0]
    return total


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest of `values` [N]; of equal ones the first. bool [N]"""
    mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    mask[values.argsort(descending=True, stable=True)[:count]] = True
    return mask
