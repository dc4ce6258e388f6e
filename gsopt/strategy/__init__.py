"""Strategies: which Gaussians there are. How their rows move is `gsopt.surgery`'s affair."""

from gsopt.strategy.default import DefaultStrategy
from gsopt.strategy.none import NoStrategy
from gsopt.strategy.protocol import Refinement, Strategy, movable

__all__ = ["DefaultStrategy", "NoStrategy", "Refinement", "Strategy", "movable"]
