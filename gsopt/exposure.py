"""Exposure: an affine map of colours for each training view, for photos taken with different settings."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gsopt.runtime import torch_threads


class Exposure(nn.Module):
    """Colours as each photo shows them: ``colour' = colour @ M[:, :3] + M[:, 3]`` with M [3, 4] of its view.

    The map and its convention (a row vector times the left part) are those of the original 3DGS's exposure
    compensation (Kerbl et al. 2024, "A Hierarchical 3D Gaussian Representation"). At first every M is the
    identity, and their mean always is: else the scene as a whole could become brighter and all M darker, and
    pictures without an exposure, as of test views, would be off. Weight decay pulls to the identity.

    Args:
        num_views: number V of training views, at least 1.
        centred: False leaves the mean free, as the original does.
        device: of the parameter.

    | parameter | shape | |
    |---|---|---|
    | `delta` | [V, 3, 4] | M less the identity; if centred, up to a constant |

    Raises:
        ValueError: `num_views` is out of range.
    """

    def __init__(
        self, num_views: int, centred: bool = True, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if num_views < 1:
            raise ValueError(f"num_views: expected 1 or more, found {num_views}")
        self.centred = centred
        self.delta = nn.Parameter(torch.zeros(num_views, 3, 4, device=device))

    @property
    def matrices(self) -> Tensor:
        """The maps M. [V, 3, 4]"""
        delta = self.delta - self.delta.mean(0) if self.centred else self.delta
        return delta + torch.eye(3, 4, dtype=delta.dtype, device=delta.device)

    def forward(self, image: Tensor, view: int) -> Tensor:
        """A rendered picture as the photo of training view `view` shows it. [H, W, 3] -> [H, W, 3]

        Differentiable in both; the bits of its gradients do not depend on the number of threads.
        """
        return _Affine.apply(image, self.matrices[view])

    def extra_repr(self) -> str:
        return f"{len(self.delta)} views"


class _Affine(torch.autograd.Function):
    """Matrix products on one thread: several add up the pixels in an order that depends on their number."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(image, matrix)
        with _one_thread(image):
            flat = (image.reshape(-1, 3) @ matrix[:, :3].contiguous()).add_(matrix[:, 3])  # addmm takes twice
        return flat.view(image.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_result: Tensor) -> tuple[Tensor | None, Tensor | None]:
        image, matrix = ctx.saved_tensors
        flat = v_result.reshape(-1, 3)  # [H W, 3]
        v_image = v_matrix = None
        with _one_thread(image):
            if ctx.needs_input_grad[0]:
                v_image = (flat @ matrix[:, :3].T.contiguous()).view(image.shape)
            if ctx.needs_input_grad[1]:
                v_matrix = torch.cat([image.reshape(-1, 3).T @ flat, flat.sum(0)[:, None]], dim=1)
        return v_image, v_matrix


def _one_thread(image: Tensor) -> contextlib.AbstractContextManager[None]:
    return torch_threads(1) if image.device.type == "cpu" else contextlib.nullcontext()
