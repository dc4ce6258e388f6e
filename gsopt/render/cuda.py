"""The rasterizer on CUDA: gsplat. The only file that imports it."""

from typing import Any

import torch
from torch import Tensor

from gsopt.errors import MissingExtra
from gsopt.render.call import RenderCall


def render(call: RenderCall) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render a checked call with gsplat; see `gsopt.rasterization`.

    Raises:
        gsopt.errors.MissingExtra: gsplat is not installed.
        NotImplementedError: `Ks` requires grad; gsplat would leave it without one.
    """
    try:
        import gsplat
    except ModuleNotFoundError as error:
        if error.name != "gsplat":
            raise
        raise MissingExtra("gsplat", "cuda", "rendering on CUDA") from error
    return gsplat.rasterization(**gsplat_arguments(call))


def gsplat_arguments(call: RenderCall) -> dict[str, Any]:
    """The keyword arguments of `gsplat.rasterization` for a checked call.

    Raises:
        NotImplementedError: `Ks` requires grad.
    """
    grad = torch.is_grad_enabled()
    if grad and call.Ks.requires_grad:
        raise NotImplementedError("Ks: only the reference backend differentiates the intrinsics")
    means, colors = call.means, call.colors
    if isinstance(colors, tuple):
        colors = torch.cat(colors, dim=-2)  # [(C,) N, K, 3]
    geometry = (means, call.quats, call.scales, call.opacities, call.viewmats, call.covars)
    if grad and not any(tensor is not None and tensor.requires_grad for tensor in geometry):
        # gsplat gives means2d a gradient only when the projection has one to compute; densification needs it.
        means = means.detach().requires_grad_()
    return {
        "means": means,
        "quats": call.quats,
        "scales": call.scales,
        "opacities": call.opacities,
        "colors": colors,
        "viewmats": call.viewmats,
        "Ks": call.Ks,
        "width": call.width,
        "height": call.height,
        "near_plane": call.near_plane,
        "far_plane": call.far_plane,
        "radius_clip": call.radius_clip,
        "eps2d": call.eps2d,
        "sh_degree": call.sh_degree,
        "packed": call.packed,
        "tile_size": call.tile_size,
        "backgrounds": call.backgrounds,
        "render_mode": call.render_mode,
        "sparse_grad": call.sparse_grad,
        "absgrad": call.absgrad,
        "rasterize_mode": call.rasterize_mode,
        "channel_chunk": call.channel_chunk,
        "segmented": call.segmented,
        "covars": call.covars,
    }
