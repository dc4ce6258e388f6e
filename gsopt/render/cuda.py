"""The rasterizer on CUDA: gsplat. The only file that imports it.

For gsplat 1.5.3 and later 1.5 releases. The call also fits the signature that 1.6 has in development; of
that nothing else was tried. docs/cuda.md says what of this is checked, and how.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gsopt.errors import InputError, MissingExtra
from gsopt.render import reference
from gsopt.render.call import RenderCall

SUPPORTED = ">=1.5.3,<1.7"  # versions of gsplat, as the extra "cuda" in setup.py has them


def render(call: RenderCall) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render a checked call with gsplat; see `gsopt.rasterization`.

    Raises:
        gsopt.errors.MissingExtra: gsplat is not installed.
        gsopt.errors.InputError: gsplat is installed without its kernels and could not build them.
        NotImplementedError: see `gsplat_arguments`.
    """
    arguments = gsplat_arguments(call)
    if call.num_gaussians == 0:
        return reference.render(call)  # gsplat divides by the number of Gaussians
    try:
        import gsplat
    except ModuleNotFoundError as error:
        if error.name != "gsplat":
            raise
        raise MissingExtra("gsplat", "cuda", "rendering on CUDA") from error
    _require_kernels()
    if not _takes_channel_chunk(gsplat.rasterization):
        del arguments["channel_chunk"]
    behind = call.backgrounds if call.packed and call.renders_color else None
    if call.packed:  # gsplat 1.5.3 refuses backgrounds of any shape then
        arguments["backgrounds"] = None
    found = gsplat.rasterization(**arguments)
    return found if behind is None else (_over(*found[:2], behind), *found[1:])


def _over(images: Tensor, alphas: Tensor, backgrounds: Tensor) -> Tensor:
    """Pictures before backgrounds; nothing lies behind a depth. [C, H, W, D (+ 1)], [C, H, W, 1], [C, D]"""
    channels = backgrounds.shape[-1]
    colors = images[..., :channels] + (1 - alphas) * backgrounds[:, None, None]
    return torch.cat([colors, images[..., channels:]], dim=-1)


@cache
def _require_kernels() -> None:
    """Let gsplat load its kernels, or build them at the first use of a version: that takes minutes.

    Raises:
        gsopt.errors.InputError: it cannot.
    """
    remedy = "install the toolkit, or a wheel of gsplat that is built for this torch and CUDA"
    try:
        from gsplat.cuda._backend import _C
    except (ImportError, OSError, RuntimeError) as error:  # what building an extension of torch raises
        reason = " ".join(str(error).split())[-300:]
        raise InputError(
            f"rendering on CUDA: gsplat could not build its kernels ({reason}): {remedy}"
        ) from error
    if _C is None:
        raise InputError(
            "rendering on CUDA: gsplat has no compiled kernels, and no CUDA toolkit (nvcc) to build them: "
            + remedy
        )


@cache
def _takes_channel_chunk(rasterization: Callable[..., Any]) -> bool:
    """Whether gsplat lets us choose how many channels it composites at once: 1.6 chooses by itself."""
    return "channel_chunk" in inspect.signature(rasterization).parameters


def gsplat_arguments(call: RenderCall) -> dict[str, Any]:
    """The keyword arguments of `gsplat.rasterization` 1.5.3 for a checked call.

    Tensors are handed over as they are: what is frozen requires no gradient, so gsplat's backward pass gives
    none to it.

    Raises:
        NotImplementedError: `Ks` requires grad, which gsplat would ignore; or `absgrad` with more channels
            than `channel_chunk`, of which gsplat would keep the last chunk's only.
    """
    grad = torch.is_grad_enabled()
    if grad and call.Ks.requires_grad:
        raise NotImplementedError("Ks: only the reference backend differentiates the intrinsics")
    channels = call.renders_color * call.num_channels + call.renders_depth
    if call.absgrad and channels > call.channel_chunk:
        raise NotImplementedError(
            f"absgrad: gsplat needs channel_chunk to be at least the {channels} channels rendered, "
            f"found {call.channel_chunk}"
        )
    means, colors = call.means, call.colors
    if isinstance(colors, tuple):
        colors = torch.cat(colors, dim=-2)  # [(C,) N, K, 3]
    shapes = (call.quats, call.scales) if call.covars is None else (call.covars,)
    geometry = (means, *shapes, call.viewmats)
    if grad and not any(tensor.requires_grad for tensor in geometry):
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
        "sparse_grad": False,
        "absgrad": call.absgrad,
        "rasterize_mode": call.rasterize_mode,
        "channel_chunk": call.channel_chunk,
        "segmented": call.segmented,
        "covars": call.covars,
    }
