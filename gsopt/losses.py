"""Loss terms of a picture: named scalars, and their weighted sum.

`photometric` is the loss of 3DGS (Kerbl et al. 2023, eq. 7): (1 - λ) L1 + λ (1 - SSIM), λ = 0.2. On the CPU
one call of the native kernel gives value and gradient; `photometric_reference` is its slow twin.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsopt.native import Frame, check, library, pointer, workspace

SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values in 0..1 (Wang et al. 2004)


def photometric(
    image: Tensor, target: Tensor, ssim_weight: float = 0.2, mask: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 and D-SSIM between a rendered picture and a photo.

    Pixels that `mask` ignores are as if they were outside the picture: both means are over the others, and in
    SSIM's windows they are zeros in render and photo alike. So their values have no influence on any bit of
    loss or gradient, and a mask of a rectangle gives what that part of the picture alone gives.

    Args:
        image: rendered picture. [H, W, 3] floating point, meant to be in 0..1; not clamped
        target: photo. [H, W, 3] uint8, or floating point in 0..1; it gets no gradient
        ssim_weight: λ, 0 to 1.
        mask: where pixels count, None for everywhere. [H, W] bool. Without any pixel the loss is 0.

    Returns:
        The loss (a scalar, differentiable in `image`), and its parts "l1" and "ssim" (the mean index, 1 when
        equal) as detached scalars.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(image, target, mask)
    if image.device.type != "cpu" or image.dtype != torch.float32:
        return photometric_reference(image, target, ssim_weight, mask)
    loss, l1, index = _Photometric.apply(image, target, ssim_weight, mask)
    return loss, {"l1": l1, "ssim": index}


def with_terms(
    loss: Tensor, terms: Mapping[str, Tensor], more: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and its named parts with the terms `more` added to both; without any, the loss itself."""
    for term in more.values():
        loss = loss + term
    return loss, {**terms, **{name: term.detach() for name, term in more.items()}}


def photometric_reference(
    image: Tensor, target: Tensor, ssim_weight: float = 0.2, mask: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`photometric` in plain PyTorch, for any floating dtype and device."""
    _check(image, target, mask)
    image, target = _blanked(image, _as_float(target, image), mask)
    l1 = used_mean((image - target).abs(), mask)
    index = ssim(image, target, mask)
    loss = (1 - ssim_weight) * l1 + ssim_weight * (1 - index)
    return loss, {"l1": l1.detach(), "ssim": index.detach()}


def used_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [H, W, ...] over the pixels that a mask [H, W] uses, all without one; 0 where it uses none."""
    if mask is None:
        return values.mean()
    # Nothing here has a size that depends on the mask: on a device that would mean to wait.
    used = mask.reshape(mask.shape + (1,) * (values.ndim - 2))
    count = mask.sum() * (values.numel() // mask.numel())
    return torch.where(used, values, 0).sum() / count.clamp_min(1)


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean structural similarity of two pictures, 1 when equal (Wang et al. 2004), as 3DGS measures it.

    Window 11×11, Gaussian of σ = 1.5 pixels, zeros outside the picture, the mean over pixels and channels.

    Args:
        image, target: [H, W, 3]; floating point in 0..1, `target` may be uint8.
        mask: as for `photometric`. [H, W]
    """
    _check(image, target, mask)
    image, target = _blanked(image, _as_float(target, image), mask)
    x = image.movedim(-1, 0)[:, None]  # [3, 1, H, W]
    y = target.movedim(-1, 0)[:, None]
    maps = torch.cat([x, y, x * x, y * y, x * y])  # [15, 1, H, W]
    taps = _taps(image.dtype, image.device)
    half = SSIM_WINDOW // 2
    maps = F.conv2d(maps, taps.view(1, 1, -1, 1), padding=(half, 0))
    maps = F.conv2d(maps, taps.view(1, 1, 1, -1), padding=(0, half))
    mean_x, mean_y, xx, yy, xy = maps.chunk(5)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    if mask is None:
        return (luminance * structure).mean()
    return 1 - used_mean(1 - (luminance * structure)[:, 0].movedim(0, -1), mask)


def inverse_depth(depth: Tensor, alpha: Tensor) -> Tensor:
    """1 / z as a picture shows it: alpha over the expected z; 0, infinitely far, where there is nothing.

    So a Gaussian with weight w at z gives w / z, as in the original 3DGS, which sums w / z itself: the same
    where all that a pixel sees has one z.

    Args:
        depth: sum of w z, as `rasterization` gives it with "D", each z above 0. [...]
        alpha: sum of w. [...]
    """
    seen = depth > 0
    return torch.where(seen, alpha * (alpha / torch.where(seen, depth, 1)), 0)


def depth_l1(inverse: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of inverse depths over the pixels that are known and used; 0 without any.

    Args:
        inverse: of a rendered picture. [H, W]
        target: of the depth map, NaN where unknown. [H, W]
        mask: where pixels count, None for everywhere. [H, W] bool
    """
    known = ~target.isnan() if mask is None else mask & ~target.isnan()
    return used_mean((inverse - torch.where(known, target, 0)).abs(), known)


@cache
def _window() -> tuple[float, ...]:
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device="cpu") - SSIM_WINDOW // 2
    taps = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return tuple((taps / taps.sum()).tolist())


@cache
def _taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window on a device, copied to it once: each copy would wait for the device."""
    return torch.tensor(_window(), dtype=dtype, device=device)


def _as_float(target: Tensor, like: Tensor) -> Tensor:
    scaled = target.to(like.dtype) / 255 if target.dtype == torch.uint8 else target.to(like.dtype)
    return scaled.detach()


def _blanked(image: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with zeros where the mask ignores them, whatever was there."""
    if mask is None:
        return image, target
    return torch.where(mask[..., None], image, 0), torch.where(mask[..., None], target, 0)


def _check(image: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected shape [H, W, 3], found {list(image.shape)}")
    if target.shape != image.shape:
        raise ValueError(
            f"target: expected the image's shape {list(image.shape)}, found {list(target.shape)}"
        )
    if target.device != image.device:
        raise ValueError(f"target: expected the image's device {image.device}, found {target.device}")
    if not image.is_floating_point():
        raise ValueError(f"image: expected floating point, found {image.dtype}")
    if target.dtype != torch.uint8 and not target.is_floating_point():
        raise ValueError(f"target: expected uint8 or floating point, found {target.dtype}")
    if mask is not None:
        _check_mask(mask, image)


def _check_mask(mask: Tensor, image: Tensor) -> None:
    if mask.shape != image.shape[:2] or mask.dtype != torch.bool or mask.device != image.device:
        expected = f"bool {list(image.shape[:2])} on {image.device}"
        raise ValueError(f"mask: expected {expected}, found {mask.dtype} {list(mask.shape)} on {mask.device}")


class _Photometric(torch.autograd.Function):
    """The native kernel: the gradient comes with the value, if anybody is going to ask for it."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, target: Tensor, ssim_weight: float, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        image, target = image.contiguous(), target.contiguous()
        mask = None if mask is None else mask.contiguous()
        height, width, _ = image.shape
        bytes_given = target.dtype == torch.uint8
        target = target if bytes_given else target.float()
        gradient = workspace.empty("v_image", image.shape) if ctx.needs_input_grad[0] else None
        frame = Frame()  # lends its buffers until the call is over
        values = torch.empty(3, dtype=torch.float32, device="cpu")
        check(
            library().gsopt_photometric(
                frame.handle,
                height,
                width,
                pointer(image),
                pointer(target) if bytes_given else None,
                None if bytes_given else pointer(target),
                pointer(mask),
                ssim_weight,
                pointer(values),
                pointer(gradient),
            )
        )
        ctx.gradient = gradient
        total, l1, ssim = (image.new_tensor(value) for value in values.tolist())
        ctx.mark_non_differentiable(l1, ssim)
        return total, l1, ssim

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        # Usually this is the whole loss: then the gradient is the kernel's as it is.
        return ctx.gradient if v_loss.item() == 1 else ctx.gradient * v_loss, None, None, None
