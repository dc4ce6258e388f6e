"""Cameras of viser and ours: both have x right, y down, z forward; viser's have a vertical field of view."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.geometry import quat_to_rotmat


@dataclass(frozen=True)
class Pose:
    """Where a browser looks from, as viser says it."""

    wxyz: tuple[float, ...]  # camera to world
    position: tuple[float, ...]
    fov: float  # vertical, radians


def camera_of(pose: Pose, width: int, height: int) -> Camera:
    """The camera of a browser's window, with so many pixels."""
    rotation = quat_to_rotmat(torch.tensor(pose.wxyz, dtype=torch.float64))  # camera to world
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ torch.tensor(pose.position, dtype=torch.float64)
    focal = height / 2 / math.tan(pose.fov / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
    return Camera("viewer", width, height, K, viewmat.float())


def pose_of(camera: Camera, aspect: float) -> Pose:
    """The pose from which a window of this aspect (width over height) sees all that `camera` sees."""
    across, down = camera.width / 2 / camera.K[0, 0].item(), camera.height / 2 / camera.K[1, 1].item()
    position = tuple(camera.center.double().tolist())
    return Pose(wxyz_of(camera), position, 2 * math.atan(max(down, across / aspect)))


def wxyz_of(camera: Camera) -> tuple[float, ...]:
    """The rotation camera to world as a quaternion w, x, y, z of length 1."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(camera.viewmat[:3, :3].T.double().cpu().numpy()).as_quat().tolist()
    return w, x, y, z


def target_of(camera: Camera, points: Tensor, size: float) -> list[float]:
    """[3] what is in the middle of the picture, to turn about: at the median depth of the points ahead.

    Args:
        camera: that looks.
        points: [P, 3] of the scene.
        size: how far ahead it is where there are none, world units.
    """
    axes, center = camera.viewmat[:3, :3].cpu(), camera.center.cpu()
    depths = (points.detach().cpu() - center) @ axes[2]
    ahead = depths[depths > 0]
    distance = ahead.median().item() if len(ahead) else size
    return (center + distance * axes[2]).tolist()


def first_camera(cameras: Sequence[Camera]) -> Camera:
    """The one that a browser begins with: it is in the middle of the list, where capture is in full swing."""
    return cameras[len(cameras) // 2]
