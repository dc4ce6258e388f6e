"""Pinhole cameras: what a photo's pixels see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gsopt.similarity import Similarity

_PARALLEL = 0.17  # cosine of 80 degrees: x-axes spread less than this tell no vertical
_FORWARD = 0.1  # weight of the viewing directions where the cameras' own up-vectors decide nothing


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera without lens distortion.

    name: unique in its scene; path of the photo relative to the images folder: "0001.jpg", "train/r_0.png".
    width, height: pixels.
    K: [3, 3] float32 intrinsics, pixels; the centre of the top left pixel is (0.5, 0.5) as in COLMAP, gsplat.
    viewmat: [4, 4] float32 world-to-camera, OpenCV axes (x right, y down, z forward), world units.
    """

    name: str
    width: int
    height: int
    K: Tensor  # [3, 3]
    viewmat: Tensor  # [4, 4]

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            size = f"{self.width}x{self.height}"
            raise ValueError(f"camera {self.name!r}: size {size}, expected at least 1x1 pixels")
        for field, tensor, shape in (("K", self.K, (3, 3)), ("viewmat", self.viewmat, (4, 4))):
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"camera {self.name!r}: {field} is {list(tensor.shape)}, expected {list(shape)}"
                )

    @property
    def center(self) -> Tensor:
        """[3] position of the pinhole in world units: -R^T t."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    def resized(self, width: int, height: int) -> "Camera":
        """The same camera with `width` x `height` pixels: K scaled per axis."""
        scale = (width / self.width, height / self.height, 1.0)
        K = self.K * torch.tensor(scale, device=self.K.device)[:, None]  # [3, 3]
        return replace(self, width=width, height=height, K=K)

    def fitted(self, width: int, height: int) -> "Camera":
        """A camera of `width` x `height` pixels that sees all that this one does, without distortion.

        The picture is scaled by one factor and stays in the middle; where the shape is another, more is seen
        on two sides.
        """
        scale = min(width / self.width, height / self.height)
        K = self.K.clone()
        K[:2] *= scale
        K[0, 2] += (width - scale * self.width) / 2
        K[1, 2] += (height - scale * self.height) / 2
        return replace(self, width=width, height=height, K=K)


def cameras_extent(cameras: Sequence[Camera]) -> float:
    """Size of a capture in world units: 1.1 x the largest distance of a camera centre from their mean.

    As the original 3DGS (Kerbl et al. 2023, `cameras_extent` in its code) defines it; it scales the learning
    rate of positions and the densification thresholds. 0.0 where all cameras stand at one place.

    Raises ValueError without cameras.
    """
    if not cameras:
        raise ValueError("cameras_extent: no cameras, expected at least one")
    centers = torch.stack([camera.center.double().cpu() for camera in cameras])  # [C, 3]
    return 1.1 * (centers - centers.mean(dim=0)).norm(dim=1).max().item()


def scene_up(cameras: Sequence[Camera]) -> Tensor:
    """Unit vector [3], float32, that points up in the world of some cameras.

    Photographers hold cameras level: it is the direction most nearly at right angles to all cameras' x-axes,
    on the side of their mean up-vector. Where the x-axes are parallel to within 10 degrees (views of one
    wall), it is the mean up-vector, at a right angle to them. That is the method "vertical" of nerfstudio
    (Tancik et al. 2023, `auto_orient_and_center_poses` in its code). Where up-vectors cancel out, as of
    drones that look straight down, up is where the cameras look from.

    Raises ValueError without cameras.
    """
    if not cameras:
        raise ValueError("scene_up: no cameras, expected at least one")
    axes = np.stack([camera.viewmat[:3, :3].double().cpu().numpy() for camera in cameras])
    return torch.tensor(up_vector(axes), dtype=torch.float32)


def up_vector(axes: np.ndarray) -> np.ndarray:
    """As `scene_up`, of world-to-camera rotations, float64 [C, 3, 3]: rows x right, y down, z forward. [3]"""
    right, down, forward = axes[:, 0], axes[:, 1], axes[:, 2]
    up = -down.mean(axis=0)
    side = up - _FORWARD * forward.mean(axis=0)
    # numpy adds in the same order whatever the number of threads
    spread, directions = np.linalg.eigh((right[:, :, None] * right[:, None, :]).mean(axis=0))  # ascending
    level = directions[:, 0]
    across = up - directions[:, 2] * (directions[:, 2] @ up)
    if spread[1] > _PARALLEL**2 or np.linalg.norm(across) < 1e-6:
        across = level if level @ side > 0 else -level
    return across / np.linalg.norm(across)


def camera_to_json(camera: Camera, index: int) -> dict:
    """The camera's entry in `cameras.json` of the original 3DGS, which viewers read.

    `position` is the centre, `rotation` the camera-to-world rotation (rows, OpenCV axes); `fx`, `fy` pixels.
    """
    return {
        "id": index,
        "img_name": camera.name,
        "width": camera.width,
        "height": camera.height,
        "position": camera.center.tolist(),
        "rotation": camera.viewmat[:3, :3].T.tolist(),
        "fy": camera.K[1, 1].item(),
        "fx": camera.K[0, 0].item(),
    }


def cameras_to_json(cameras: Sequence[Camera], world: Similarity | None = None) -> list[dict]:
    """The content of `cameras.json`, in world units: cameras of a normalised scene go back to the world.

    `world`: the move that normalised the scene (`Scene.world`).
    """
    entries = [camera_to_json(camera, index) for index, camera in enumerate(cameras)]
    if world is not None:
        back = world.inverse()
        for entry, camera in zip(entries, cameras, strict=True):
            axes = camera.viewmat[:3, :3].T.double().cpu()  # camera to world
            entry["position"] = back.points(camera.center.cpu()).tolist()
            entry["rotation"] = (back.rotation @ axes).tolist()
    return entries
