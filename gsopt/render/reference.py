"""The rasterizer in plain PyTorch: slow, any device, float32 or float64, every derivative by autograd.

The twin that the fast backends are compared with. Three steps that can be called by themselves: `project`
(which Gaussians are seen, and their splats on the images), `colors_from_sh`, `composite` (splats to pixels).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from gsopt.geometry import camera_centers, num_sh_bases, quat_scale_to_covar, spherical_harmonics
from gsopt.render.call import (
    ALPHA_MAX,
    ALPHA_MIN,
    COLOR_OFFSET,
    EXPECTED_DEPTH_ALPHA_MIN,
    EXTENT_SIGMAS,
    FOV_MARGIN,
    RADIUS_MAX,
    TRANSMITTANCE_STOP,
    RenderCall,
)
from gsopt.render.info import render_info, tracked


@dataclass(frozen=True)
class Splats:
    """Visible pairs of camera and Gaussian, ordered by camera, then by Gaussian."""

    camera_ids: Tensor  # int64 [M]
    gaussian_ids: Tensor  # int64 [M]
    radii: Tensor  # int32 [M, 2] pixels
    means2d: Tensor  # [M, 2] pixels
    depths: Tensor  # [M] z in camera coordinates
    conics: Tensor  # [M, 3] a, b, c of the inverse covariance [[a, b], [b, c]], 1 / pixels²
    compensations: Tensor  # [M] factor on the opacity; ones unless antialiased


def render(call: RenderCall) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render a checked call; see `gsopt.rasterization`.

    Beyond the other backends it is differentiable in the intrinsics `Ks`, too.
    """
    splats = project(call)
    camera_ids, gaussian_ids = splats.camera_ids, splats.gaussian_ids
    if call.sh_degree is not None:
        colors = colors_from_sh(call, camera_ids, gaussian_ids)  # [M, 3]
    elif call.plain_colors.ndim == 2:
        colors = call.plain_colors[gaussian_ids]  # [M, D]
    else:
        colors = call.plain_colors[camera_ids, gaussian_ids]  # [M, D]

    if call.packed:
        info = render_info(
            call,
            radii=splats.radii,
            means2d=tracked(splats.means2d),
            depths=splats.depths,
            conics=splats.conics,
            opacities=call.opacities[gaussian_ids] * splats.compensations,
            camera_ids=camera_ids,
            gaussian_ids=gaussian_ids,
        )
    else:
        opacities = call.opacities.expand(call.num_cameras, -1)  # [C, N]
        if call.antialiased:
            opacities = opacities * _unpack(call, splats, splats.compensations)
        info = render_info(
            call,
            radii=_unpack(call, splats, splats.radii),
            means2d=tracked(_unpack(call, splats, splats.means2d)),
            depths=_unpack(call, splats, splats.depths),
            conics=_unpack(call, splats, splats.conics),
            opacities=opacities,
        )
        colors = _unpack(call, splats, colors)
    return *_render_mode(call, colors, info), info


def _unpack(call: RenderCall, splats: Splats, rows: Tensor) -> Tensor:
    """Spread rows of visible pairs over all pairs, with zeros elsewhere. [M, ...] -> [C, N, ...]"""
    flat = rows.new_zeros(call.num_cameras * call.num_gaussians, *rows.shape[1:])
    flat = flat.index_copy(0, splats.camera_ids * call.num_gaussians + splats.gaussian_ids, rows)
    return flat.unflatten(0, (call.num_cameras, call.num_gaussians))


def _render_mode(call: RenderCall, colors: Tensor, info: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Composite the channels that the render mode asks for."""
    channels = [colors] if call.renders_color else []
    backgrounds = call.backgrounds if call.renders_color else None
    if call.renders_depth:
        channels.append(info["depths"][..., None])
        if backgrounds is not None:  # nothing lies behind the depth
            backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(len(backgrounds), 1)], dim=-1)
    images, alphas = composite(
        info["means2d"],
        info["conics"],
        torch.cat(channels, dim=-1),
        info["opacities"],
        width=call.width,
        height=call.height,
        tile_size=call.tile_size,
        isect_offsets=info["isect_offsets"],
        flatten_ids=info["flatten_ids"],
        backgrounds=backgrounds,
        absgrad=call.absgrad,
    )
    if call.divides_depth:
        depth = images[..., -1:] / alphas.clamp_min(EXPECTED_DEPTH_ALPHA_MIN)
        images = torch.cat([images[..., :-1], depth], dim=-1)
    return images, alphas


def project(call: RenderCall) -> Splats:
    """Project Gaussians onto the images and keep the visible ones.

    Visible is what lies between the near and the far plane, reaches alpha 1/255 at its centre, is larger than
    `radius_clip`, and has a rectangle that overlaps the image. The rectangle is that of the ellipse where
    alpha falls to 1/255, at most 3.33 standard deviations (Radl et al., StopThePop, 2024, appendix B.2),
    rounded up to pixels. Radii carry no gradient.
    """
    device = call.means.device
    with torch.no_grad():
        camera_ids = torch.arange(call.num_cameras, device=device).repeat_interleave(call.num_gaussians)
        gaussian_ids = torch.arange(call.num_gaussians, device=device).repeat(call.num_cameras)
        radii = _visible_radii(call, gaussian_ids, *project_pairs(call, camera_ids, gaussian_ids))
        visible = radii[:, 0] > 0
    # Only visible pairs are differentiated: z = 0 or an overflow elsewhere would spoil the gradients of all.
    camera_ids, gaussian_ids = camera_ids[visible], gaussian_ids[visible]
    means2d, depths, covars2d, compensations = project_pairs(call, camera_ids, gaussian_ids)
    a, b, c = covars2d.unbind(-1)
    conics = torch.stack([c, -b, a], dim=-1) / (a * c - b * b)[:, None]
    return Splats(camera_ids, gaussian_ids, radii[visible], means2d, depths, conics, compensations)


def project_pairs(call: RenderCall, camera_ids: Tensor, gaussian_ids: Tensor) -> tuple[Tensor, ...]:
    """Means [M, 2], depths [M], blurred covariances xx, xy, yy [M, 3] and compensations [M] on the images."""
    rotations = call.viewmats[camera_ids, :3, :3]  # [M, 3, 3]
    means = rotations @ call.means[gaussian_ids, :, None] + call.viewmats[camera_ids, :3, 3:]
    x, y, z = means[..., 0].unbind(-1)  # camera coordinates
    fx, fy = call.Ks[camera_ids, 0, 0], call.Ks[camera_ids, 1, 1]
    cx, cy = call.Ks[camera_ids, 0, 2], call.Ks[camera_ids, 1, 2]
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    # Far outside the image the affine approximation explodes: there, take it at the border of a wider image.
    slope_x = (x / z).clamp(*slope_limits(fx, cx, call.width))
    slope_y = (y / z).clamp(*slope_limits(fy, cy, call.height))
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], dim=-1
    ).unflatten(-1, (2, 3))  # d means2d / d means, [M, 2, 3]
    to_image = jacobian @ rotations
    covars2d = to_image @ _world_covars(call, gaussian_ids) @ to_image.transpose(-1, -2)  # [M, 2, 2]

    a, b, c = covars2d[:, 0, 0], covars2d[:, 0, 1], covars2d[:, 1, 1]
    blurred = torch.stack([a + call.eps2d, b, c + call.eps2d], dim=-1)
    if not call.antialiased:
        return means2d, z, blurred, torch.ones_like(z)
    ratio = (a * c - b * b) / (blurred[:, 0] * blurred[:, 2] - b * b)
    positive = ratio > 0  # rounding can make a flat splat's determinant negative; sqrt has no derivative at 0
    compensations = torch.where(positive, torch.where(positive, ratio, 1).sqrt(), 0)
    return means2d, z, blurred, compensations


def slope_limits(focal: Tensor, center: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Range of x / z of the field of view, widened by `FOV_MARGIN` half images on both sides."""
    margin = FOV_MARGIN * 0.5 * size / focal
    return -center / focal - margin, (size - center) / focal + margin


def _world_covars(call: RenderCall, gaussian_ids: Tensor) -> Tensor:
    """Covariances in world units squared. [M, 3, 3]"""
    if call.covars is None:
        assert call.quats is not None
        assert call.scales is not None
        return quat_scale_to_covar(call.quats[gaussian_ids], call.scales[gaussian_ids])
    upper = call.covars[gaussian_ids].triu()
    return upper + upper.triu(1).transpose(-1, -2)


def _visible_radii(
    call: RenderCall,
    gaussian_ids: Tensor,
    means2d: Tensor,
    depths: Tensor,
    covars2d: Tensor,
    compensations: Tensor,
) -> Tensor:
    """Half sizes in pixels of the splats' rectangles; zero where the splat is not visible. int32 [M, 2]

    Conditions are positive, so that a splat with NaN anywhere is not visible.
    """
    a, b, c = covars2d.unbind(-1)
    opacities = call.opacities[gaussian_ids] * compensations
    extent = (2 * (opacities / ALPHA_MIN).log()).sqrt().clamp_max(EXTENT_SIGMAS)
    radii = (extent[:, None] * torch.stack([a, c], dim=-1).sqrt()).ceil().clamp_max(RADIUS_MAX)  # [M, 2]
    size = torch.tensor([call.width, call.height], dtype=means2d.dtype, device=means2d.device)
    visible = (
        (depths >= call.near_plane)
        & (depths <= call.far_plane)
        & (a * c - b * b > 0)
        & (opacities >= ALPHA_MIN)
        & (radii > call.radius_clip).any(-1)
        & (radii > 0).all(-1)
        & (means2d + radii > 0).all(-1)
        & (means2d - radii < size).all(-1)
    )
    if call.quats is not None and call.covars is None:
        # A quaternion of zeros is no rotation; in gsplat's kernels it turns into NaN.
        visible &= call.quats[gaussian_ids].any(-1)
    return torch.where(visible[:, None], radii, 0).int()


def colors_from_sh(call: RenderCall, camera_ids: Tensor, gaussian_ids: Tensor) -> Tensor:
    """Colours of Gaussians as the cameras see them: harmonics plus 0.5, at least 0. [M, 3]"""
    assert call.sh_degree is not None
    first, others = call.sh_parts
    others = others[..., : num_sh_bases(call.sh_degree) - 1, :]
    rows = (gaussian_ids,) if first.ndim == 3 else (camera_ids, gaussian_ids)
    coeffs = torch.cat([first[rows], others[rows]], dim=-2)  # [M, (degree + 1)², 3]
    dirs = call.means[gaussian_ids] - camera_centers(call.viewmats)[camera_ids]
    return (spherical_harmonics(call.sh_degree, dirs, coeffs) + COLOR_OFFSET).clamp_min(0)


def composite(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    *,
    width: int,
    height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    backgrounds: Tensor | None = None,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blend splats into images, front to back, tile by tile.

    Args:
        means2d: centres in pixels. [C, N, 2] or [nnz, 2]
        conics: inverse covariances a, b, c. [C, N, 3] or [nnz, 3]
        colors: [C, N, D] or [nnz, D]
        opacities: 0 to 1. [C, N] or [nnz]
        width, height, tile_size: pixels.
        isect_offsets: first intersection of each tile. [C, tile_height, tile_width]
        flatten_ids: splats of the tiles in order of depth. [n_isects]
        backgrounds: [C, D]
        absgrad: set `means2d.absgrad` in the backward pass.

    Returns:
        Images [C, height, width, D] and alphas [C, height, width, 1].
    """
    grid = isect_offsets.shape  # C, tile_height, tile_width
    starts = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    counts = [end - start for start, end in pairwise(starts)]  # splats per tile
    pixels = _pixel_centers(grid, tile_size, like=means2d)  # [C * tiles, P, 2]
    tiles = [
        _composite_tile(*tile)
        for tile in zip(
            _per_pixel(means2d, flatten_ids, pixels.shape[1], absgrad).split(counts),
            conics.reshape(-1, 3)[flatten_ids].split(counts),
            colors.reshape(-1, colors.shape[-1])[flatten_ids].split(counts),
            opacities.reshape(-1)[flatten_ids].split(counts),
            pixels,
            strict=True,
        )
    ]
    images, transmittances = (
        _join_tiles(torch.stack(parts), grid, tile_size)[:, :height, :width]
        for parts in zip(*tiles, strict=True)
    )
    if backgrounds is not None:
        images = images + transmittances * backgrounds[:, None, None, :]
    return images, 1 - transmittances


def _pixel_centers(grid: torch.Size, tile_size: int, like: Tensor) -> Tensor:
    """Centres (x, y) of the P pixels of every tile, row by row as the tiles are. [C * tiles, P, 2]"""
    n_images, tile_height, tile_width = grid
    rows = torch.arange(tile_height * tile_size, dtype=like.dtype, device=like.device) + 0.5
    columns = torch.arange(tile_width * tile_size, dtype=like.dtype, device=like.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    image = torch.stack([x, y], dim=-1).expand(n_images, -1, -1, -1)  # [C, rows, columns, 2]
    tiles = image.unflatten(2, (tile_width, tile_size)).unflatten(1, (tile_height, tile_size))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _join_tiles(tiles: Tensor, grid: torch.Size, tile_size: int) -> Tensor:
    """Put tiles [C * tiles, P, D] together to images [C, rows, columns, D] of whole tiles."""
    parts = tiles.unflatten(1, (tile_size, tile_size)).unflatten(0, grid)
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _per_pixel(means2d: Tensor, flatten_ids: Tensor, n_pixels: int, absgrad: bool) -> Tensor:
    """Centres of the listed splats, to be broadcast over the pixels of a tile. [n_isects, 1 or P, 2]

    For `absgrad` every pixel gets a copy of its own, whose gradients are added up without their signs.
    """
    centers = means2d.reshape(-1, 2)[flatten_ids][:, None]  # [n_isects, 1, 2]
    if not (absgrad and centers.requires_grad):
        return centers
    centers = centers.expand(-1, n_pixels, -1)

    def add_up(grad: Tensor) -> None:
        flat = torch.zeros_like(means2d, requires_grad=False).reshape(-1, 2)
        cast(Any, means2d).absgrad = flat.index_add(0, flatten_ids, grad.abs().sum(1)).view_as(means2d)

    centers.register_hook(add_up)
    return centers


def _composite_tile(
    centers: Tensor,  # [G, 1 or P, 2] front to back
    conics: Tensor,  # [G, 3]
    colors: Tensor,  # [G, D]
    opacities: Tensor,  # [G]
    pixels: Tensor,  # [P, 2]
) -> tuple[Tensor, Tensor]:
    """Colours [P, D] and remaining transmittance [P, 1] of pixels behind G splats (Kerbl et al., eq. 3)."""
    dx, dy = (centers - pixels).unbind(-1)  # [G, P]
    a, b, c = conics[..., None].unbind(1)  # [G, 1]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    # sigma < 0 comes from rounding and is skipped below; the clamp keeps exp from overflowing into gradients
    alpha = (opacities[:, None] * (-sigma.clamp_min(0)).exp()).clamp_max(ALPHA_MAX)
    with torch.no_grad():
        counted = (sigma >= 0) & (alpha >= ALPHA_MIN)
        left = torch.where(counted, 1 - alpha, 1).cumprod(0)
        counted &= left > TRANSMITTANCE_STOP  # it only falls: all behind the first refused are refused
    alpha = torch.where(counted, alpha, 0)
    clear = torch.ones_like(pixels[None, :, 0])  # [1, P]
    passed = torch.cat([clear, 1 - alpha]).cumprod(0)  # [G + 1, P] in front of each splat, behind the last
    weights = alpha * passed[:-1]  # [G, P]
    return weights.T @ colors, passed[-1][:, None]
