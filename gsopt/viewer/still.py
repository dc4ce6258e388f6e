"""A trained scene in the browser, to look at and to cut."""

import contextlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gsopt.camera_paths import looking_at
from gsopt.cameras import Camera
from gsopt.errors import InputError
from gsopt.formats import Splat
from gsopt.joint import Joint
from gsopt.model import GaussianModel
from gsopt.viewer.box import Box, bounds_of
from gsopt.viewer.edit import Edits, inside_out
from gsopt.viewer.frusta import Frusta
from gsopt.viewer.live import aim, cameras_switch, draw_checkbox
from gsopt.viewer.screen import Screen
from gsopt.viewer.server import address, close_server, open_server
from gsopt.viewer.splats import Splats
from gsopt.warm_start import model_of

if TYPE_CHECKING:
    import viser

_NAP = 0.02  # seconds between looks at the browsers' cameras
MOST_DEGREE = 3  # of harmonics that the rasterizer has


@dataclass
class Sight:
    """How a splat is seen. Everything is in world units."""

    cameras: Sequence[Camera]  # to begin with, and, where there are several, of the photos
    extent: float
    up: Tensor  # [3]
    background: Tensor  # [3], on the device that renders
    options: dict[str, Any]  # for the rasterizer
    photo: Callable[[int], np.ndarray] | None = None  # of a camera, uint8 [h, w, 3]
    background_model: GaussianModel | None = None  # seen with it, not edited


class StillViewer:
    """Shows and cuts one splat.

    Args:
        splat: from a file.
        sight: how it is seen.
        folder: where `Save` writes.
        name: the file name that it proposes.
        host, port, resolution, in_browser: as the flags of `gsopt view`.

    Raises:
        MissingExtra: viser is not installed.
        InputError: the port cannot be had.
    """

    def __init__(
        self,
        splat: Splat,
        sight: Sight,
        folder: Path,
        name: str,
        *,
        host: str,
        port: int,
        resolution: int,
        in_browser: bool = False,
    ) -> None:
        self.edits, self.sight, self.folder = Edits(splat), sight, folder
        self.server = open_server(host, port, f"gsopt {splat.kind}", prefix="--")
        self.screen = Screen(self.server, resolution)
        self.splats = Splats(self.server)
        self.version = 0
        self._asked: queue.SimpleQueue[Callable[[], str]] = queue.SimpleQueue()
        self._take()
        xyz = splat.tensors["xyz"]
        aim(self.server, list(sight.cameras), xyz, sight.extent, sight.up)
        self._panel(xyz, name)
        with self.server.gui.add_folder("View"):
            self.draw = draw_checkbox(self.server, in_browser)
            if len(sight.cameras) > 1:
                self.frusta = Frusta(sight.cameras, sight.extent, xyz, sight.photo)
                cameras_switch(self.server, self.frusta)
                self.server.on_client_connect(self.frusta.add)
                self.server.on_client_disconnect(self.frusta.forget)

    def _panel(self, xyz: Tensor, name: str) -> None:
        gui = self.server.gui
        self.status = gui.add_markdown("")
        with gui.add_folder("Cut"):
            self.box = Box(self.server, xyz)
            self._button("Delete inside", lambda: self.edits.delete(self.box.region))
            self._button("Crop to the box", lambda: self.edits.crop(self.box.region))
            self._button("Lock inside", lambda: self.edits.lock(self.box.region))
            self._button("Lock outside", lambda: self.edits.lock(inside_out(self.box.region)))
            self._button("Unlock all", lambda: self.edits.unlock())
            self._button("Undo", lambda: self.edits.undo())
        with gui.add_folder("Save"):
            self.name = gui.add_text("name", name, hint=f"in {self.folder}")
            self.replace = gui.add_checkbox("replace", False, hint="a file of this name, if there is one")
            self._button("Save as", self._save)
        self._tell()

    @property
    def address(self) -> str:
        """Where it is."""
        return address(self.server)

    def run(self) -> None:
        """Show, and do what is asked for, until Ctrl-C."""
        try:
            while True:
                self.look()
        except KeyboardInterrupt:
            return
        finally:
            close_server(self.server)

    def look(self) -> None:
        """Wait a moment for requests and do them; make the pictures that are due."""
        with contextlib.suppress(queue.Empty):
            self._do(self._asked.get(timeout=_NAP))
        if not self.screen.watched:
            return
        self.screen.visible = not self.draw.value
        if self.draw.value:
            other = self.sight.background_model
            self.splats.show([self.model, *([] if other is None else [other])], self.version, training=False)
        else:
            self.splats.hide()
        self.screen.show(self._render, self.version, training=False)

    def _do(self, action: Callable[[], str]) -> None:
        failed, before = False, self.edits.rows
        try:
            text = action()
        except InputError as error:  # of a request; the splat is as it was
            text, failed = str(error), True
        except OSError as error:
            text, failed = f"{error.filename}: {error.strerror}; check the path and the free space", True
        if self.edits.rows is not before:
            self._take()
        self._tell()
        print(f"{'not done' if failed else 'done':<10}{text}")
        for client in self.server.get_clients().values():
            client.add_notification(
                "Not done" if failed else "Done",
                text,
                auto_close_seconds=10.0,
                color="red" if failed else None,
            )

    def _take(self) -> None:
        """Show what is left."""
        splat = self.edits.splat
        model = model_of(splat.with_degree(min(splat.sh_degree, MOST_DEGREE)))
        self.model = model.to(self.sight.background.device).requires_grad_(False)
        self.joint = Joint(self.model, background_model=self.sight.background_model)
        self.version += 1

    def _render(self, camera: Camera) -> Tensor:
        return self.joint.render(camera, self.sight.background, **self.sight.options)[0]

    def _save(self) -> str:
        name = self.name.value.strip()
        if not name or Path(name).name != name:
            raise InputError(f"name {name!r}: expected that of a file in {self.folder}, without a folder")
        text = self.edits.save(self.folder / name, replace=self.replace.value)
        self.replace.value = False  # type: ignore[misc]  # the stubs see a property without its setter
        return text

    def _button(self, label: str, action: Callable[[], str]) -> "viser.GuiButtonHandle":
        button = self.server.gui.add_button(label)
        button.on_click(lambda _: self._asked.put(action))
        return button

    def _tell(self) -> None:
        edits = self.edits
        lines = [f"**{edits.count:,} Gaussians** of {edits.whole.count:,}"]
        if edits.locked.any():
            lines.append(f"{int(edits.locked.sum()):,} locked")
        if not edits.saved:
            lines.append("not saved")
        self.status.content = "  \n".join(lines)


def looking_from_outside(xyz: Tensor, up: Tensor) -> tuple[Camera, float]:
    """A camera that sees all of a splat whose cameras are not known, and the size of what it sees.

    Args:
        xyz: [N, 3] centres.
        up: [3] unit vector.
    """
    low, high = (torch.tensor(side, dtype=torch.float64) for side in bounds_of(xyz))
    middle, size = (low + high) / 2, max((high - low).norm().item(), 1e-6)
    up = up.double()
    side = torch.eye(3, dtype=torch.float64)[up.abs().argmin()]
    direction = torch.linalg.cross(up, side) + 0.5 * up
    center = middle + 1.5 * size * direction / direction.norm()
    K = torch.tensor([[800.0, 0, 640], [0, 800, 360], [0, 0, 1]])
    return Camera("outside", 1280, 720, K, looking_at(center, middle, up).float()), size
