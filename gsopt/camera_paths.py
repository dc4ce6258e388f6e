"""Paths of cameras for pictures of a scene: around it, and through the cameras that took its photos.

Geometry is float64; world units.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsopt.cameras import Camera, scene_up
from gsopt.errors import InputError

_PARALLEL = 0.01  # mean squared sine between views under which they do not meet in one point: about 6 degrees
_SAME_WAY = 0.9  # length of the mean direction of view from which all look the same way: within 25 degrees
_STEEPEST = math.radians(80)  # an orbit stays off the poles, where the picture would only turn


@dataclass(frozen=True)
class Circle:
    """Where the cameras of an orbit are: on a circle about `axis`, looking at `target`; float64."""

    target: Tensor  # [3]
    axis: Tensor  # [3], length 1, through the target
    start: Tensor  # [3], length 1, at a right angle to the axis: from it to the first camera
    radius: float  # from the axis
    height: float  # over the target, along the axis


def orbit(cameras: Sequence[Camera], points: Tensor, frames: int) -> list[Camera]:
    """A closed circle that looks at what the cameras look at, on :func:`circle_of` them, upright.

    It begins on the side of the first camera. Lens and size are those of the camera at the median distance.

    Args:
        cameras: of the photos.
        points: [P, 3] of the scene, which say how far away it is where all cameras look the same way.
        frames: number of cameras returned, named 0000.png and so on; one more would be the first again.

    Raises:
        InputError: the cameras do not look at one place.
    """
    circle, up = circle_of(cameras, points), scene_up(cameras).double()
    lens = _typical(cameras, circle.target)
    K = lens.K.clone()
    K[0, 2], K[1, 2] = lens.width / 2, lens.height / 2
    across = torch.linalg.cross(circle.axis, circle.start)
    path = []
    for number in range(frames):
        angle = 2 * math.pi * number / frames
        outward = math.cos(angle) * circle.start + math.sin(angle) * across
        center = circle.target + circle.radius * outward + circle.height * circle.axis
        viewmat = looking_at(center, circle.target, up).float()
        path.append(Camera(_name(number), lens.width, lens.height, K, viewmat))
    return path


def circle_of(cameras: Sequence[Camera], points: Tensor) -> Circle:
    """The circle of :func:`orbit`: about the scene's up, at the median distance and elevation of the cameras.

    Seen from above it goes counterclockwise. Of cameras that all look much the same way, as at a facade or
    from a drone, nobody knows what is behind: their circle is about the mean direction of view, as wide as
    they stand.

    Raises InputError where the cameras do not look at one place.
    """
    target, view = look_at_point(cameras, points), _views(cameras).mean(dim=0)
    faces = view.norm().item() > _SAME_WAY
    axis = -view / view.norm() if faces else scene_up(cameras).double()
    offsets = _centers(cameras) - target  # [C, 3]
    heights = offsets @ axis
    sides = offsets - heights[:, None] * axis
    if faces:
        radius, height = sides.norm(dim=1).median().item(), heights.median().item()
    else:
        distances = offsets.norm(dim=1)
        elevation = (heights / distances.clamp(min=1e-12)).clamp(-1, 1).asin().median().item()
        elevation = max(-_STEEPEST, min(elevation, _STEEPEST))
        distance = distances.median().item()
        radius, height = distance * math.cos(elevation), distance * math.sin(elevation)
    start = sides[0]
    if start.norm() < 1e-6 * offsets[0].norm():  # the first camera is on the axis: any side will do
        start = torch.linalg.cross(axis, torch.eye(3, dtype=torch.float64)[axis.abs().argmin()])
    return Circle(target, axis, start / start.norm(), radius, height)


def look_at_point(cameras: Sequence[Camera], points: Tensor) -> Tensor:
    """[3] the point nearest to the middle axes of all cameras, by least squares.

    Where all look almost the same way it is as far ahead of them as the median of the `points` [P, 3].

    Raises:
        InputError: it is not ahead of most of the cameras.
    """
    centers, views = _centers(cameras), _views(cameras)
    across = torch.eye(3, dtype=torch.float64) - views[:, :, None] * views[:, None, :]  # [C, 3, 3]
    mean = across.mean(dim=0)
    if torch.linalg.eigvalsh(mean)[0] > _PARALLEL:
        target = torch.linalg.solve(mean, (across @ centers[:, :, None]).mean(dim=0)[:, 0])
    else:
        middle, ahead = centers.mean(dim=0), views.mean(dim=0)
        depths = (points.double().cpu() - middle) @ ahead
        if not (depths > 0).any():
            raise _not_one_place()
        target = middle + depths[depths > 0].median() * ahead
    is_ahead = ((target - centers) * views).sum(dim=1) > 1e-6 * (centers - centers.mean(dim=0)).norm()
    if is_ahead.double().mean() <= 0.5:
        raise _not_one_place()
    return target


def _not_one_place() -> InputError:
    return InputError(
        "--path orbit: expected cameras that look at one place, found that most look away from the others; "
        "give --path interpolate, or a file of cameras"
    )


def looking_at(center: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """[4, 4] world-to-camera of a camera at `center` with `target` in its middle; all [3]."""
    forward = target - center
    forward = forward / forward.norm()
    right = torch.linalg.cross(forward, up)
    right = right / right.norm()
    viewmat = torch.eye(4, dtype=center.dtype)
    viewmat[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ center
    return viewmat


def interpolate(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """A smooth path through all cameras, from the first to the last: in the order of :func:`in_order`.

    Centres are on a cubic spline, rotations on a spline of smooth angular velocity, intrinsics on lines.
    Speed is even: time goes by distance and angle, a radian counting as the mean step between cameras.

    Args:
        cameras: all of one size.
        frames: number of cameras returned, named 0000.png and so on.

    Raises:
        InputError: fewer than two different cameras.
    """
    from scipy.interpolate import CubicSpline
    from scipy.spatial.transform import Rotation, RotationSpline

    keys, times = key_times(cameras)
    rotations = Rotation.from_matrix(np.stack([key.viewmat[:3, :3].double().T.numpy() for key in keys]))
    moments = np.linspace(0.0, times[-1], frames)
    centers = CubicSpline(times, _centers(keys).numpy())(moments)  # [frames, 3]
    turned = RotationSpline(times, rotations)(moments).as_matrix()  # camera to world
    lenses = np.stack([key.K.double().numpy().ravel() for key in keys])  # [C, 9]
    lenses = np.stack([np.interp(moments, times, column) for column in lenses.T], axis=1)  # [frames, 9]
    size = keys[0].width, keys[0].height
    path = []
    for number, (center, rotation, K) in enumerate(zip(centers, turned, lenses, strict=True)):
        viewmat = torch.eye(4, dtype=torch.float64)
        viewmat[:3, :3] = torch.from_numpy(rotation.T)
        viewmat[:3, 3] = torch.from_numpy(-rotation.T @ center)
        K = torch.from_numpy(K.reshape(3, 3)).float()
        path.append(Camera(_name(number), *size, K, viewmat.float()))
    return path


def key_times(cameras: Sequence[Camera]) -> tuple[list[Camera], np.ndarray]:
    """The cameras in order, without those that see the same as the one before, and their times from 0."""
    ordered = in_order(cameras)
    centers = _centers(ordered)
    rotations = torch.stack([camera.viewmat[:3, :3].double().cpu() for camera in ordered])
    moved = (centers[1:] - centers[:-1]).norm(dim=1)  # [C - 1]
    traces = (rotations[1:] * rotations[:-1]).sum(dim=(1, 2))
    turned = ((traces - 1) / 2).clamp(-1, 1).acos()  # radians
    unit = moved.mean().item() or 1.0
    steps = (moved.square() + (unit * turned).square()).sqrt()
    is_key = torch.cat([torch.ones(1), steps / unit]) > 1e-6 if len(steps) else torch.ones(1).bool()
    keys = [camera for camera, wanted in zip(ordered, is_key, strict=True) if wanted]
    if len(keys) < 2:
        raise InputError(
            f"--path interpolate: expected 2 or more different training cameras, found {len(keys)}; "
            "give --path orbit"
        )
    return keys, np.concatenate([[0.0], steps[is_key[1:]].cumsum(dim=0).numpy()])


def in_order(cameras: Sequence[Camera]) -> list[Camera]:
    """The cameras by name, numbers by their value, or each followed by the nearest other: the shorter way.

    Photos of one walk are in order by name; of photos from random places the names say nothing.
    """
    named = sorted(cameras, key=lambda camera: _natural(camera.name))
    centers = _centers(named)
    left, nearest = list(range(1, len(named))), [0]
    while left:
        here = centers[nearest[-1]]
        nearest.append(left.pop(int((centers[left] - here).norm(dim=1).argmin())))
    ways = (list(range(len(named))), nearest)
    best = min(ways, key=lambda way: (centers[way][1:] - centers[way][:-1]).norm(dim=1).sum().item())
    return [named[index] for index in best]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts r_2 before r_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _typical(cameras: Sequence[Camera], target: Tensor) -> Camera:
    distances = (_centers(cameras) - target).norm(dim=1)
    return cameras[int((distances - distances.median()).abs().argmin())]


def _centers(cameras: Sequence[Camera]) -> Tensor:
    """[C, 3] float64"""
    viewmats = torch.stack([camera.viewmat.double().cpu() for camera in cameras])
    return -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[..., 0]


def _views(cameras: Sequence[Camera]) -> Tensor:
    """[C, 3] float64, length 1: the directions of view."""
    return torch.stack([camera.viewmat[2, :3].double().cpu() for camera in cameras])


def _name(number: int) -> str:
    return f"{number:04d}.png"
