"""Optimizers by name, their state by name, Adam on the CPU kernel, Adam of visible rows, several as one."""

from gsopt.optim.adam import Adam, AdamW
from gsopt.optim.build import build_optimizer
from gsopt.optim.mixed import MixedOptimizer
from gsopt.optim.state import LoadReport, load_optimizer_state
from gsopt.optim.visible import VisibleAdam, visible_rows

__all__ = [
    "Adam",
    "AdamW",
    "LoadReport",
    "MixedOptimizer",
    "VisibleAdam",
    "build_optimizer",
    "load_optimizer_state",
    "visible_rows",
]
