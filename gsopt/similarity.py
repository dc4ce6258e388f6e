"""Similarities of space, a scale, a rotation and a translation: of points, of cameras, of Gaussians.

    move = Similarity(2.0, rotation, translation)
    xyz, viewmat, tensors = move.points(xyz), move.viewmat(viewmat), move_gaussians(tensors, move)

All is computed in float64, and to the same bits whatever the number of threads: what is trained may follow.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsopt.geometry import sh_basis, sh_degree_of


@dataclass(frozen=True, eq=False)
class Similarity:
    """x -> scale · rotation · x + translation, float64.

    Args:
        scale: above 0.
        rotation: of determinant 1. [3, 3]
        translation: world units. [3]
    """

    scale: float
    rotation: Tensor
    translation: Tensor

    def after(self, first: "Similarity") -> "Similarity":
        """The move that does `first`, then this."""
        translation = self.scale * self.rotation @ first.translation + self.translation
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, translation)

    def inverse(self) -> "Similarity":
        """The move that undoes this one."""
        back = self.rotation.T.contiguous()
        return Similarity(1 / self.scale, back, -(back @ self.translation) / self.scale)

    def points(self, xyz: Tensor) -> Tensor:
        """Where points [..., 3] go, float64 [..., 3]."""
        xyz = xyz.double()
        rows = self.scale * self.rotation.to(xyz.device)
        # Not a matrix product, which may add in an order that depends on the number of rows.
        turned = xyz[..., :1] * rows[:, 0] + xyz[..., 1:2] * rows[:, 1] + xyz[..., 2:] * rows[:, 2]
        return turned + self.translation.to(xyz.device)

    def viewmat(self, viewmat: Tensor) -> Tensor:
        """The world-to-camera matrix [4, 4] of a camera that moves along, float64.

        It takes the picture it took: what it saw at depth d it sees at depth scale · d.
        """
        moved = viewmat.double().clone()
        rotation, translation = self.rotation.to(moved.device), self.translation.to(moved.device)
        moved[:3, :3] = moved[:3, :3] @ rotation.T
        moved[:3, 3] = self.scale * moved[:3, 3] - moved[:3, :3] @ translation
        return moved

    def to_json(self) -> dict[str, Any]:
        """As plain numbers; `of_json` reads them."""
        return {
            "scale": self.scale,
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
        }

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Similarity":
        """What `to_json` wrote, to the bit."""
        rotation, translation = (
            torch.tensor(values[name], dtype=torch.float64) for name in ("rotation", "translation")
        )
        return cls(values["scale"], rotation, translation)


def move_gaussians(tensors: Mapping[str, Tensor], move: Similarity) -> dict[str, Tensor]:
    """Raw parameters of Gaussians, moved, turned and scaled, their harmonics turned along. float32

    `tensors` has the names and shapes of `GaussianModel`; what does not change is the same tensor.
    """
    rest = tensors["feature_rest"]
    turned = torch.empty_like(rest)
    for degree in range(1, sh_degree_of(rest.shape[1] + 1) + 1):
        band = slice(degree**2 - 1, (degree + 1) ** 2 - 1)
        matrix = _band(degree, move.rotation).to(rest.device)  # [2l+1, 2l+1]
        turned[:, band] = sum(
            column[:, None] * coefficient[:, None, :]
            for column, coefficient in zip(matrix.T, rest[:, band].double().unbind(1), strict=True)
        ).to(rest)
    changed = {
        "xyz": move.points(tensors["xyz"]),
        "feature_rest": turned,
        "scaling": tensors["scaling"].double() + math.log(move.scale),
        "rotation": _turned(_quaternion(move.rotation), tensors["rotation"].double()),
    }
    return dict(tensors) | {name: value.float() for name, value in changed.items()}


def _band(degree: int, rotation: Tensor) -> Tensor:
    """What turns the coefficients of one band: the function at R d is what it was at d. [2l+1, 2l+1]

    The band is closed under rotation, so its matrix follows from values in any directions that tell its
    functions apart: B(d) c' = B(Rᵀ d) c for all d. More directions than functions keep it well conditioned.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    directions = torch.randn(8 * (2 * degree + 1), 3, generator=generator, dtype=torch.float64)
    directions = F.normalize(directions, dim=-1)
    band = slice(degree**2, (degree + 1) ** 2)
    now, before = sh_basis(degree, directions)[:, band], sh_basis(degree, directions @ rotation)[:, band]
    return torch.linalg.lstsq(now, before).solution


def _quaternion(rotation: Tensor) -> Tensor:
    """w, x, y, z of a rotation matrix, w not negative. [4]

    The matrix 4 q qᵀ - 1 is linear in R, so q is its eigenvector of the largest eigenvalue (Bar-Itzhack
    2000): exact for every rotation, with no cases.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    symmetric = torch.tensor(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ],
        dtype=torch.float64,
    )
    quaternion = torch.linalg.eigh(symmetric).eigenvectors[:, -1]
    return -quaternion if quaternion[0] < 0 else quaternion


def _turned(by: Tensor, quaternions: Tensor) -> Tensor:
    """Products by · q, of the length of q. [N, 4]"""
    w, x, y, z = by.tolist()
    a, b, c, d = quaternions.unbind(-1)
    return torch.stack(
        [
            w * a - x * b - y * c - z * d,
            x * a + w * b - z * c + y * d,
            y * a + z * b + w * c - x * d,
            z * a - y * b + x * c + w * d,
        ],
        dim=-1,
    )
