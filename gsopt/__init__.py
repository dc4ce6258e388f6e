"""gsopt: 3D Gaussian splatting with every optimizer decision in the open, fast without a GPU."""

from gsopt.batches import scale_for_batch
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.exposure import Exposure
from gsopt.freeze_windows import FreezeWindow
from gsopt.groups import (
    GroupSpec,
    apply_freezes,
    build_groups,
    build_scheduler,
    freeze,
    gaussian_specs,
    unfreeze,
)
from gsopt.joint import Joint
from gsopt.locks import hold_locked, lock, unlock
from gsopt.model import GaussianModel
from gsopt.optim import VisibleAdam, build_optimizer, load_optimizer_state
from gsopt.poses import PoseRefiner
from gsopt.render import rasterization
from gsopt.schedule_text import parse_schedule
from gsopt.trainer import Trainer

__all__ = [
    "Exposure",
    "FreezeWindow",
    "GaussianModel",
    "GroupSpec",
    "InputError",
    "Joint",
    "PoseRefiner",
    "TrainConfig",
    "Trainer",
    "VisibleAdam",
    "apply_freezes",
    "build_groups",
    "build_optimizer",
    "build_scheduler",
    "freeze",
    "gaussian_specs",
    "hold_locked",
    "load_optimizer_state",
    "load_scene",
    "lock",
    "parse_schedule",
    "rasterization",
    "scale_for_batch",
    "unfreeze",
    "unlock",
]
