"""The part of `info` that is about the first rows, where several models were rendered as one."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gsopt.render.info import RenderInfo

_PER_ROW = ("radii", "depths", "opacities")  # [C, N, ...], beside means2d and conics
_SHARED = ("tile_width", "tile_height", "width", "height", "tile_size", "n_batches", "n_cameras")


def first_rows(info: Mapping[str, Any], count: int) -> RenderInfo:
    """The info of a rasterization with ``packed=False`` as if it had been of its first `count` rows only.

    `retain_grad`, hooks, `grad` and `absgrad` of `info["means2d"]` work as they do on the whole: it is that
    which is asked for its gradient. Lists of tiles are those of the first rows alone.
    """
    values: dict[str, Any] = {name: info[name] for name in _SHARED}
    values |= {name: info[name][:, :count] for name in _PER_ROW}
    values |= dict.fromkeys(("batch_ids", "camera_ids", "gaussian_ids"))
    values["means2d"] = FirstRows.of(info["means2d"], count)
    return RenderInfo(values, {"conics": lambda: info["conics"][:, :count]})


class FirstRows(Tensor):
    """The first rows of a tensor in the graph, with the gradient that the whole tensor gets.

    A plain slice would get none: the picture was made from the whole tensor, not from the slice. What is
    computed with it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch says to
    whole: Tensor
    count: int
    kept: Tensor | None = None  # the gradient, where somebody else, such as a hook, has put it

    @classmethod
    def of(cls, whole: Tensor, count: int) -> "FirstRows":
        """whole: [C, N, 2]"""
        rows = whole[:, :count].as_subclass(cls)
        rows.whole, rows.count = whole, count
        return rows

    def retain_grad(self) -> None:
        """Ask for the gradient, before the backward pass."""
        self.whole.retain_grad()

    def register_hook(self, hook: Callable[[Tensor], object]) -> Any:
        """Call `hook` with the gradient [C, count, 2]; what it returns is not used."""
        count = self.count

        def on_whole(gradient: Tensor) -> None:
            hook(gradient[:, :count])

        return self.whole.register_hook(on_whole)

    @property
    def grad(self) -> Tensor | None:
        """[C, count, 2], None where nobody asked for it."""
        if self.kept is not None or self.whole.grad is None:
            return self.kept
        return self.whole.grad[:, : self.count]

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        self.kept = gradient

    @property
    def absgrad(self) -> Tensor:
        """[C, count, 2], of a call with ``absgrad=True``, after the backward pass."""
        return cast(Any, self.whole).absgrad[:, : self.count]
