"""No densification: the Gaussians stay as many as there are."""

from dataclasses import dataclass

from gsopt.strategy.protocol import Strategy


@dataclass
class NoStrategy(Strategy):
    """Leaves the rows alone; only the optimizer changes the model."""
