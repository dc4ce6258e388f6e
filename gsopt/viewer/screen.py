"""Pictures for every browser that looks: who gets one now, of which size, and how it gets there."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.viewer.lens import Pose, camera_of
from gsopt.viewer.pace import SHARE, Pace, fitted

if TYPE_CHECKING:
    import viser

QUALITY = 85  # of JPEG
Render = Callable[[Camera], Tensor]  # image [H, W, 3], not clipped


@dataclass
class _Window:
    """One browser."""

    client: "viser.ClientHandle"
    pace: Pace = field(default_factory=Pace)
    hidden: bool = False  # the browser draws the Gaussians itself


class Screen:
    """The windows of all browsers. `show` is called on the thread that renders.

    Args:
        server: whose browsers are meant.
        resolution: longest side of a picture, pixels.
    """

    def __init__(self, server: "viser.ViserServer", resolution: int) -> None:
        self.server = server
        self.resolution = resolution
        self.visible = True  # False while the browsers draw the Gaussians themselves
        self.pictures = 0  # made so far
        self.seconds = 0.0  # spent on them
        self._windows: dict[int, _Window] = {}

    @property
    def watched(self) -> bool:
        """Whether any browser is connected."""
        return bool(self.server.get_clients())

    @torch.no_grad()
    def show(self, render: Render, version: object, *, training: bool) -> bool:
        """Make the pictures that are due, at most one a window; whether any was.

        Args:
            render: makes an image.
            version: of the model: another one than before makes the pictures at rest due again.
            training: whether there is other work to be done, which they may not slow down much.
        """
        clients = self.server.get_clients()
        self._windows = {key: self._windows.get(key) or _Window(client) for key, client in clients.items()}
        share = SHARE / max(1, len(clients)) if training else None
        return any([self._show_one(window, render, version, share) for window in self._windows.values()])

    def _show_one(self, window: _Window, render: Render, version: object, share: float | None) -> bool:
        seen = window.client.camera
        if not self.visible:
            if not window.hidden:
                window.client.scene.set_background_image(None)
                window.hidden = True
            return False
        if window.hidden:
            window.hidden = False
            window.pace.again()
        now = time.perf_counter()
        pose = Pose(tuple(seen.wxyz.tolist()), tuple(seen.position.tolist()), seen.fov)
        full = fitted(seen.image_width, seen.image_height, self.resolution)
        size = window.pace.size(now, pose, version, full, share=share)
        if size is None:
            return False
        image = bytes_of(render(camera_of(pose, *size)))
        window.client.scene.set_background_image(image, format="jpeg", jpeg_quality=QUALITY)
        cost = time.perf_counter() - now
        window.pace.done(now + cost, pose, version, size, cost)
        self.pictures, self.seconds = self.pictures + 1, self.seconds + cost
        return True


def bytes_of(image: Tensor) -> np.ndarray:
    """An image [H, W, 3] as uint8, clipped to 0..1."""
    return image.clamp(0, 1).mul(255).round_().to(torch.uint8).cpu().numpy()
