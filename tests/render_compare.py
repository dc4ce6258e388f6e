"""Comparing rasterizer backends of different precision, and what comparing them fairly means.

Two precisions can only agree where the picture is a continuous function of the numbers. It is not at the
edges where a Gaussian is dropped or kept (alpha 1/255, transmittance 1e-4, near plane, equal depths, radius
rounded up), and its derivative is not where something is clamped (alpha 0.999, colour 0, field of view).
`ambiguity` computes all these quantities in float64, bounds the error that float32 can make in each, and
names the first that lies within a few such errors of its edge. Also refused is what float32 cannot hold:
splats so thin on the image that inverting their covariance loses the digits. On scenes without ambiguity the
reference in float32 agrees with itself in float64 to half of `TOLERANCE`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsopt.geometry import camera_centers, spherical_harmonics
from gsopt.render import rasterization, reference
from gsopt.render.call import (
    ALPHA_MAX,
    ALPHA_MIN,
    COLOR_OFFSET,
    EXTENT_SIGMAS,
    TRANSMITTANCE_STOP,
    RenderCall,
)

Scene = dict[str, Any]
TOLERANCE = 1e-4  # largest error in a tensor, relative to the largest magnitude in it

EPS = 2.0**-24  # relative rounding error of float32
SAFETY = 8  # quantities within so many estimated errors of an edge are ambiguous
MAX_CONDITION = 200  # of the covariance on the image, as xx * yy / determinant


def is_ambiguous(scene: Scene) -> bool:
    """Whether float32 and float64 may rightly disagree on the scene."""
    return ambiguity(scene) is not None


@torch.no_grad()
def ambiguity(scene: Scene) -> str | None:
    """The first discontinuity that float32 may fall on the wrong side of, or None; see the file's head."""
    call = RenderCall(**scene)
    found = _ambiguous_projection(call)
    for camera in range(call.num_cameras):
        found = found or _ambiguous_compositing(call, camera)
    return found


def _ambiguous_projection(call: RenderCall) -> str | None:
    camera_ids = torch.arange(call.num_cameras).repeat_interleave(call.num_gaussians)
    gaussian_ids = torch.arange(call.num_gaussians).repeat(call.num_cameras)
    means2d, depths, covars2d, compensations = reference.project_pairs(call, camera_ids, gaussian_ids)
    size = call.means[gaussian_ids].norm(dim=-1) + call.viewmats[camera_ids, :3, 3].norm(dim=-1)
    error_z = 4 * EPS * size  # z is a difference of numbers of this size
    near = ((depths - call.near_plane).abs() < SAFETY * error_z).any()
    far = ((depths - call.far_plane).abs() < SAFETY * error_z).any()
    if near or far:
        return "depth at the near or far plane"

    inside = (depths > call.near_plane) & (depths < call.far_plane)
    means2d, depths, covars2d = means2d[inside], depths[inside], covars2d[inside]
    relative = (error_z[inside] / depths + 8 * EPS)[:, None]  # [M, 1] error of what is divided by z
    a, b, c = covars2d.unbind(-1)
    opacities = call.opacities[gaussian_ids[inside]] * compensations[inside]
    thinness = (call.eps2d / a.minimum(c)).clamp_max(1) if call.antialiased else torch.zeros_like(a)
    loss = 40 * relative[:, 0] * (1 + thinness / compensations[inside].square().clamp_min(1e-6))
    if ((opacities / ALPHA_MIN).log().abs() < loss).any():
        return "opacity at 1/255"

    seen = opacities > ALPHA_MIN
    condition = (a * c / (a * c - b * b))[seen]
    if (condition > MAX_CONDITION).any():
        return "splat too thin for float32"
    extent = (2 * (opacities / ALPHA_MIN).log()).clamp_min(0).sqrt().clamp_max(EXTENT_SIGMAS)[:, None]
    radii = extent * torch.stack([a, c], dim=-1).sqrt()
    slack = SAFETY * (relative * radii + loss[:, None] / extent.clamp_min(1e-3) * radii)[seen]
    if ((radii[seen] - radii[seen].round()).abs() < slack).any():
        return "radius at a whole number"
    edges = torch.stack([means2d + radii.ceil(), means2d - radii.ceil()])[:, seen]  # tiles begin at multiples
    nearest = (edges / call.tile_size).round() * call.tile_size
    image = torch.tensor([call.width, call.height], dtype=edges.dtype)
    slack = SAFETY * relative[seen] * (means2d[seen].abs() + image)
    if ((edges - nearest).abs() < slack).any() or ((edges - image).abs() < slack).any():
        return "rectangle at the edge of a tile or of the image"
    return _ambiguous_slopes(call, camera_ids[inside][seen], means2d[seen], relative[seen])


def _ambiguous_slopes(call: RenderCall, camera_ids: Tensor, means2d: Tensor, relative: Tensor) -> str | None:
    for axis, size in enumerate((call.width, call.height)):
        focal, center = call.Ks[camera_ids, axis, axis], call.Ks[camera_ids, axis, 2]
        slope = (means2d[:, axis] - center) / focal
        for limit in reference.slope_limits(focal, center, size):
            if ((slope - limit).abs() < SAFETY * relative[:, 0] * (1 + slope.abs())).any():
                return "slope at the edge of the field of view"
    return None


def _ambiguous_compositing(call: RenderCall, camera: int) -> str | None:
    splats = reference.project(call)
    rows = (splats.camera_ids == camera).nonzero()[:, 0]
    rows = rows[splats.depths[rows].float().argsort(stable=True)]
    gaussian_ids, depths = splats.gaussian_ids[rows], splats.depths[rows]
    size = call.means[gaussian_ids].norm(dim=-1) + call.viewmats[camera, :3, 3].norm()
    error_z = 4 * EPS * size
    gaps = depths.diff().abs()
    if ((gaps < SAFETY * error_z[1:]) & (gaps > 0)).any():
        return "nearly equal depths"
    if call.sh_degree is not None and _ambiguous_colors(call, camera, gaussian_ids):
        return "colour at zero"
    relative = (error_z / depths + 8 * EPS)[:, None]  # [G, 1]
    log_alpha, error = _log_alphas(call, splats.means2d[rows], splats.conics[rows], relative)
    log_alpha = log_alpha + (call.opacities[gaussian_ids] * splats.compensations[rows]).log()[:, None]
    if ((log_alpha - math.log(ALPHA_MIN)).abs() < 2 * error).any():
        return "alpha at 1/255"
    if ((log_alpha - math.log(ALPHA_MAX)).abs() < 2 * error).any():
        return "alpha at 0.999"
    alpha = torch.where(log_alpha > math.log(ALPHA_MIN), log_alpha.exp().clamp_max(ALPHA_MAX), 0)
    left = (1 - alpha).log().cumsum(0)
    error = torch.where(alpha >= ALPHA_MAX, EPS, error * alpha) / (1 - alpha)
    if ((left - math.log(TRANSMITTANCE_STOP)).abs() < 2 * error.cumsum(0)).any():
        return "transmittance at 1e-4"
    return None


def _ambiguous_colors(call: RenderCall, camera: int, gaussian_ids: Tensor) -> bool:
    rows = torch.cat(call.sh_parts, dim=-2)
    coeffs = (rows if rows.ndim == 3 else rows[camera])[gaussian_ids]
    dirs = call.means[gaussian_ids] - camera_centers(call.viewmats)[camera]
    colors = spherical_harmonics(call.sh_degree, dirs, coeffs) + COLOR_OFFSET
    return bool((colors.abs() < 100 * EPS).any())


def _log_alphas(call: RenderCall, means2d: Tensor, conics: Tensor, relative: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of alpha over opacity at every pixel, and a bound on its error in float32. Both [G, P]"""
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 for n in (call.height, call.width)]
    y, x = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    dx, dy = means2d[:, :1] - x, means2d[:, 1:] - y  # [G, P]
    a, b, c = conics[..., None].unbind(1)  # [G, 1]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    terms = 0.5 * (a * dx * dx + c * dy * dy) + (b * dx * dy).abs()
    condition = a * c / (a * c - b * b)
    slope = (a * dx + b * dy).abs() + (b * dx + c * dy).abs()  # derivative of sigma by the centre
    place = means2d.abs().amax(-1, keepdim=True) + max(call.width, call.height)
    return -sigma, relative * (condition * terms + slope * place + 1)


def results(
    scene: Scene,
    backend: str,
    dtype: torch.dtype,
    frozen: tuple[str, ...] = (),
    render: Callable[..., tuple] = rasterization,
) -> dict[str, Tensor]:
    """Images, radii, and the gradients of all inputs but `frozen` for a fixed random weighting of the images.

    Rows of radii and of the gradients of means2d are the visible pairs, whether packed or not.
    """
    inputs = {}
    for name, value in scene.items():
        tensors = value if isinstance(value, tuple) else (value,)
        if isinstance(tensors[0], Tensor):
            trained = name not in frozen and name != "Ks"
            copies = tuple(tensor.to(dtype).clone().requires_grad_(trained) for tensor in tensors)
            inputs[name] = copies if isinstance(value, tuple) else copies[0]
    colors, alphas, info = render(**{**scene, **inputs}, backend=backend)
    info["means2d"].retain_grad()
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.rand(image.shape, generator=generator, dtype=torch.float64).to(image) - 0.3
        for image in (colors, alphas)
    ]
    if scene["render_mode"].endswith("ED"):
        # Where a pixel sees one splat, expected depth does not depend on its alpha: the gradient is the
        # difference of two equal terms in 1 / alpha. Weighted with alpha, what rounding leaves stays small.
        weights[0][..., -1:] *= alphas.detach()
    ((colors * weights[0]).sum() + (alphas * weights[1]).sum()).backward()
    visible = (info["radii"] > 0).all(-1)
    found = {"images": colors.detach(), "alphas": alphas.detach(), "radii": info["radii"][visible]}
    for name, value in inputs.items():
        for i, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
            if tensor.requires_grad:
                grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                found[f"grad of {name}[{i}]" if isinstance(value, tuple) else f"grad of {name}"] = grad
    found["grad of means2d"] = info["means2d"].grad[visible]
    if scene["absgrad"]:
        found["absgrad"] = info["means2d"].absgrad[visible]
    return found


def disagreements(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE
) -> dict[str, str]:
    """What differs: name -> how. Radii must be equal, all else to `tolerance` of a tensor's largest value."""
    problems = {}
    if found.keys() != expected.keys():
        return {"results": f"{sorted(found)} is not {sorted(expected)}"}
    for name, wanted in expected.items():
        got = found[name]
        if got.shape != wanted.shape:
            problems[name] = f"shape {list(got.shape)} is not {list(wanted.shape)}"
        elif wanted.dtype == torch.int32:
            if not torch.equal(got, wanted):
                problems[name] = f"{int((got != wanted).sum())} of {wanted.numel()} differ"
        elif (error := relative_error(got, wanted)) > tolerance:
            problems[name] = f"relative error {error:.2e}"
    return problems


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude expected; infinite where found is not finite."""
    if expected.numel() == 0:
        return 0.0
    difference = (found.double() - expected.double()).abs().max()
    largest = expected.abs().max()
    if not difference.isfinite():
        return math.inf
    return float(difference / largest) if largest > 0 else (math.inf if difference > 0 else 0.0)
