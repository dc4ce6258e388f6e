"""What strategies add up over the views: how much a Gaussian's image moves, and how often it was visible."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gsopt.native import check, library, pointer


def add_gradients(
    norms: Tensor, counts: Tensor, radii: Tensor, gradients: Tensor, scale: Sequence[float]
) -> None:
    """Add each camera's norm of the scaled gradient to `norms` and 1 to `counts`, where it sees a Gaussian.

    On the CPU one pass of the native kernel; :func:`add_gradients_reference` is its slow twin.

    Args:
        norms, counts: the sums, changed in place. float32 [N]
        radii: a Gaussian is visible where both are above 0. int32 [C, N, 2]
        gradients: by the projected centres, pixels. [C, N, 2]
        scale: factors on the gradient's x and y.
    """
    tensors = (norms, counts, radii, gradients)
    floats = all(tensor.dtype == torch.float32 for tensor in (norms, counts, gradients))
    if not floats or radii.dtype != torch.int32 or not all(map(_plain, tensors)):
        add_gradients_reference(norms, counts, radii, gradients, scale)
        return
    for camera in range(len(radii)):
        seen = (pointer(radii, camera), pointer(gradients, camera))
        check(library().gsopt_statistics(len(norms), *seen, *scale, pointer(norms), pointer(counts)))


def add_gradients_reference(
    norms: Tensor, counts: Tensor, radii: Tensor, gradients: Tensor, scale: Sequence[float]
) -> None:
    """:func:`add_gradients` in plain PyTorch, for any floating dtype and device."""
    x, y = (gradients[..., k] * scale[k] for k in (0, 1))  # [C, N]
    visible = (radii[..., 0] > 0) & (radii[..., 1] > 0)
    for camera in range(len(radii)):
        norms += torch.where(visible[camera], (x[camera].square() + y[camera].square()).sqrt(), 0)
        counts += visible[camera]


def _plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous()
