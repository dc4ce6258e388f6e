"""The noise of MCMC: positions wander along the shape of their Gaussian, the fainter it is the more."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gsopt.native import check, is_plain, library, pointer

NOISE_STEEPNESS, NOISE_OPACITY = 100, 0.005  # of the sigmoid that gates the noise: Kheradmand et al., eq. 8


def noise_gate(opacities: Tensor) -> Tensor:
    """How much of the noise a Gaussian gets: 0.62 where invisible, 0.5 at an opacity of 0.005, then 0. [N]"""
    return torch.sigmoid(-NOISE_STEEPNESS * (opacities - NOISE_OPACITY))


def rows_below(values: Tensor, limit: float, allowed: Tensor | None = None) -> Tensor:
    """Which rows of `values` [N, 1] are below `limit`, of those `allowed` (bool [N]; None is all). int64 [M]

    On the CPU one pass of the native kernel; :func:`rows_below_reference` is its slow twin.
    """
    if not is_plain(values):
        return rows_below_reference(values, limit, allowed)
    rows = torch.empty(len(values), dtype=torch.int64, device="cpu")
    inputs = (pointer(values), limit, pointer(allowed), pointer(rows))
    return rows[: library().gsopt_rows_below(len(values), *inputs)]


def rows_below_reference(values: Tensor, limit: float, allowed: Tensor | None = None) -> Tensor:
    """:func:`rows_below` in plain PyTorch, for any floating dtype and device."""
    mask = values.squeeze(-1) < limit
    return torch.nonzero(mask if allowed is None else mask & allowed).flatten()


def perturb(
    xyz: Tensor,
    rows: Tensor,
    draws: Tensor,
    opacity: Tensor,
    rotation: Tensor,
    scaling: Tensor,
    strength: float,
) -> None:
    """Add to positions the draw times `strength`, the gate and the covariance (Kheradmand et al., eq. 8).

    On the CPU one pass of the native kernel; :func:`perturb_reference` is its slow twin.

    Args:
        xyz: world units, changed in place. float32 [N, 3]
        rows: which, each once. int64 [M]
        draws: standard normal. [M, 3]
        opacity, rotation, scaling: raw, as in the model. [N, 1], [N, 4], [N, 3]
        strength: 1 / world units.
    """
    if not all(map(is_plain, (xyz, draws, opacity, rotation, scaling))):
        perturb_reference(xyz, rows, draws, opacity, rotation, scaling, strength)
        return
    inputs = map(pointer, (rows, draws, opacity, rotation, scaling))
    gate = (NOISE_STEEPNESS, NOISE_OPACITY)
    check(library().gsopt_perturb(len(rows), *inputs, strength, *gate, pointer(xyz)))


def perturb_reference(
    xyz: Tensor,
    rows: Tensor,
    draws: Tensor,
    opacity: Tensor,
    rotation: Tensor,
    scaling: Tensor,
    strength: float,
) -> None:
    """:func:`perturb` in plain PyTorch, for any floating dtype and device."""
    gate = noise_gate(opacity[rows].sigmoid())  # [M, 1]
    xyz.index_add_(0, rows, along_covariance(rotation[rows], scaling[rows], draws * gate * strength))


def along_covariance(rotation: Tensor, scaling: Tensor, vectors: Tensor) -> Tensor:
    """Vectors multiplied by the covariances of Gaussians, R S² Rᵀ v, element by element.

    Args:
        rotation, scaling: raw, as in the model. [M, 4], [M, 3]
        vectors: [M, 3]
    """
    return turned(rotation, turned(rotation, vectors, -1) * (2 * scaling).exp())


def turned(rotation: Tensor, vectors: Tensor, direction: int = 1) -> Tensor:
    """Vectors [M, 3] turned by quaternions [M, 4] of any length, or back (-1); without matrices."""
    quats = F.normalize(rotation, dim=-1)
    w, axis = quats[:, :1], quats[:, 1:]
    across = 2 * torch.linalg.cross(axis, vectors)
    return vectors + direction * w * across + torch.linalg.cross(axis, across)
