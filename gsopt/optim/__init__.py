"""Optimizers by name, their state by name, and Adam on the CPU kernel."""

from gsopt.optim.adam import Adam, AdamW
from gsopt.optim.build import build_optimizer
from gsopt.optim.state import LoadReport, load_optimizer_state

__all__ = ["Adam", "AdamW", "LoadReport", "build_optimizer", "load_optimizer_state"]
