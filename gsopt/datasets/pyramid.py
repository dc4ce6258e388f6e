"""Training views at a fraction of their resolution, for the start of a run."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsopt.datasets.scene import View

SMALLEST = 120  # pixels: no view's longest side gets shorter; below, what is learnt is soon unlearnt


KEPT = 1 << 28  # bytes of reduced views that are kept


class ViewPyramid:
    """The views of a scene, reduced.

    Those of the factor last asked for are kept while they take at most `kept` bytes. Of a scene with more,
    the first ones are kept, the others reduced whenever they are asked for: a small part of a step.
    """

    def __init__(self, views: Sequence[View], kept: int = KEPT) -> None:
        self._views = views
        self._factor = 1
        self._reduced: dict[int, View] = {}
        self._room = self._kept = kept

    def view(self, index: int, factor: int) -> View:
        """View `index` with sides divided by `factor` (1, 2, 4, ...), or by less where it would get tiny."""
        if factor != self._factor:
            self._factor, self._reduced, self._room = factor, {}, self._kept
        view, factor = self._views[index], self._possible(index, factor)
        if factor == 1:
            return view
        if index in self._reduced:
            return self._reduced[index]
        reduced = reduce_view(view, factor)
        view.release()
        size = sum(
            tensor.numel() * tensor.element_size()
            for tensor in (reduced.image, reduced.mask, reduced.inverse_depth)
            if tensor is not None
        )
        if size <= self._room:
            self._room -= size
            self._reduced[index] = reduced
        return reduced

    def pixels(self, index: int, factor: int) -> int:
        """How many `view` has, without making it."""
        camera, factor = self._views[index].camera, self._possible(index, factor)
        return (camera.width // factor) * (camera.height // factor)

    def _possible(self, index: int, factor: int) -> int:
        camera = self._views[index].camera
        while factor > 1 and max(camera.width, camera.height) < factor * SMALLEST:
            factor //= 2
        return factor


def reduce_view(view: View, factor: int) -> View:
    """The view with each `factor` x `factor` pixels averaged to one; what does not fill one is cut off.

    It counts where all of these count, and its depth is known where all of theirs are.

    A pixel of the result sees just what its pixels saw, so the intrinsics are those of the view / `factor`.
    """
    camera = view.camera
    width, height = camera.width // factor, camera.height // factor
    cut = replace(camera, width=width * factor, height=height * factor)
    return View(
        camera=cut.resized(width, height),
        image=_average(view.image[: cut.height, : cut.width], factor),
        path=view.path,
        mask=None if view.mask is None else _reduced(view.mask[: cut.height, : cut.width], factor) == 1,
        inverse_depth=None
        if view.inverse_depth is None
        else _reduced(view.inverse_depth[: cut.height, : cut.width], factor),
    )


def _reduced(values: Tensor, factor: int) -> Tensor:
    """Means [H / factor, W / factor] of [H, W]; NaN where any value is."""
    return F.avg_pool2d(values.float()[None], factor)[0]


def _average(image: Tensor, factor: int) -> Tensor:
    """uint8 [H, W, 3 or 4] -> [H / factor, W / factor, 3 or 4]; colours weigh as much as they are opaque."""
    from PIL import Image  # at call time: importing gsopt imports no PIL

    pixels = Image.fromarray(np.ascontiguousarray(image.numpy()))
    if pixels.mode == "RGBA":
        return torch.from_numpy(np.array(pixels.convert("RGBa").reduce(factor).convert("RGBA")))
    return torch.from_numpy(np.array(pixels.reduce(factor)))
