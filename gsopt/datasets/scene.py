"""What a loaded scene is: views (a camera and its photo) and a point cloud."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gsopt.cameras import Camera, scene_up
from gsopt.datasets.mapped import let_go
from gsopt.similarity import Similarity


@dataclass(eq=False)
class View:
    """A camera and the photo it took.

    image: uint8 [H, W, 3], or [H, W, 4] with straight (not premultiplied) alpha; H, W are the camera's.
    path: the file the photo was read from, None where there is none.
    mask: bool [H, W], where the photo is used; None for everywhere. Other pixels count in no loss or metric.
    inverse_depth: float32 [H, W], 1 / z in 1 / world units, NaN where unknown; None where nothing is known.
    mapped: whether `image` lies in a mapped file, and not in memory.
    """

    camera: Camera
    image: Tensor  # [H, W, 3 or 4]
    path: Path | None = None
    mask: Tensor | None = None  # [H, W]
    inverse_depth: Tensor | None = None  # [H, W]
    mapped: bool = False

    def release(self) -> None:
        """Give the memory of a mapped photo back; it is read again when it is looked at next."""
        if self.mapped:
            let_go(self.image)

    def rgb(self, background: Tensor) -> Tensor:
        """The photo as float32 [H, W, 3] in 0..1, composited on `background` [3] where it has alpha."""
        pixels = self.image.float().div_(255.0)  # [H, W, 3 or 4]
        if pixels.shape[-1] == 3:
            return pixels
        color, alpha = pixels[..., :3], pixels[..., 3:]
        return torch.lerp(background.to(pixels), color, alpha)


@dataclass(eq=False)
class PointCloud:
    """Coloured points, in the units of their scene.

    path: the file they were read from, None where there is none.
    """

    xyz: Tensor  # [P, 3] float32
    rgb: Tensor  # [P, 3] float32 0..1
    path: Path | None = None


@dataclass(eq=False)
class Scene:
    """Everything a training run reads from a scene's folder.

    format: "colmap", "nerf-synthetic" or "transforms".
    train, test: views sorted by name; train has at least one. Names are unique within each of the two.
    extent: size of the capture, `cameras_extent` of the train cameras.
    world: None where cameras and points are as in the files, in world units. Of a normalised scene, the move
        that was made of both: its inverse leads back to the world, and everything that is exported takes it.
    """

    path: Path
    format: str
    train: list[View]
    test: list[View]
    points: PointCloud
    extent: float
    world: Similarity | None = None

    @property
    def up(self) -> Tensor:
        """Unit vector [3] that points up, from the train cameras: see `gsopt.cameras.scene_up`."""
        return scene_up([view.camera for view in self.train])

    @property
    def has_alpha(self) -> bool:
        """Whether any photo has transparent pixels: then the background colour matters."""
        return any(view.image.shape[-1] == 4 for view in (*self.train, *self.test))
