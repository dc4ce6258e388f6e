"""gsopt: 3D Gaussian splatting with every optimizer decision in the open, fast without a GPU."""

from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.groups import GroupSpec, build_groups, build_scheduler, freeze, gaussian_specs, unfreeze
from gsopt.model import GaussianModel
from gsopt.optim import VisibleAdam, build_optimizer, load_optimizer_state
from gsopt.render import rasterization
from gsopt.trainer import Trainer

__all__ = [
    "GaussianModel",
    "GroupSpec",
    "InputError",
    "TrainConfig",
    "Trainer",
    "VisibleAdam",
    "build_groups",
    "build_optimizer",
    "build_scheduler",
    "freeze",
    "gaussian_specs",
    "load_optimizer_state",
    "load_scene",
    "rasterization",
    "unfreeze",
]
