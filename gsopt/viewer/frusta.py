"""The cameras of the photos in the scene: a click on one takes the browser there."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.datasets.scene import View
from gsopt.runtime import spread
from gsopt.viewer.lens import pose_of, target_of

if TYPE_CHECKING:
    import viser

MOST = 150  # cameras shown, evenly spread over all
THUMBNAIL = 96  # pixels of a photo's longest side
SIZE = 0.05  # of a frustum, of the extent of the scene
COLOR = (60, 140, 255)


class Frusta:
    """Frusta of cameras, made for each browser when it comes.

    A browser that stands in a camera is not shown that one: its photo would be all that is seen.

    Args:
        cameras: of the photos.
        extent: of the scene, in its units.
        points: [P, 3] of the scene, which say what a camera looks at.
        photo: the small photo of a camera, uint8 [h, w, 3], by its number; None without photos.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        extent: float,
        points: Tensor,
        photo: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.cameras = cameras
        self.extent = extent
        self.points = points
        self.photo = photo
        self.visible = True
        self.shown = spread(range(len(cameras)), MOST)
        self.size = SIZE * extent
        self._centers = np.stack([cameras[number].center.double().cpu().numpy() for number in self.shown])
        self._handles: dict[viser.ClientHandle, list[viser.CameraFrustumHandle]] = {}

    def add(self, client: "viser.ClientHandle") -> None:
        """Put them into the scene of a browser."""
        self._handles[client] = [self._add_one(client, number) for number in self.shown]
        client.camera.on_update(lambda _: self._show_others(client))
        self._show_others(client)

    def forget(self, client: "viser.ClientHandle") -> None:
        """A browser is gone."""
        self._handles.pop(client, None)

    def _add_one(self, client: "viser.ClientHandle", number: int) -> "viser.CameraFrustumHandle":
        camera = self.cameras[number]
        aspect = camera.width / camera.height
        seen = pose_of(camera, aspect)
        handle = client.scene.add_camera_frustum(
            f"/cameras/{number}",
            fov=seen.fov,
            aspect=aspect,
            scale=self.size,
            thickness=0.02 * self.size,
            color=COLOR,
            image=None if self.photo is None else self.photo(number),
            format="jpeg",
            wxyz=seen.wxyz,
            position=seen.position,
        )
        handle.on_click(lambda event: self.go_to(event.client, number))
        return handle

    def _show_others(self, client: "viser.ClientHandle") -> None:
        handles = self._handles.get(client)
        if handles is None:  # it is gone
            return
        near = np.linalg.norm(self._centers - client.camera.position, axis=1) < 2 * self.size
        for handle, hidden in zip(handles, near.tolist(), strict=True):
            if handle.visible != (self.visible and not hidden):
                handle.visible = self.visible and not hidden

    def go_to(self, client: "viser.ClientHandle", number: int) -> None:
        """Let a browser look from a camera."""
        camera = self.cameras[number]
        aspect = client.camera.image_width / max(1, client.camera.image_height)
        pose = pose_of(camera, aspect)
        with client.atomic():
            client.camera.up_direction = (-camera.viewmat[1, :3]).tolist()  # y is down
            client.camera.position = pose.position
            client.camera.look_at = target_of(camera, self.points, self.extent)
            client.camera.fov = pose.fov

    def set_visible(self, visible: bool) -> None:
        """Show or hide all, in every browser."""
        self.visible = visible
        for client in list(self._handles):
            self._show_others(client)


def thumbnail(view: View, background: Tensor) -> np.ndarray:
    """A small copy of a photo, each n-th pixel of each n-th row. uint8 [h, w, 3]"""
    step = max(1, round(max(view.camera.width, view.camera.height) / THUMBNAIL))
    pixels = view.image[::step, ::step].float() / 255
    if pixels.shape[-1] == 4:
        pixels = torch.lerp(background.to(pixels), pixels[..., :3], pixels[..., 3:])
    return pixels.mul(255).round_().to(torch.uint8).numpy()
