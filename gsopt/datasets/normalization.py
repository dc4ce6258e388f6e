"""Worlds of a common size and place to train in, whatever the units and the origin of a capture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch

from gsopt.cameras import up_vector
from gsopt.datasets.images import Photo
from gsopt.errors import InputError
from gsopt.similarity import Similarity

_ROUNDING = 1e-9  # of coordinates: closer together, cameras are at one place
Normalization = Literal["none", "scale", "up"]


def normalization(viewmats: np.ndarray, kind: Normalization) -> Similarity | None:
    """The move that puts cameras into a common place.

    "scale": the mean of their centres at the origin, the farthest 1 away from it. "up": turned as well, by
    the smallest angle that makes `gsopt.cameras.scene_up` of them +z. Cameras that all stand at one place are
    not scaled. (nerfstudio's `auto_orient_and_center_poses`, with the centre "poses" and the orientation
    "none" or "vertical", Tancik et al. 2023; there the largest coordinate of a camera becomes 1.)

    Args:
        viewmats: world-to-camera, OpenCV axes, float64. [C, 4, 4]
        kind: "none" gives None.

    Raises InputError for another kind.
    """
    if kind not in get_args(Normalization):
        raise InputError(f"--normalize {kind}: expected one of {', '.join(get_args(Normalization))}")
    if kind == "none":
        return None
    centers = -np.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3])  # [C, 3]
    middle = centers.mean(axis=0)
    reach = float(np.linalg.norm(centers - middle, axis=1).max())
    scale = 1 / reach if reach > _ROUNDING * np.abs(middle).max() else 1.0
    rotation = _to_z(up_vector(viewmats[:, :3, :3])) if kind == "up" else np.eye(3)
    return Similarity(scale, torch.from_numpy(rotation), torch.from_numpy(-scale * (rotation @ middle)))


def move_photos(photos: Sequence[Photo], world: Similarity | None) -> list[Photo]:
    """The photos with cameras where a move puts them; None leaves them where they are."""
    if world is None:
        return list(photos)
    return [
        replace(photo, viewmat=world.viewmat(torch.from_numpy(photo.viewmat)).numpy()) for photo in photos
    ]


def _to_z(up: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] by the smallest angle that turns a unit vector to +z (Rodrigues)."""
    x, y, z = up
    if z < -1 + 1e-12:  # every axis at a right angle will do
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)
