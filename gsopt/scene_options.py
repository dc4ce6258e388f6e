"""What a run begins with, the units it trains in, and where its photos are: a part of `TrainConfig`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gsopt.datasets.normalization import Normalization
from gsopt.datasets.photo_cache import CacheKind
from gsopt.errors import InputError


@dataclass(kw_only=True)
class SceneOptions:
    """Points to begin with, and the world to train in."""

    normalize: Normalization = "none"
    """Train with the mean camera at the origin, the farthest 1 away (scale), and z up (up); files of the run
    are in the scene's own units all the same, checkpoints are not."""
    init_points: int | None = None
    """Start from so many random points, in the volume that the cameras see together."""
    init_max: int | None = None
    """Thin the points to begin with to at most so many, one for each voxel; for clouds of any size."""

    cache: CacheKind = "memory"
    """Decoded photos are in memory, or in files of the cache folder, mapped (disk): for scenes larger than
    memory; later runs begin at once. The same bits."""

    def check_points(self, init: Path | None, *, is_splat: Callable[[], bool]) -> None:
        """Raise InputError, naming the flag, for values that cannot be used, alone or with `--init`."""
        for name, value in (("init-points", self.init_points), ("init-max", self.init_max)):
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: expected 1 or more")
        if self.init_points is not None:
            others = (("init", init), ("init-max", self.init_max))
            if other := next((f"--{name} {value}" for name, value in others if value is not None), None):
                raise InputError(
                    f"--init-points {self.init_points}: are random points, and {other} is about others; "
                    "leave one of the two away"
                )
        if self.init_max is not None and is_splat():
            raise InputError(
                f"--init-max {self.init_max}: thins clouds of points, and --init {init} has Gaussians; "
                f"make it smaller first: gsopt convert {init} OUT.ply --prune-count K --scene DIR"
            )


# Which of these cannot change in a run, and why
FIXED_POINTS = {
    "init-points": "it has started already",
    "init-max": "it has started already",
    "normalize": "its model is in the units of the one",
}
