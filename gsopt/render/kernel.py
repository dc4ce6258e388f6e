"""The native kernel as autograd functions: Gaussians to splats, and splats to images.

Each takes all cameras of a call and loops over them; the kernel renders one at a time.
"""

import weakref
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsopt.native import Camera, Frame, check, library, pointer, workspace
from gsopt.render.call import RenderCall


class Watch:
    """The public `info["means2d"]` as the backward pass sees it, without keeping it alive."""

    def __init__(self, means2d: Tensor, rows: tuple[Tensor, Tensor] | None) -> None:
        self._tensor = weakref.ref(means2d)
        self._rows = rows

    def asks_gradient(self) -> bool:
        """Whether somebody will read its gradient, though no geometry is being trained."""
        tensor = self._tensor()
        return tensor is not None and (tensor.retains_grad or bool(tensor._backward_hooks))

    def set_absgrad(self, absgrad: Tensor) -> None:
        """absgrad: [C, N, 2]"""
        tensor = self._tensor()
        if tensor is not None:
            cast(Any, tensor).absgrad = absgrad if self._rows is None else absgrad[self._rows]


class Anchor(torch.autograd.Function):
    """Gives means2d a place in the graph where all geometry is frozen, so that `retain_grad` works.

    It is no leaf, so that a gradient is computed only if somebody asks for it.
    """

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, anchor: Tensor) -> Tensor:
        return means2d.view_as(means2d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def camera_struct(call: RenderCall, index: int) -> Camera:
    """A call's camera as the kernel knows it."""
    view = call.viewmats[index].detach().tolist()
    (fx, _, cx), (_, fy, cy), _ = call.Ks[index].detach().tolist()
    return Camera(
        (*view[0][:3], *view[1][:3], *view[2][:3]),
        (view[0][3], view[1][3], view[2][3]),
        *(fx, fy, cx, cy),
        *(call.width, call.height),
        *(call.near_plane, call.far_plane, call.radius_clip, call.eps2d),
        *(call.antialiased, call.raw),
    )


class Splat(torch.autograd.Function):
    """Gaussians to splats, in the kernel's frames.

    Returns means2d [C, N, 2]; blurred covariances xx, xy, yy [C, N, 3]; depths [C, N]; opacities as they are
    composited [C, N], None where they are those given; colours max(harmonics + 1/2, 0) [C, N, 3], None
    without harmonics; and radii int32 [C, N, 2]. Zeros where there is no splat.

    What no input asks a gradient of gives none, so that compositing does not work one out for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: RenderCall,
        frames: list[Frame],
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        first: Tensor | None,
        others: Tensor | None,
        viewmats: Tensor,
    ) -> tuple[Tensor | None, ...]:
        shape = (call.num_cameras, call.num_gaussians)
        inputs = [tensor.contiguous() for tensor in (means, quats, scales, opacities)]
        harmonics = [tensor.contiguous() for tensor in (first, others) if tensor is not None]
        means2d = workspace.empty("means2d", (*shape, 2))
        covars2d = workspace.empty("covars2d", (*shape, 3))
        depths = workspace.empty("depths", shape)
        radii = workspace.empty("radii", (*shape, 2), torch.int32)
        composited = workspace.empty("opacities", shape) if call.raw or call.antialiased else None
        colors = workspace.empty("colors", (*shape, 3)) if harmonics else None
        splats = (radii, means2d, covars2d, depths, composited)
        ctx.cameras = [camera_struct(call, c) for c in range(call.num_cameras)]  # callers may refill viewmats
        for c, camera in enumerate(ctx.cameras):
            rows = (*map(pointer, inputs), *(pointer(tensor, c) for tensor in splats))
            check(library().gsopt_project(frames[c].handle, camera, shape[1], *rows))
            if harmonics:
                rows = (pointer(inputs[0]), *_of_camera(harmonics, c), pointer(radii, c), pointer(colors, c))
                check(library().gsopt_sh(camera, *_sizes(call, harmonics), *rows))
        ctx.call = call
        ctx.save_for_backward(radii, colors, *inputs, *harmonics)
        ctx.mark_non_differentiable(*_unasked(ctx, means2d, covars2d, depths, composited, colors), radii)
        ctx.set_materialize_grads(False)
        return means2d, covars2d, depths, composited, colors, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = tuple(None if grad is None else grad.contiguous() for grad in grads[:5])
        saved, shared = ctx.saved_tensors, ctx.saved_tensors[-1].ndim == 3
        total: list[Tensor | None] = [None] * 4
        coefficients: list[list[Tensor | None]] = []
        v_viewmats = torch.zeros_like(ctx.call.viewmats) if ctx.needs_input_grad[8] else None
        for c in range(ctx.call.num_cameras):
            v_camera = None if v_viewmats is None else v_viewmats.new_zeros(12)
            gaussians = _project_backward(ctx, saved, grads, c, v_camera)
            coefficients.append(_harmonics_backward(ctx, saved, grads[4], c, gaussians[0], v_camera))
            total = [_add(a, b) for a, b in zip(total, gaussians, strict=True)]
            if v_viewmats is not None and v_camera is not None:
                v_viewmats[c, :3, :3] = v_camera[:9].view(3, 3)
                v_viewmats[c, :3, 3] = v_camera[9:]
        joined = (_join(of_cameras, shared) for of_cameras in zip(*coefficients, strict=True))
        return None, None, *total, *joined, v_viewmats


# Positions of the inputs of `Splat` that get gradients.
_MEANS, _OPACITIES, _FIRST, _OTHERS, _VIEWMATS = 2, 5, 6, 7, 8


def _moves(ctx: Any) -> bool:
    """Whether a gradient of the splats' places and shapes is asked for."""
    return any(ctx.needs_input_grad[_MEANS:_OPACITIES]) or ctx.needs_input_grad[_VIEWMATS]


def _unasked(
    ctx: Any,
    means2d: Tensor,
    covars2d: Tensor,
    depths: Tensor,
    opacities: Tensor | None,
    colors: Tensor | None,
) -> Iterator[Tensor]:
    """The results that no input asks a gradient of; so compositing does not work one out for them."""
    needs, moves = ctx.needs_input_grad, _moves(ctx)
    if not moves:
        yield from (means2d, covars2d, depths)
    if opacities is not None and not (needs[_OPACITIES] or (moves and ctx.call.antialiased)):
        yield opacities
    turns = ctx.call.sh_degree and (needs[_MEANS] or needs[_VIEWMATS])
    if colors is not None and not (needs[_FIRST] or needs[_OTHERS] or turns):
        yield colors


def _project_backward(
    ctx: Any, saved: Sequence[Tensor], grads: Sequence[Tensor | None], camera: int, v_camera: Tensor | None
) -> list[Tensor | None]:
    """Gradients of means, quats, scales and opacities by one camera, as far as they are asked for."""
    call, (radii, _, *inputs) = ctx.call, saved[:6]
    wanted = list(ctx.needs_input_grad[_MEANS : _OPACITIES + 1])
    wanted[3] &= call.raw or call.antialiased  # otherwise opacities go straight to compositing
    outputs = [
        workspace.empty(f"v_{name}", tensor.shape) if want else None
        for name, want, tensor in zip(_GEOMETRY, wanted, inputs, strict=True)
    ]
    if any(wanted) or v_camera is not None:
        of_camera = (pointer(grad, camera) for grad in grads[:4])
        rows = (*map(pointer, inputs), pointer(radii, camera), *of_camera, *map(pointer, outputs))
        check(
            library().gsopt_project_backward(
                ctx.cameras[camera], call.num_gaussians, *rows, pointer(v_camera)
            )
        )
    return outputs


_GEOMETRY = ("means", "quats", "scales", "opacities")


def _harmonics_backward(
    ctx: Any,
    saved: Sequence[Tensor],
    v_colors: Tensor | None,
    camera: int,
    v_means: Tensor | None,
    v_camera: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of the coefficients by one camera; those by the view are added to `v_means`, `v_camera`."""
    if v_colors is None:
        return [None, None]
    radii, colors, means, *_, first, others = saved
    outputs = [
        workspace.empty(name, tensor.shape[-3:]) if want else None
        for name, want, tensor in zip(
            ("v_first", "v_others"), ctx.needs_input_grad[_FIRST : _OTHERS + 1], (first, others), strict=True
        )
    ]
    rows = (pointer(means), *_of_camera((first, others), camera), pointer(radii, camera))
    rows += (pointer(colors, camera), pointer(v_colors, camera))
    rows += tuple(map(pointer, (*outputs, v_means, v_camera)))
    check(library().gsopt_sh_backward(ctx.cameras[camera], *_sizes(ctx.call, (first, others)), *rows))
    return outputs


def _sizes(call: RenderCall, harmonics: Sequence[Tensor]) -> tuple[int, int, int]:
    """Gaussians, degree in use, and bands above the first that there are."""
    assert call.sh_degree is not None
    return call.num_gaussians, call.sh_degree, harmonics[1].shape[-2]


def _of_camera(harmonics: Sequence[Tensor], camera: int) -> Iterator[int | None]:
    """Addresses of the camera's own coefficients, or of those that all share. [N, K, 3]"""
    return (pointer(tensor, camera if tensor.ndim == 4 else 0) for tensor in harmonics)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sum of two gradients, either of which may be absent."""
    return b if a is None else a if b is None else a.add_(b)


def _join(gradients: Sequence[Tensor | None], shared: bool) -> Tensor | None:
    """Of all cameras' coefficients: summed where they are shared, else one after another."""
    found = [gradient for gradient in gradients if gradient is not None]
    if not found:
        return None
    return reduce(Tensor.add_, found) if shared else torch.stack(found)


class Rasterize(torch.autograd.Function):
    """Splats of the frames to images [C, H, W, D] and alphas [C, H, W, 1].

    `means2d`, `covars2d` and `opacities` are not read: the frames hold their values. They take the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: RenderCall,
        frames: list[Frame],
        watch: Watch,
        colors_change: bool,
        means2d: Tensor,
        covars2d: Tensor,
        opacities: Tensor,
        values: Tensor,
        backgrounds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        channels = values.shape[-1]
        images = workspace.empty("images", (len(frames), call.height, call.width, channels))
        alphas = workspace.empty("alphas", (len(frames), call.height, call.width, 1))
        values = values.contiguous()
        backgrounds = None if backgrounds is None else backgrounds.contiguous()
        for c, frame in enumerate(frames):
            check(library().gsopt_set_colors(frame.handle, channels, pointer(values, c)))
            outputs = (pointer(tensor, c) for tensor in (backgrounds, images, alphas))
            check(library().gsopt_rasterize(frame.handle, channels, *outputs))
        ctx.call, ctx.frames, ctx.watch, ctx.channels = call, frames, watch, channels
        # With several parts, the frames may hold another part's colours by the time of the backward pass.
        ctx.colors_change = colors_change
        ctx.save_for_backward(backgrounds, values if colors_change else None, alphas)
        ctx.set_materialize_grads(False)
        return images, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_images: Tensor | None, v_alphas: Tensor | None) -> tuple[Tensor | None, ...]:
        call, channels = ctx.call, ctx.channels
        backgrounds, values, alphas = ctx.saved_tensors
        shape = (call.num_cameras, call.num_gaussians)
        if v_images is None:
            v_images = alphas.new_zeros(*alphas.shape[:3], channels)
        v_images = v_images.contiguous()
        v_alphas = None if v_alphas is None else v_alphas.contiguous()
        _, _, _, _, _, geometry, opacity, color, behind = ctx.needs_input_grad
        outputs = tuple(
            workspace.empty(name, (*shape, *size)) if wanted else None
            for name, size, wanted in (
                ("v_means2d", (2,), geometry or ctx.watch.asks_gradient()),
                ("v_absolute", (2,), call.absgrad),
                ("v_covars2d", (3,), geometry),
                ("v_values", (channels,), color),
                ("v_splat_opacities", (), opacity),
            )
        )
        v_means2d, v_absolute, v_covars2d, v_values, v_opacities = outputs
        for c, frame in enumerate(ctx.frames):
            if ctx.colors_change:
                check(library().gsopt_set_colors(frame.handle, channels, pointer(values, c)))
            of_camera = (pointer(tensor, c) for tensor in (backgrounds, v_images, v_alphas, *outputs))
            check(library().gsopt_rasterize_backward(frame.handle, channels, *of_camera))
        if v_absolute is not None:
            ctx.watch.set_absgrad(v_absolute)
        v_backgrounds = ((1 - alphas) * v_images).sum((1, 2)) if behind else None
        return None, None, None, None, v_means2d, v_covars2d, v_opacities, v_values, v_backgrounds
