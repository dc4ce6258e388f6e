"""Strategies: which Gaussians there are. How their rows move is `gsopt.surgery`'s affair."""

from gsopt.strategy.budget import BudgetStrategy
from gsopt.strategy.default import DefaultStrategy
from gsopt.strategy.mcmc import MCMCStrategy
from gsopt.strategy.none import NoStrategy
from gsopt.strategy.protocol import Refinement, Strategy, movable, row_names

__all__ = [
    "BudgetStrategy",
    "DefaultStrategy",
    "MCMCStrategy",
    "NoStrategy",
    "Refinement",
    "Strategy",
    "movable",
    "row_names",
]
