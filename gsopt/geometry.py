"""Mathematics of Gaussians without state: spherical harmonics, rotations, covariances.

Pure functions of torch tensors of any floating dtype, on any device, differentiable in every tensor argument.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SH_DEGREE = 4

SH_C0 = 0.5 / math.sqrt(math.pi)  # the constant basis function Y_00
_C1 = math.sqrt(3 / (4 * math.pi))
_C2 = [math.sqrt(k / (16 * math.pi)) for k in (60, 60, 5, 60, 15)]
_C3 = [math.sqrt(k / (32 * math.pi)) for k in (35, 840, 21, 14, 21, 210, 35)]
_C4 = [3 / 16 * math.sqrt(k / math.pi) for k in (560, 280, 80, 40, 1, 40, 20, 280, 35)]


def rgb_to_sh(rgb: Tensor) -> Tensor:
    """Degree-0 coefficient of a colour in 0..1, so that ``SH_C0 * coefficient + 0.5`` is the colour again."""
    return (rgb - 0.5) / SH_C0


def sh_to_rgb(sh: Tensor) -> Tensor:
    """Colour of a degree-0 coefficient; the inverse of :func:`rgb_to_sh`, not clamped."""
    return sh * SH_C0 + 0.5


def num_sh_bases(degree: int) -> int:
    """Number of basis functions of all bands up to `degree`: (degree + 1)²."""
    return (degree + 1) ** 2


def sh_degree_of(num_bases: int) -> int:
    """Degree whose bands up to it have `num_bases` functions.

    Raises:
        ValueError: `num_bases` is not 1, 4, 9, 16 or 25.
    """
    degree = math.isqrt(num_bases) - 1 if num_bases > 0 else -1
    if not 0 <= degree <= MAX_SH_DEGREE or num_sh_bases(degree) != num_bases:
        raise ValueError(f"number of spherical harmonics: expected 1, 4, 9, 16 or 25, found {num_bases}")
    return degree


def sh_basis(degree: int, dirs: Tensor) -> Tensor:
    """Real spherical harmonics of all bands up to `degree` at unit directions.

    Cartesian polynomials (Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013), in the order
    l = 0, 1, ..., m = -l..l and with the signs of 3DGS: the Condon-Shortley factor (-1)^m is kept.

    Args:
        degree: 0 to 4.
        dirs: unit vectors. [..., 3]

    Returns:
        Values of the basis functions. [..., (degree + 1)²]

    Raises:
        ValueError: `degree` is outside 0..4.
    """
    if not 0 <= degree <= MAX_SH_DEGREE:
        raise ValueError(f"degree: expected 0 to {MAX_SH_DEGREE}, found {degree}")
    x, y, z = dirs.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            _C2[0] * x * y,
            -_C2[1] * y * z,
            _C2[2] * (3 * zz - 1),
            -_C2[3] * x * z,
            _C2[4] * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -_C3[0] * y * (3 * xx - yy),
            _C3[1] * x * y * z,
            -_C3[2] * y * (5 * zz - 1),
            _C3[3] * z * (5 * zz - 3),
            -_C3[4] * x * (5 * zz - 1),
            _C3[5] * z * (xx - yy),
            -_C3[6] * x * (xx - 3 * yy),
        ]
    if degree >= 4:
        basis += [
            _C4[0] * x * y * (xx - yy),
            -_C4[1] * y * z * (3 * xx - yy),
            _C4[2] * x * y * (7 * zz - 1),
            -_C4[3] * y * z * (7 * zz - 3),
            _C4[4] * (zz * (35 * zz - 30) + 3),
            -_C4[5] * x * z * (7 * zz - 3),
            _C4[6] * (xx - yy) * (7 * zz - 1),
            -_C4[7] * x * z * (xx - 3 * yy),
            _C4[8] * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return torch.stack(basis, dim=-1)  # [..., (degree + 1)²]


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    """Sum of spherical harmonics in given directions, without the offset 0.5 that makes it a colour.

    Args:
        degree: highest band used, 0 to 4; coefficients of higher bands are ignored.
        dirs: directions of any length above zero, from the camera to the Gaussian. [..., 3]
        coeffs: K coefficients per channel, K >= (degree + 1)². [..., K, channels]

    Returns:
        [..., channels]

    Raises:
        ValueError: `degree` is outside 0..4, or there are too few coefficients.
    """
    bases = num_sh_bases(degree)
    if coeffs.shape[-2] < bases:
        raise ValueError(
            f"coeffs: degree {degree} needs at least {bases} coefficients, found shape {list(coeffs.shape)}"
        )
    basis = sh_basis(degree, F.normalize(dirs, dim=-1))  # [..., bases]
    return (basis[..., None] * coeffs[..., :bases, :]).sum(-2)


def quat_to_rotmat(quats: Tensor) -> Tensor:
    """Rotation matrices of quaternions (w, x, y, z) of any length; a zero quaternion gives the identity.

    Args:
        quats: [..., 4]

    Returns:
        [..., 3, 3]
    """
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quat_scale_to_covar(quats: Tensor, scales: Tensor) -> Tensor:
    """Covariances R S Sᵀ Rᵀ (Kerbl et al. 2023, equation 6).

    Args:
        quats: w, x, y, z, of any length. [..., 4]
        scales: standard deviations along the rotated axes, world units. [..., 3]

    Returns:
        Symmetric matrices. [..., 3, 3]
    """
    half = quat_to_rotmat(quats) * scales[..., None, :]  # [..., 3, 3]
    return half @ half.transpose(-1, -2)


def camera_centers(viewmats: Tensor) -> Tensor:
    """Positions of cameras in world units, from world-to-camera matrices. [..., 4, 4] -> [..., 3]"""
    # Cramer's rule on the upper rows, of any scale or skew; a general inverse takes as long as a small stage.
    a, b, c = viewmats[..., :3, :3].unbind(-2)  # rows
    bc, ca, ab = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    x, y, z = viewmats[..., :3, 3:].unbind(-2)  # [..., 1]
    return -(x * bc + y * ca + z * ab) / (a * bc).sum(-1, keepdim=True)


def inverse_sigmoid(probability: Tensor) -> Tensor:
    """Logit: the number whose sigmoid is `probability` (between 0 and 1; infinite at both ends)."""
    return torch.logit(probability)
