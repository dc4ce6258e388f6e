"""The CPU backend: the native kernel (gsopt/native/src, docs/kernel.md) behind the interface.

Two autograd functions (render/kernel.py) with the public `means2d` between them: Gaussians to splats, splats
to images. The splats themselves stay in the kernel's frame; from one function to the other the tensors
`means2d`, `covars2d` and `opacities` carry gradients only.
"""

import torch
from torch import Tensor

from gsopt.native import Frame
from gsopt.render.call import EXPECTED_DEPTH_ALPHA_MIN, RenderCall
from gsopt.render.info import RenderInfo, render_info
from gsopt.render.kernel import Anchor, Rasterize, Splat, Watch

_MAX_CHANNELS = 32  # of the kernel, in one go; up to 4 are fast
MAX_DEGREE = 3
_MAX_SIDE = 16 * 65_535  # pixels: the kernel counts tiles in 16 bits


def render(call: RenderCall) -> tuple[Tensor, Tensor, RenderInfo]:
    """Render a checked call of float32 CPU tensors; see `gsopt.rasterization`.

    Raises:
        NotImplementedError: covars, a gradient by `Ks`, absgrad with more than 32 channels, or
            spherical harmonics above degree 3.
        MemoryError: no memory for the kernel's buffers.
    """
    _reject(call)
    frames = [Frame() for _ in range(call.num_cameras)]
    # Opacities that reach compositing as they are get no gradient from projection, which must not seem to.
    activates = call.raw or call.antialiased
    means2d, covars2d, depths, opacities, colors, radii = Splat.apply(
        call,
        frames,
        call.means,
        call.quats,
        call.scales,
        call.opacities if activates else call.opacities.detach(),
        *((None, None) if call.sh_degree is None else call.sh_parts),
        call.viewmats,
    )
    if torch.is_grad_enabled() and not means2d.requires_grad:
        means2d = Anchor.apply(means2d, means2d.new_zeros((), requires_grad=True))
    if not activates:
        opacities = _per_camera(call, call.opacities)
    if colors is None:
        plain = call.plain_colors
        colors = plain if plain.ndim == 3 else _per_camera(call, plain)
    rows = (radii > 0).all(-1).nonzero(as_tuple=True) if call.packed else None
    info = _info(call, rows, radii, means2d, depths, covars2d, opacities)
    if rows is not None and torch.is_grad_enabled():  # the gradient comes back through the public tensor
        means2d = means2d.detach().index_put(rows, info["means2d"])
    values, backgrounds = _values(call, colors, depths)
    watch = Watch(info["means2d"], rows)
    images, alphas = _composite(call, frames, watch, means2d, covars2d, opacities, values, backgrounds)
    if call.divides_depth:
        depth = images[..., -1:] / alphas.clamp_min(EXPECTED_DEPTH_ALPHA_MIN)
        images = torch.cat([images[..., :-1], depth], dim=-1)
    return images, alphas, info


def _reject(call: RenderCall) -> None:
    for name in ("width", "height"):
        if getattr(call, name) > _MAX_SIDE:
            raise ValueError(
                f"{name}: the cpu backend renders up to {_MAX_SIDE:,}, found {getattr(call, name):,}"
            )
    if call.covars is not None:
        raise NotImplementedError("covars: the cpu backend takes quats and scales; use backend='reference'")
    if call.Ks.requires_grad:
        raise NotImplementedError("Ks: the cpu backend gives no gradient by Ks; use backend='reference'")
    if call.absgrad and call.num_channels + call.renders_depth > _MAX_CHANNELS:
        raise NotImplementedError(
            f"absgrad: the cpu backend supports up to {_MAX_CHANNELS} channels with it, "
            f"found {call.num_channels + call.renders_depth}"
        )
    if call.sh_degree is not None and call.sh_degree > MAX_DEGREE:
        raise NotImplementedError(
            f"sh_degree: the cpu backend supports up to {MAX_DEGREE}, found {call.sh_degree}"
        )


def _per_camera(call: RenderCall, rows: Tensor) -> Tensor:
    """[N, ...] -> [C, N, ...]"""
    return rows.expand(call.num_cameras, *rows.shape)


def _values(call: RenderCall, colors: Tensor, depths: Tensor) -> tuple[Tensor, Tensor | None]:
    """The channels that the render mode composites [C, N, D], and what lies behind them [C, D]."""
    if not call.renders_depth:
        return colors, call.backgrounds
    if not call.renders_color:
        return depths[..., None], None
    backgrounds = call.backgrounds
    if backgrounds is not None:  # nothing lies behind the depth
        backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(len(backgrounds), 1)], dim=-1)
    return torch.cat([colors, depths[..., None]], dim=-1), backgrounds


def _info(
    call: RenderCall,
    rows: tuple[Tensor, Tensor] | None,
    radii: Tensor,
    means2d: Tensor,
    depths: Tensor,
    covars2d: Tensor,
    opacities: Tensor,
) -> RenderInfo:
    tensors = {"radii": radii, "means2d": means2d, "depths": depths, "opacities": opacities}
    if rows is not None:
        tensors = {name: tensor[rows] for name, tensor in tensors.items()}
        tensors |= {"camera_ids": rows[0], "gaussian_ids": rows[1]}
        covars2d = covars2d[rows]
    return render_info(call, conics=lambda: conics(covars2d), **tensors)


def conics(covars2d: Tensor) -> Tensor:
    """Inverse of covariances xx, xy, yy in the same order; zeros where there is no splat. [..., 3]"""
    a, b, c = covars2d.unbind(-1)
    det = a * c - b * b
    return torch.stack([c, -b, a], dim=-1) / torch.where(det > 0, det, 1)[..., None]


def _composite(
    call: RenderCall,
    frames: list[Frame],
    watch: Watch,
    means2d: Tensor,
    covars2d: Tensor,
    opacities: Tensor,
    values: Tensor,
    backgrounds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Images [C, H, W, D] and alphas [C, H, W, 1], at most `_MAX_CHANNELS` at a time."""
    channels = values.shape[-1]
    parts = [slice(first, first + _MAX_CHANNELS) for first in range(0, channels, _MAX_CHANNELS)]
    results = [
        Rasterize.apply(
            call,
            frames,
            watch,
            len(parts) > 1,
            means2d,
            covars2d,
            opacities,
            values if len(parts) == 1 else values[..., part],
            None if backgrounds is None else backgrounds[:, part],
        )
        for part in parts
    ]
    if len(parts) == 1:
        return results[0]
    return torch.cat([image for image, _ in results], dim=-1), results[0][1]
