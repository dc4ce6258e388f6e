"""A training view without autograd: image, photometric loss and all gradients in one call of the CPU kernel.

The same bits as `render_view`, `losses.photometric` and `loss.backward()`, its slow twin, which go through
autograd and a dozen calls. Those cost a step a millisecond, as much as the arithmetic of some thousand
Gaussians: the kernel's data drives Python's code out of the processor's caches, so that whatever is done
once a step is slow. What stays the same from step to step is kept (`_Plan`).
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from gsopt import native
from gsopt.cameras import Camera
from gsopt.model import GaussianModel
from gsopt.native import Frame, SplatRows, check, is_plain, library, pointer, workspace
from gsopt.render.call import RenderCall
from gsopt.render.cpu import MAX_DEGREE, conics
from gsopt.render.info import RenderInfo, sizes
from gsopt.render.kernel import camera_struct

_INPUTS = ("means", "quats", "scales", "opacities", "dc", "rest")  # what the kernel calls `_parameters`
_GEOMETRY = ("means", "quats", "scales")
# A row of what the forward pass gives of a Gaussian, and of the gradients that its parameters' follow from.
_SPLATS = {
    **{"means2d": (2,), "cov2d": (3,), "depths": (), "splat_opacities": (), "colors": (3,)},
    **{"v_means2d": (2,), "v_absolute": (2,), "v_cov2d": (3,), "v_colors": (3,), "v_splat_opacities": ()},
}
_OWN = ("colors", "v_image", "v_cov2d", "v_colors", "v_splat_opacities")  # that nobody gets to see
_UNUSED = 2  # references to an array that no tensor uses: of the list or dict that it is in, and of the loop


class Direct(NamedTuple):
    """What a view gave beside the gradients."""

    loss: Tensor  # [], without a graph
    terms: dict[str, Tensor]  # as `photometric` gives them
    image: Tensor  # [H, W, 3]
    info: RenderInfo  # with means2d.grad, and means2d.absgrad if asked for
    finite: bool  # known: the loss, all gradients of parameters, and means2d.grad


class DirectView:
    """The loss of a view and its gradients, for one model again and again.

    Args:
        options: for `gsopt.rasterization`, the same for all views.
    """

    def __init__(self, model: GaussianModel, *, backend: None = None, **options: Any) -> None:
        self.model, self.options = model, options
        self._plan: _Plan | None = None
        self._structs: WeakKeyDictionary[Camera, tuple] = WeakKeyDictionary()

    def backward(
        self,
        camera: Camera,
        background: Tensor,
        photo: Tensor,
        ssim_weight: float,
        sh_degree: int,
        grad2d: bool,
        mask: Tensor | None = None,
    ) -> Direct | None:
        """Render a view, compare it with its photo, and add the gradients to the parameters' `.grad`.

        None, with nothing done, where autograd is needed: for what is not float32 on the CPU, and for hooks.

        Args:
            camera: of the view.
            background: colour behind the Gaussians. float32 [3]
            photo: uint8, or float32 in 0..1. [H, W, 3]
            ssim_weight: as for `photometric`.
            sh_degree: highest band used.
            grad2d: whether `info["means2d"].grad` is wanted where no geometry is trained, too.
            mask: as for `photometric`. bool [H, W]

        Raises:
            MemoryError: no memory for the kernel's buffers.
            ValueError: photo, background or mask do not fit the camera.
        """
        if photo.shape != (camera.height, camera.width, 3):
            raise ValueError(f"photo: expected {camera.height}x{camera.width}x3, found {list(photo.shape)}")
        of_bytes = photo.dtype == torch.uint8
        if not (of_bytes or is_plain(photo)) or not photo.is_contiguous() or not is_plain(background):
            return None
        if mask is not None and (mask.shape != photo.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask: expected bool {list(photo.shape[:2])}, found {mask.dtype} {list(mask.shape)}"
            )
        plan = self._plan_for(camera, background, sh_degree, grad2d)
        if plan is None:
            return None
        view, results = plan.view, plan.results()
        view.target8, view.target = (pointer(photo), None) if of_bytes else (None, pointer(photo))
        view.background, view.mask, view.weight = pointer(background), pointer(mask), ssim_weight
        view.image, view.loss = results.addresses
        frame = Frame()
        check(library().gsopt_view_gradients(frame.handle, self._struct(camera, plan), view))
        alone = plan.give_gradients()
        image, loss, l1, index = map(torch.from_numpy, results.arrays)
        return Direct(loss, {"l1": l1, "ssim": index}, image, plan.info(), bool(view.finite) and alone)

    @property
    def kept(self) -> dict[int, int]:
        """What lies in memory from view to view, the gradients included: bytes by address."""
        return {} if self._plan is None else self._plan.kept

    def _struct(self, camera: Camera, plan: "_Plan") -> native.Camera:
        """The kernel's, made once for each camera as long as nobody changes its tensors."""
        versions = camera.viewmat._version, camera.K._version
        struct, known = self._structs.get(camera, (None, None))
        if known != versions:
            struct = plan.camera(camera)
            self._structs[camera] = struct, versions
        return struct

    def _plan_for(self, camera: Camera, background: Tensor, sh_degree: int, grad2d: bool) -> "_Plan | None":
        """The last one, if it is of the same tensors and settings and nobody holds on to its results.

        None where the parameters need autograd.
        """
        key = (camera.width, camera.height, sh_degree, grad2d, [*map(_place, _parameters(self.model))])
        if self._plan is None or self._plan.key != key or not self._plan.is_free():
            self._plan = None  # its memory is free for the next
            if self.model.max_sh_degree > MAX_DEGREE or not all(map(_fits, _parameters(self.model))):
                return None
            call = _call(self.model, camera, background, sh_degree, self.options)
            self._plan = _Plan(key, self.model, call, grad2d)
        return self._plan


def _parameters(model: GaussianModel) -> list[nn.Parameter]:
    own: Any = model._parameters  # attributes of a module are found by a function in Python
    return [own[name] for name in ("xyz", "rotation", "scaling", "opacity", "feature_dc", "feature_rest")]


def _fits(parameter: nn.Parameter) -> bool:
    """Whether the kernel can read it, and autograd would call nobody."""
    return is_plain(parameter) and not (parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _place(parameter: nn.Parameter) -> tuple:
    """All that a plan depends on. The plan keeps the parameter alive, so no other has its id."""
    return (
        id(parameter),
        parameter.data_ptr(),
        parameter.shape,
        parameter.stride(),
        parameter.requires_grad,
        bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks),
    )


def _call(
    model: GaussianModel, camera: Camera, background: Tensor, sh_degree: int, options: Mapping[str, Any]
) -> RenderCall:
    means, quats, scales, opacities, first, others = _parameters(model)
    return RenderCall(
        means,
        quats,
        scales,
        opacities,
        (first, others),
        camera.viewmat[None],
        camera.K[None],
        camera.width,
        camera.height,
        sh_degree=sh_degree,
        raw=True,
        backgrounds=background[None],
        packed=False,
        **options,
    )


class _Plan:
    """The kernel's arguments and the memory of its results, for views of one size of one set of tensors.

    Results are lent: a tensor holds the array that it is of, so the array's references say if it is in use.
    """

    def __init__(self, key: tuple, model: GaussianModel, call: RenderCall, grad2d: bool) -> None:
        self.key = key
        self._call = call  # of its camera only the size is used
        self._parameters = dict(zip(_INPUTS, _parameters(model), strict=True))
        trained = {f"v_{name}": p for name, p in self._parameters.items() if p.requires_grad}
        shapes = {name: (1, call.num_gaussians, *size) for name, size in self._splats(grad2d).items()}
        shapes |= {name: tuple(parameter.shape) for name, parameter in trained.items()}
        shapes["v_image"] = (call.height, call.width, 3)
        self._lent = {name: workspace.array(name, shape) for name, shape in shapes.items()}
        self._lent["radii"] = workspace.array("radii", (1, call.num_gaussians, 2), np.int32)
        self.view = native.View(
            n=call.num_gaussians,
            degree=call.sh_degree,
            bands=model.feature_rest.shape[1],
            height=call.height,
            width=call.width,
            **{name: pointer(parameter) for name, parameter in self._parameters.items()},
            **{name: array.ctypes.data for name, array in self._lent.items()},
        )
        self._own = [self._lent.pop(name) for name in _OWN if name in self._lent]
        self._results = [_Results(shapes["v_image"]) for _ in range(2)]  # one is the last step's
        self._rows = SplatRows(
            call.num_gaussians,
            self._lent["radii"].ctypes.data,
            self._address("v_means2d"),
            self._address("v_absolute"),
            (call.width / 2, call.height / 2),
        )
        self._constants = sizes(call) | dict.fromkeys(("batch_ids", "camera_ids", "gaussian_ids"))
        self._trained = [(parameter, self._lent[name]) for name, parameter in trained.items()]

    def _address(self, name: str) -> int | None:
        """Of an array that is lent; None where it is not wanted."""
        return self._lent[name].ctypes.data if name in self._lent else None

    def _splats(self, grad2d: bool) -> dict[str, tuple[int, ...]]:
        """What is to be computed of each splat, and the shape of a row."""
        trained = {name for name, parameter in self._parameters.items() if parameter.requires_grad}
        moves = not trained.isdisjoint(_GEOMETRY)
        turns = bool(self._call.sh_degree) and "means" in trained
        wanted = {
            "v_means2d": moves or grad2d,
            "v_absolute": self._call.absgrad,
            "v_cov2d": moves,
            "v_colors": turns or not trained.isdisjoint(("dc", "rest")),
            "v_splat_opacities": "opacities" in trained or (moves and self._call.antialiased),
        }
        return {name: size for name, size in _SPLATS.items() if wanted.get(name, True)}

    @property
    def kept(self) -> dict[int, int]:
        """Its memory: bytes by address."""
        return {array.ctypes.data: array.nbytes for array in (*self._own, *self._lent.values())}

    def results(self) -> "_Results":
        """Memory for a picture and its loss: its own where that is not in use."""
        for results in self._results:
            if results.are_free():
                return results
        return _Results(self._results[0].arrays[0].shape)

    def is_free(self) -> bool:
        """Whether no result is in use."""
        # The arrays of gradients are in `_trained`, too.
        spare = len(self._trained)
        return sum(map(sys.getrefcount, self._lent.values())) == _UNUSED * len(self._lent) + spare

    def camera(self, camera: Camera) -> native.Camera:
        """A camera as the kernel knows it, with the settings of the plan's call."""
        return camera_struct(replace(self._call, viewmats=camera.viewmat[None], Ks=camera.K[None]), 0)

    def give_gradients(self) -> bool:
        """Add the gradients to those that the parameters have. Returns whether there were none."""
        alone = True
        for parameter, array in self._trained:
            gradient, before = torch.from_numpy(array), parameter.grad
            parameter.grad = gradient if before is None else before.add_(gradient)
            alone &= before is None
        return alone

    def info(self) -> RenderInfo:
        """What the interface promises, with the gradients where autograd would have put them."""
        lent = self._lent
        means2d = torch.from_numpy(lent["means2d"])
        if "v_means2d" in lent:
            means2d.grad = torch.from_numpy(lent["v_means2d"])
        if "v_absolute" in lent:
            cast(Any, means2d).absgrad = torch.from_numpy(lent["v_absolute"])
        later = {
            "depths": partial(torch.from_numpy, lent["depths"]),
            "conics": partial(_conics, lent["cov2d"]),
            "opacities": partial(torch.from_numpy, lent["splat_opacities"]),
        }
        values = {"radii": torch.from_numpy(lent["radii"]), "means2d": means2d}
        info = RenderInfo(self._constants | values, later)
        info.splat_rows = self._rows
        return info


class _Results:
    """Memory for the image [H, W, 3] of a view, its loss, and the two terms of that, lent like a plan's."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        image, values = workspace.array("images", shape), np.empty(3, np.float32)
        self.arrays = [image, *(values[i : i + 1].reshape(()) for i in range(3))]
        self.addresses = image.ctypes.data, values.ctypes.data

    def are_free(self) -> bool:
        return sum(map(sys.getrefcount, self.arrays)) == _UNUSED * len(self.arrays)


def _conics(covars2d: np.ndarray) -> Tensor:
    return conics(torch.from_numpy(covars2d))
