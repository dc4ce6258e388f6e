"""The Gaussians themselves for browsers that draw them, in place of pictures from here.

The browser draws colours without harmonics, sorted by its own processor. What it gets is all of a model, 32
bytes a Gaussian, so it gets it rarely.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from gsopt.geometry import quat_scale_to_covar, sh_to_rgb
from gsopt.model import GaussianModel

if TYPE_CHECKING:
    import viser

SHARE = 0.02  # of the time of a run that sending may take
LEAST_SECONDS = 5.0  # between two, while a run trains


class Splats:
    """The Gaussians that all browsers draw; None of them until `show`."""

    def __init__(self, server: "viser.ViserServer") -> None:
        self.server = server
        self._handle: viser.GaussianSplatHandle | None = None
        self._version: object = None
        self._sent = -float("inf")
        self._cost = 0.0

    @torch.no_grad()
    def show(self, models: list[GaussianModel], version: object, *, training: bool) -> bool:
        """Send the Gaussians where they are not those of `version` yet, and it is time; whether it did."""
        now = time.perf_counter()
        wait = max(LEAST_SECONDS, self._cost / SHARE) if training else 0.0
        if version == self._version or now - self._sent < wait:
            return False
        parts = [arrays_of(model) for model in models]
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        self._handle = self.server.scene.add_gaussian_splats("/splats", **arrays)
        self._version, self._sent = version, time.perf_counter()
        self._cost = self._sent - now
        return True

    def hide(self) -> None:
        """Take them away."""
        if self._handle is not None:
            self._handle.remove()
            self._handle, self._version, self._sent = None, None, -float("inf")


def arrays_of(model: GaussianModel) -> dict[str, np.ndarray]:
    """What viser's `add_gaussian_splats` takes: centres [N, 3], covariances [N, 3, 3], colours, opacities."""
    arrays = {
        "centers": model.means,
        "covariances": quat_scale_to_covar(model.quats, model.scales),
        "rgbs": sh_to_rgb(model.feature_dc[:, 0]).clamp(0, 1),
        "opacities": model.opacities.reshape(-1, 1),
    }
    return {key: value.detach().float().cpu().numpy() for key, value in arrays.items()}
