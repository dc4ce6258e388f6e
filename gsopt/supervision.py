"""What a run compares its pictures with beside the photos' colours: which pixels count, and depth maps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsopt.datasets.masks import Alpha
from gsopt.datasets.scene import View
from gsopt.errors import InputError
from gsopt.losses import depth_l1
from gsopt.schedules import LogLinear

FINAL_DEPTH_WEIGHT = 0.01  # at the end of the run, of that at its start: the original 3DGS's


@dataclass(kw_only=True)
class SupervisionOptions:
    """Settings, those of `TrainConfig`. docs/data.md shows the files."""

    masks: str | None = None
    """Folder of masks beside that of the photos; pixels that are 0 do not count. Default: masks, if there."""
    no_masks: bool = False
    """Use all pixels of all photos."""
    alpha: Alpha = "background"
    """Photos with transparency: over the background, or a mask: pixels of alpha 0 do not count."""
    depth_loss: float = 0.0
    """Weight of the L1 of inverse depths against depth maps at the start; at the end it is a hundredth."""

    def check_supervision(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.no_masks and self.masks is not None:
            raise InputError(f"--masks {self.masks}: there is --no-masks, too; leave one of them away")
        if not (math.isfinite(self.depth_loss) and self.depth_loss >= 0):
            raise InputError(f"--depth-loss {self.depth_loss:g}: expected 0 or more; 1 is the original's")

    @property
    def supervision(self) -> dict[str, Any]:
        """Arguments of `load_scene`."""
        masks = False if self.no_masks else self.masks
        return {"masks": masks, "alpha": self.alpha, "depths": self.depth_loss > 0}


SETTLED = dict.fromkeys(("masks", "no-masks", "alpha"), "which pixels and which views count depends on it")


class DepthLoss:
    """Weight x L1 of inverse depths, the weight falling to a hundredth: the original 3DGS's regularisation.

    Args:
        weight: at the start, above 0.
        steps: of the run.
    """

    options = {"render_mode": "RGB+D"}  # noqa: RUF012 (constant)

    def __init__(self, weight: float, steps: int) -> None:
        self.weight, self.schedule = weight, LogLinear(FINAL_DEPTH_WEIGHT, steps)

    def terms(self, info: Mapping[str, Any], view: View, step: int) -> dict[str, Tensor]:
        """The term of one view, "depth"; 0 for one without a depth map. `info` is that of its rendering."""
        inverse = info["inverse_depth"]
        if view.inverse_depth is None:
            return {"depth": torch.zeros_like(inverse[0, 0])}
        return {"depth": self.weight * self.schedule(step) * depth_l1(inverse, view.inverse_depth, view.mask)}
