"""A run in the browser while it trains."""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.errors import InputError
from gsopt.viewer.frusta import Frusta, thumbnail
from gsopt.viewer.lens import first_camera, pose_of, target_of
from gsopt.viewer.panel import Panel
from gsopt.viewer.screen import Screen
from gsopt.viewer.server import address, close_server, open_server
from gsopt.viewer.splats import Splats

if TYPE_CHECKING:
    import viser

    from gsopt.progress import Progress
    from gsopt.trainer import Trainer

_NAP = 0.02  # seconds between looks at what is asked for, when nothing trains


class LiveViewer:
    """Watches a trainer: give it to `trainer.by_hand.watcher`. Its settings are in the trainer's config.

    `look` and `told` are called on the thread that trains; nothing is rendered, and no tensor read, on
    another.

    Raises:
        MissingExtra: viser is not installed.
        InputError: the port cannot be had, or there are several processes.
    """

    def __init__(self, trainer: "Trainer") -> None:
        config, scene = trainer.config, trainer.scene
        if trainer.ranks.size > 1:
            raise InputError(
                f"--viewer: shows a run of one process, this one has {trainer.ranks.size}; leave it away"
            )
        self.trainer = trainer
        self.server = open_server(config.viewer_host, config.viewer_port, f"gsopt {trainer.run.path.name}")
        cameras = [view.camera for view in scene.train]
        views, background = scene.train, trainer.background
        aim(self.server, cameras, trainer.model.xyz, scene.extent, scene.up)
        self.panel = Panel(self.server, trainer)
        self.screen = Screen(self.server, config.viewer_resolution)
        self.splats = Splats(self.server)
        points = trainer.model.xyz.detach().cpu().clone()
        self.frusta = Frusta(
            cameras, scene.extent, points, lambda number: thumbnail(views[number], background)
        )
        with self.server.gui.add_folder("View", expand_by_default=False):
            self.draw = draw_checkbox(self.server, config.viewer_splats)
            cameras_switch(self.server, self.frusta)
        self.server.on_client_connect(self.frusta.add)
        self.server.on_client_disconnect(self.frusta.forget)

    @property
    def address(self) -> str:
        """Where it is."""
        return address(self.server)

    def look(self, trainer: "Trainer", progress: "Progress") -> None:
        """Pictures and numbers that are due."""
        if not self.screen.watched:
            return
        self.panel.look(trainer, progress)
        self._show(training=not trainer.by_hand.paused)

    def told(self, text: str, *, failed: bool) -> None:
        """Pass on what has come of a request."""
        self.panel.told(text, failed=failed)

    def stay(self) -> None:
        """Show the model as it is until Ctrl-C."""
        self.panel.status.content = "training is over"
        while True:
            if self.screen.watched:
                self._show(training=False)
            time.sleep(_NAP)

    def close(self) -> None:
        """Disconnect all browsers."""
        close_server(self.server)

    def _show(self, *, training: bool) -> None:
        joint, version = self.trainer.joint, self.trainer.step
        self.screen.visible = not self.draw.value
        if self.draw.value:
            others = [joint.background_model] if joint.background_model is not None else []
            self.splats.show([joint.model, *others], version, training=training)
        else:
            self.splats.hide()
        self.screen.show(self._render, version, training=training)

    def _render(self, camera: Camera) -> Tensor:
        trainer = self.trainer
        options = trainer.render_options | {"absgrad": False, "sh_degree": trainer.sh_degree}
        return trainer.joint.render(camera, trainer.background, **options)[0]


def aim(
    server: "viser.ViserServer", cameras: list[Camera], xyz: Tensor, extent: float, up: torch.Tensor
) -> None:
    """Which way is up, and where browsers look from at first: as one of the photos."""
    server.scene.set_up_direction(tuple(up.tolist()))
    camera = first_camera(cameras)
    pose = pose_of(camera, 16 / 9)
    server.initial_camera.position = pose.position
    server.initial_camera.look_at = tuple(target_of(camera, xyz, extent))
    server.initial_camera.up = tuple((-camera.viewmat[1, :3]).tolist())
    server.initial_camera.fov = pose.fov


def draw_checkbox(server: "viser.ViserServer", value: bool) -> "viser.GuiCheckboxHandle":
    """The switch between pictures from here and Gaussians drawn by the browser."""
    return server.gui.add_checkbox(
        "draw in the browser", value, hint="it draws the Gaussians itself, without their harmonics"
    )


def cameras_switch(server: "viser.ViserServer", frusta: Frusta) -> None:
    """The switch that shows the cameras of the photos."""
    switch = server.gui.add_checkbox("cameras", True, hint="a click on one looks from there")
    switch.on_update(lambda _: frusta.set_visible(switch.value))
