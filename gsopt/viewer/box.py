"""The box that is drawn in the scene: moved by a gizmo, sized by sliders, read as a region."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import viser

COLOR = (255, 160, 0)
_MIDDLE = (0.1, 0.9)  # quantiles of the centres between which the box is at first
_DECADES = 3.0  # below the size of the scene that the sliders reach


class Box:
    """A box with sides along the axes, and its part of the panel.

    Args:
        server: where it is drawn; a folder of the panel is open.
        xyz: [N, 3] centres of the Gaussians at first, which say where it begins and how large it can get.
    """

    def __init__(self, server: "viser.ViserServer", xyz: Tensor) -> None:
        low, high = bounds_of(xyz)
        self.center = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        self.size = [max(b - a, 1e-6) for a, b in zip(low, high, strict=True)]
        largest = 4 * max(self.size)
        self.shown = server.gui.add_checkbox("show the box", False)
        self._sliders = [
            server.gui.add_slider(
                f"size {axis}, log10",
                min=round(math.log10(largest) - _DECADES, 2),
                max=round(math.log10(largest) + 0.01, 2),
                step=0.01,
                initial_value=round(math.log10(size), 2),
                hint="side of the box in units of the scene: 10 to the power of this",
            )
            for axis, size in zip("xyz", self.size, strict=True)
        ]
        self.size = [10**slider.value for slider in self._sliders]
        self._gizmo = server.scene.add_transform_controls(
            "/box",
            scale=max(self.size) / 2,
            disable_rotations=True,
            position=tuple(self.center),
            visible=False,
        )
        self._shape = server.scene.add_box(
            "/box/shape", color=COLOR, dimensions=tuple(self.size), wireframe=True, visible=False
        )
        self.shown.on_update(lambda _: self.set_visible(self.shown.value))
        self._gizmo.on_update(lambda _: self._moved())
        for slider in self._sliders:
            slider.on_update(lambda _: self._sized())

    @property
    def region(self) -> str:
        """The box as a text that `gsopt.regions` reads, in the units of the scene on the screen."""
        low = (c - s / 2 for c, s in zip(self.center, self.size, strict=True))
        high = (c + s / 2 for c, s in zip(self.center, self.size, strict=True))
        return "box:" + ",".join(f"{value:.6g}" for value in (*low, *high))

    def set_visible(self, visible: bool) -> None:
        """Show or hide it."""
        self._gizmo.visible = self._shape.visible = visible

    def _moved(self) -> None:
        self.center = [float(value) for value in self._gizmo.position]

    def _sized(self) -> None:
        self.size = [10**slider.value for slider in self._sliders]
        self._shape.dimensions = tuple(self.size)


def bounds_of(xyz: Tensor) -> tuple[list[float], list[float]]:
    """Where most of the centres [N, 3] are, axis by axis: low [3] and high [3]; strays do not count."""
    step = max(1, len(xyz) // 100_000)
    low, high = xyz.detach()[::step].float().cpu().quantile(torch.tensor(_MIDDLE), dim=0).tolist()
    return low, high
