"""The native kernel as autograd functions: projection, spherical harmonics, compositing.

Each takes all cameras of a call and loops over them; the kernel renders one at a time.
"""

import weakref
from functools import reduce
from typing import Any

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
            tensor.absgrad = absgrad if self._rows is None else absgrad[self._rows]


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


def _camera(call: RenderCall, index: int) -> Camera:
    view = call.viewmats[index].detach().tolist()
    (fx, _, cx), (_, fy, cy), _ = call.Ks[index].detach().tolist()
    camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=call.width, height=call.height)
    camera.rotation[:] = [*view[0][:3], *view[1][:3], *view[2][:3]]
    camera.translation[:] = [view[0][3], view[1][3], view[2][3]]
    camera.near_plane, camera.far_plane = call.near_plane, call.far_plane
    camera.radius_clip, camera.eps2d, camera.antialiased = call.radius_clip, call.eps2d, call.antialiased
    return camera


class Project(torch.autograd.Function):
    """Gaussians to splats, in the kernel's frames.

    Returns means2d [C, N, 2], blurred covariances xx, xy, yy [C, N, 3], depths [C, N], compensated opacities
    [C, N] (empty unless antialiased) and radii int32 [C, N, 2]; zeros where there is no splat.
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
        viewmats: Tensor,
    ) -> tuple[Tensor, ...]:
        shape = (call.num_cameras, call.num_gaussians)
        inputs = [tensor.contiguous() for tensor in (means, quats, scales, opacities)]
        means2d = workspace.empty("means2d", (*shape, 2))
        covars2d = workspace.empty("covars2d", (*shape, 3))
        depths = workspace.empty("depths", shape)
        radii = workspace.empty("radii", (*shape, 2), torch.int32)
        compensated = workspace.empty("compensated", shape if call.antialiased else (call.num_cameras, 0))
        cameras = [_camera(call, c) for c in range(call.num_cameras)]
        for c, (frame, camera) in enumerate(zip(frames, cameras, strict=True)):
            outputs = (radii[c], means2d[c], covars2d[c], depths[c])
            check(
                library().gsopt_project(
                    frame.handle,
                    camera,
                    call.num_gaussians,
                    *map(pointer, inputs),
                    *map(pointer, outputs),
                    pointer(compensated[c]) if call.antialiased else None,
                )
            )
        ctx.call = call
        ctx.cameras = cameras  # as they were now: the caller may refill viewmats before the backward pass
        ctx.save_for_backward(*inputs, radii)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return means2d, covars2d, depths, compensated, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call, (*inputs, radii) = ctx.call, ctx.saved_tensors
        v_means2d, v_covars2d, v_depths, v_compensated = (
            None if grad is None else grad.contiguous() for grad in grads[:4]
        )
        wanted = list(ctx.needs_input_grad[2:6])
        wanted[3] &= call.antialiased  # otherwise opacities go straight to compositing
        v_viewmats = torch.zeros_like(call.viewmats) if ctx.needs_input_grad[6] else None
        total: list[Tensor | None] = [None] * 4
        for c in range(call.num_cameras):
            outputs = [
                workspace.empty(f"v_{name}", tensor.shape) if want else None
                for name, want, tensor in zip(_GEOMETRY, wanted, inputs, strict=True)
            ]
            v_camera = None if v_viewmats is None else v_viewmats.new_empty(12)
            grads_c = (None if grad is None else grad[c] for grad in (v_means2d, v_covars2d, v_depths))
            check(
                library().gsopt_project_backward(
                    ctx.cameras[c],
                    call.num_gaussians,
                    *map(pointer, inputs),
                    pointer(radii[c]),
                    *map(pointer, grads_c),
                    pointer(v_compensated[c]) if call.antialiased and v_compensated is not None else None,
                    *map(pointer, outputs),
                    pointer(v_camera),
                )
            )
            total = [_add(a, b) for a, b in zip(total, outputs, strict=True)]
            if v_viewmats is not None:
                v_viewmats[c, :3, :3] = v_camera[:9].view(3, 3)
                v_viewmats[c, :3, 3] = v_camera[9:]
        return None, None, *total, v_viewmats


_GEOMETRY = ("means", "quats", "scales", "opacities")  # the inputs of `Project` that get gradients


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sum of two gradients, either of which may be absent."""
    return b if a is None else a if b is None else a.add_(b)


class Harmonics(torch.autograd.Function):
    """Colours max(harmonics + 1/2, 0) of visible Gaussians [C, N, 3]; zeros for the others."""

    @staticmethod
    def forward(
        ctx: Any, degree: int, means: Tensor, centers: Tensor, first: Tensor, others: Tensor, radii: Tensor
    ) -> Tensor:
        means, centers, first, others = (t.contiguous() for t in (means, centers, first, others))
        colors = workspace.empty("colors", (*radii.shape[:2], 3))
        for c in range(len(radii)):
            arguments = (means, centers[c], *_of_camera(c, first, others), radii[c], colors[c])
            check(library().gsopt_sh(len(means), degree, others.shape[-2], *map(pointer, arguments)))
        ctx.degree = degree
        ctx.save_for_backward(means, centers, first, others, radii, colors)
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor | None, ...]:
        means, centers, first, others, radii, colors = ctx.saved_tensors
        v_colors = v_colors.contiguous()
        shared = first.ndim == 3  # one set of coefficients for all cameras
        v_means, v_first, v_others = None, [], []
        v_centers = torch.empty_like(centers) if ctx.needs_input_grad[2] else None
        for c in range(len(radii)):
            of_camera = _of_camera(c, first, others)
            outputs = [
                workspace.empty(name, tensor.shape) if want else None
                for name, want, tensor in zip(
                    ("v_first", "v_others"), ctx.needs_input_grad[3:5], of_camera, strict=True
                )
            ]
            v_camera_means = workspace.empty("v_means", means.shape) if ctx.needs_input_grad[1] else None
            arguments = (means, centers[c], *of_camera, radii[c], colors[c], v_colors[c])
            arguments += (*outputs, v_camera_means, None if v_centers is None else v_centers[c])
            check(
                library().gsopt_sh_backward(
                    len(means), ctx.degree, others.shape[-2], *map(pointer, arguments)
                )
            )
            v_means = _add(v_means, v_camera_means)
            v_first.append(outputs[0])
            v_others.append(outputs[1])
        return None, v_means, v_centers, _join(v_first, shared), _join(v_others, shared), None


def _of_camera(camera: int, *coefficients: Tensor) -> list[Tensor]:
    """The camera's own coefficients, or those that all share. [N, K, 3]"""
    return [tensor if tensor.ndim == 3 else tensor[camera] for tensor in coefficients]


def _join(gradients: list[Tensor | None], shared: bool) -> Tensor | None:
    if gradients[0] is None:
        return None
    return reduce(_add, gradients) if shared else torch.stack(gradients)


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
            check(library().gsopt_set_colors(frame.handle, channels, pointer(values[c])))
            outputs = (None if backgrounds is None else backgrounds[c], images[c], alphas[c])
            check(library().gsopt_rasterize(frame.handle, channels, *map(pointer, outputs)))
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
        outputs = (
            workspace.empty(name, (*shape, *size)) if wanted else None
            for name, size, wanted in (
                ("v_means2d", (2,), geometry or ctx.watch.asks_gradient()),
                ("v_absolute", (2,), call.absgrad),
                ("v_covars2d", (3,), geometry),
                ("v_values", (channels,), color),
                ("v_splat_opacities", (), opacity),
            )
        )
        v_means2d, v_absolute, v_covars2d, v_values, v_opacities = outputs = tuple(outputs)
        for c, frame in enumerate(ctx.frames):
            if ctx.colors_change:
                check(library().gsopt_set_colors(frame.handle, channels, pointer(values[c])))
            arguments = (backgrounds, v_images, v_alphas, *outputs)
            of_camera = (None if tensor is None else tensor[c] for tensor in arguments)
            check(library().gsopt_rasterize_backward(frame.handle, channels, *map(pointer, of_camera)))
        if v_absolute is not None:
            ctx.watch.set_absgrad(v_absolute)
        v_backgrounds = ((1 - alphas) * v_images).sum((1, 2)) if behind else None
        return None, None, None, None, v_means2d, v_covars2d, v_opacities, v_values, v_backgrounds
