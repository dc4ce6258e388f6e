"""Rasterization of Gaussians: one interface, three backends.

`reference` is plain PyTorch, slow and readable; `cpu` is the native kernel; `cuda` is gsplat. Each is a
module with one function `render(call) -> (colors, alphas, info)`.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from gsopt.render.call import RenderCall

BACKENDS = ("reference", "cpu", "cuda")
_CAMERA_MODELS = ("pinhole", "ortho", "fisheye", "ftheta")


def rasterization(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor | tuple[Tensor, Tensor],
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: Any = None,
    rolling_shutter: Any = "GLOBAL",
    viewmats_rs: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render Gaussians into the images of C pinhole cameras, differentiably.

    The arguments, their order and defaults, and the results are those of gsplat 1.5.3's `rasterization`. The
    model is that of 3DGS (Kerbl et al. 2023): each Gaussian is projected with the local affine approximation
    of Zwicker et al. (2001) and alpha-composited front to back.

    Args:
        means: centres in world units. [N, 3]
        quats: rotations w, x, y, z of any length. [N, 4]; may be None with `covars`.
        scales: standard deviations in world units. [N, 3]; may be None with `covars`.
        opacities: 0 to 1. [N]
        colors: values of D channels [N, D], or per camera [C, N, D]. With `sh_degree`: spherical harmonics
            coefficients [N, K, 3] or [C, N, K, 3], or a pair of the first coefficient [N, 1, 3] and the
            others [N, K-1, 3], which saves a concatenation.
        viewmats: world-to-camera matrices, camera axes x right, y down, z forward. [C, 4, 4]
        Ks: intrinsics in pixels, centres of pixels at +0.5. [C, 3, 3]
        width, height: size of the images in pixels.
        near_plane, far_plane: Gaussians whose centre is nearer or farther (z, world units) are left out.
        radius_clip: Gaussians of this radius or less on the image, in pixels, are left out.
        eps2d: added to the variance of every splat, in pixels squared.
        sh_degree: highest band used, or None when `colors` are values. The colour is the sum of the harmonics
            plus 0.5, at least 0.
        packed: whether `info` has rows only for the visible pairs of camera and Gaussian, [nnz, ...], in
            place of [C, N, ...] with radius 0 and zeros for the others. The images are the same.
        tile_size: pixels; a splat is composited only into the tiles that its rectangle touches.
        backgrounds: colour behind everything. [C, D]
        render_mode: "RGB" (colours), "D" (accumulated z), "ED" (expected z: accumulated z over alpha),
            "RGB+D", "RGB+ED" (depth is the last channel).
        absgrad: after backward, `info["means2d"].absgrad` holds the sum over pixels of the absolute values of
            the gradient (AbsGS, Ye et al. 2024).
        rasterize_mode: "antialiased" scales opacities by sqrt(det(Σ) / det(Σ + eps2d I)), where Σ is the
            covariance on the image (Mip-Splatting, Yu et al. 2024).
        channel_chunk: channels that gsplat composites at once; without influence on the results.
        segmented: way of sorting in gsplat; without influence on the results.
        covars: covariances in world units squared in place of `quats` and `scales`. [N, 3, 3]
        sparse_grad, distributed, camera_model, with_ut, with_eval3d, radial_coeffs, tangential_coeffs,
            thin_prism_coeffs, ftheta_coeffs, rolling_shutter, viewmats_rs: only the defaults are supported.
        backend: "reference", "cpu" or "cuda"; by default "cuda" for float32 tensors on a CUDA device, "cpu"
            for float32 tensors on the CPU, and "reference" for other dtypes and devices.

    Returns:
        A tuple of

        - colors: [C, height, width, D]; D + 1 channels with depth, 1 with depth alone.
        - alphas: [C, height, width, 1], 0 to 1.
        - info: intermediate results under gsplat's keys. `info["means2d"]` is in the graph, and under grad
          mode requires grad also when all geometry is frozen: `retain_grad` works.

    Raises:
        ValueError, TypeError: an argument is unusable; the message names it.
        NotImplementedError: an argument is not supported, here or by the backend; the message names it.
        gsopt.errors.MissingExtra: the backend needs a package that is not installed.
    """
    _reject_unsupported(
        sparse_grad=sparse_grad,
        distributed=distributed,
        camera_model=camera_model,
        with_ut=with_ut,
        with_eval3d=with_eval3d,
        radial_coeffs=radial_coeffs,
        tangential_coeffs=tangential_coeffs,
        thin_prism_coeffs=thin_prism_coeffs,
        ftheta_coeffs=ftheta_coeffs,
        rolling_shutter=rolling_shutter,
        viewmats_rs=viewmats_rs,
    )
    call = RenderCall(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        colors=colors,
        viewmats=viewmats,
        Ks=Ks,
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        packed=packed,
        tile_size=tile_size,
        backgrounds=backgrounds,
        render_mode=render_mode,
        absgrad=absgrad,
        rasterize_mode=rasterize_mode,
        channel_chunk=channel_chunk,
        segmented=segmented,
        covars=covars,
    )
    return _render(call, backend)


def rasterization_of_parameters(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    logits: Tensor,
    harmonics: tuple[Tensor, Tensor],
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int,
    backend: str | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """:func:`rasterization` of Gaussians as a `GaussianModel` stores them, with gradients by what is stored.

    The CPU kernel takes exponentials and sigmoids on its way, which saves torch's passes over memory.
    `info["opacities"]` has the values between 0 and 1.

    Args:
        log_scales: logs of the standard deviations in world units. [N, 3]
        logits: of the opacities. [N] or [N, 1]
        harmonics: coefficients [N, 1, 3] and [N, K-1, 3].
        means, quats, viewmats, Ks, width, height, sh_degree, backend, options: as for `rasterization`.
    """
    call = RenderCall(
        means,
        quats,
        log_scales,
        logits,
        harmonics,
        viewmats,
        Ks,
        width,
        height,
        sh_degree=sh_degree,
        raw=True,
        **options,
    )
    return _render(call, backend)


def _render(call: RenderCall, backend: str | None) -> tuple[Tensor, Tensor, dict[str, Any]]:
    name = _choose_backend(call, backend)
    module = importlib.import_module(f"gsopt.render.{name}")
    return module.render(call if name == "cpu" else call.activated())


def _reject_unsupported(
    *,
    camera_model: str,
    rolling_shutter: Any,
    sparse_grad: bool,
    distributed: bool,
    with_ut: bool,
    with_eval3d: bool,
    **tensors: Any,
) -> None:
    if camera_model not in _CAMERA_MODELS:
        raise ValueError(f"camera_model: expected one of {', '.join(_CAMERA_MODELS)}, found {camera_model!r}")
    if camera_model != "pinhole":
        raise NotImplementedError(f"camera_model: only 'pinhole' is supported, found {camera_model!r}")
    # gsplat's enumeration has members with names; a plain string of the same name will do.
    shutter = getattr(rolling_shutter, "name", rolling_shutter)
    if shutter != "GLOBAL":
        raise NotImplementedError(f"rolling_shutter: only GLOBAL is supported, found {shutter}")
    flags = {
        "sparse_grad": sparse_grad,
        "distributed": distributed,
        "with_ut": with_ut,
        "with_eval3d": with_eval3d,
    }
    for name, value in flags.items():
        if value:
            raise NotImplementedError(f"{name}: only False is supported, found {value!r}")
    for name, value in tensors.items():
        if value is not None:
            raise NotImplementedError(f"{name}: only None is supported, found a {type(value).__name__}")


def _choose_backend(call: RenderCall, name: str | None) -> str:
    device, dtype = call.means.device.type, call.means.dtype
    native = {"cpu": "cpu", "cuda": "cuda"}.get(device) if dtype == torch.float32 else None
    if name is None:
        return native or "reference"
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, found {name!r}")
    if name not in ("reference", native):
        raise ValueError(
            f"backend: {name!r} needs float32 tensors on a {name.upper()} device, found {dtype} on {device}"
        )
    return name
