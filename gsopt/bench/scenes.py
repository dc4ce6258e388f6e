"""What is benched: synthetic scenes of fixed size, the same on every machine, or a scene from a folder.

A synthetic scene is a ball of Gaussians of radius 1 around the origin, with opacities and colours
(harmonics of degree 3, all bands) at random, seen by cameras around it at a distance of 3. Its photos are
noise. Learning rates are 0 and densification never comes: a step does all it would in a training, but every
repetition sees the same scene.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gsopt.cameras import Camera, cameras_extent
from gsopt.config import TrainConfig
from gsopt.datasets.scene import PointCloud, Scene, View
from gsopt.errors import InputError
from gsopt.group_options import GroupOptions, Groups
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer

VIEWS = 5
DISTANCE = 3.0  # world units: of the cameras from the ball's centre
FOCAL = 530 / 400  # of the image's height
WIDTH_AT_30K = math.exp(-4.5)  # world units: median standard deviation of 30,000 Gaussians
NEVER = 1_000_000_000  # steps
SPREAD = 0.6  # standard deviation of the logarithm of a Gaussian's widths


@dataclass(frozen=True)
class Size:
    """How large a synthetic scene is."""

    name: str
    gaussians: int
    width: int  # pixels
    height: int
    splat: float  # median standard deviation of the Gaussians, world units

    @property
    def pixels(self) -> int:
        return self.width * self.height


def filling(gaussians: int) -> float:
    """`Size.splat` such that the ball is as full as with 30,000: widths shrink as N^-1/3."""
    return WIDTH_AT_30K * (gaussians / 30_000) ** (-1 / 3)


def covering(gaussians: int) -> float:
    """`Size.splat` such that an image is as covered as with 30,000: widths shrink as N^-1/2."""
    return WIDTH_AT_30K * (gaussians / 30_000) ** (-1 / 2)


def _named(name: str, gaussians: int, width: int, height: int) -> Size:
    return Size(name, gaussians, width, height, filling(gaussians))


SIZES = {
    size.name: size
    for size in (
        _named("small", 30_000, 400, 400),
        _named("medium", 100_000, 960, 540),
        _named("large", 1_000_000, 1600, 1066),
    )
}


def parse_size(text: str) -> Size:
    """A size by its name, or any other as GAUSSIANS@WIDTHxHEIGHT: "50000@640x480".

    Raises InputError, naming --sizes, for anything else.
    """
    if text in SIZES:
        return SIZES[text]
    match = re.fullmatch(r"(\d+)@(\d+)x(\d+)", text.replace(",", "").replace("_", ""))
    if not match or 0 in (numbers := [int(number) for number in match.groups()]):
        raise InputError(
            f"--sizes {text}: expected {', '.join(SIZES)} or GAUSSIANS@WIDTHxHEIGHT such as 50000@640x480"
        )
    return _named(text, *numbers)


def synthetic(size: Size, views: int = VIEWS) -> tuple[GaussianModel, Scene]:
    """The model and the scene of a size: the same bits with the same torch, whatever was drawn before."""
    generator = torch.Generator("cpu").manual_seed(0)
    return _ball(size, generator), _around(size, views, generator)


def _ball(size: Size, generator: torch.Generator) -> GaussianModel:
    n = size.gaussians

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cpu")

    model = GaussianModel(n, sh_degree=3, device="cpu")
    direction = normal(n, 3)
    radius = torch.rand(n, 1, generator=generator, device="cpu") ** (1 / 3)
    with torch.no_grad():
        model.xyz.copy_(direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-6) * radius)
        model.rotation.copy_(normal(n, 4))
        model.scaling.copy_(normal(n, 3) * SPREAD + math.log(size.splat))
        model.opacity.copy_(2 * normal(n, 1))
        model.feature_dc.copy_(0.3 * normal(n, 1, 3))
        model.feature_rest.copy_(0.1 * normal(*model.feature_rest.shape))
    return model


def _around(size: Size, views: int, generator: torch.Generator) -> Scene:
    focal, width, height = FOCAL * size.height, size.width, size.height
    train = []
    for index in range(views):
        angle = 2 * math.pi * index / views
        cos, sin = math.cos(angle), math.sin(angle)
        rows = [[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, DISTANCE], [0, 0, 0, 1]]
        viewmat = torch.tensor(rows, dtype=torch.float32, device="cpu")
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], device="cpu")
        shape = (height, width, 3)
        photo = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cpu")
        train.append(View(Camera(f"view_{index}", width, height, K, viewmat), photo))
    points = PointCloud(torch.zeros(1, 3, device="cpu"), torch.zeros(1, 3, device="cpu"))
    extent = cameras_extent([view.camera for view in train])
    return Scene(Path(size.name), "synthetic", train, [], points, extent)


def still(config: TrainConfig) -> TrainConfig:
    """The same settings, quiet, at full resolution, with learning rates of 0, gathering the statistics of
    the strategy `default` but never acting on them; without any strategy if that is asked for."""
    still_groups: dict[str, Any] = {name: GroupOptions(lr=0.0) for name in ATTRIBUTES}
    groups = Groups(**still_groups)
    densify = DefaultStrategy(refine_start_iter=NEVER, refine_stop_iter=NEVER, reset_every=NEVER)
    strategy: Literal["none", "default"] = "none" if config.strategy == "none" else "default"
    return replace(
        config, groups=groups, strategy=strategy, densify=densify, coarse_to_fine=False, quiet=True
    )


def trainer_of(size: Size, freeze: Sequence[str] = (), views: int = VIEWS, **settings: Any) -> Trainer:
    """A trainer of a synthetic scene, all bands in use. `settings` are those of `TrainConfig`."""
    model, scene = synthetic(size, views)
    config = still(TrainConfig(scene=scene.path, freeze=tuple(freeze), **settings))
    return all_bands(Trainer(config, scene=scene, model=model))


def all_bands(trainer: Trainer) -> Trainer:
    """The same trainer, with all bands of its harmonics in use, as in most of a training, from the start."""
    trainer.first_sh_degree = trainer.model.max_sh_degree
    return trainer
