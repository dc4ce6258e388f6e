"""What `gsopt convert --prune-opacity` and `--prune-count` do, and the PSNR that it costs."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.config import TrainConfig
from gsopt.datasets import Scene
from gsopt.device import cpu_count, pick_device
from gsopt.editing import select
from gsopt.errors import InputError
from gsopt.evaluation import evaluate_scene, render_view
from gsopt.formats import Splat
from gsopt.pruning import contributions, largest
from gsopt.runtime import use_kernel_threads
from gsopt.warm_start import model_of

MOST_DEGREE = 3  # that the rasterizer has


@dataclass
class PruneOptions:
    """What is pruned, and how the scene is seen, as in training."""

    prune_opacity: float | None = None
    """Drop Gaussians with an opacity below this; with --scene, tell the PSNR lost."""
    prune_count: int | None = None
    """Keep so many Gaussians: those that show most in the training views of --scene."""
    scene: Path | None = None
    """Folder of the scene that the Gaussians were trained on."""
    resolution: int | None = None
    """Longest side of its images in pixels; default as in train."""
    images: str | None = None
    """Name of the images folder inside the scene."""
    test_every: int = TrainConfig.test_every
    """Every Nth photo by name is for testing, where the scene itself does not say which."""
    background: Literal["auto", "white", "black"] = "auto"
    """Behind the Gaussians; auto: white for photos with transparency, black for others."""
    antialiased: bool = False
    """As the model was trained."""
    threads: int | None = None
    """Processors the CPU rasterizer uses; default: all there are."""

    @property
    def asked(self) -> bool:
        """Whether there is anything to prune."""
        return self.prune_opacity is not None or self.prune_count is not None

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.prune_opacity is not None and not 0 < self.prune_opacity < 1:
            raise InputError(f"--prune-opacity {self.prune_opacity:g}: expected more than 0 and less than 1")
        if self.prune_count is not None and self.prune_count < 1:
            raise InputError(f"--prune-count {self.prune_count}: expected 1 or more")
        if self.prune_count is not None and self.scene is None:
            raise InputError(
                f"--prune-count {self.prune_count}: which Gaussians show least is for the training views to "
                "say; give --scene DIR"
            )
        if self.scene is not None and not self.asked:
            raise InputError(
                f"--scene {self.scene}: nothing to prune by it; give --prune-opacity or --prune-count"
            )


class _Views:
    """The scene, and how it is rendered."""

    def __init__(self, options: PruneOptions) -> None:
        given = {f.name: getattr(options, f.name) for f in fields(options) if not f.name.startswith("prune")}
        config = TrainConfig(**given, quiet=True)
        config.check()
        self.device = pick_device(config.device)
        config = config.resolved(self.device.type)
        self.scene: Scene = config.load_scene()
        self.background = config.plain_background(self.scene).to(self.device)
        self.options = config.render_options()
        use_kernel_threads(config.threads or cpu_count(), self.device, config.backend)

    def psnr(self, splat: Splat) -> float:
        """Of the test views in dB, of all training views where there are none."""
        model = model_of(_fitted(splat)).to(self.device)

        def render(camera: Camera, background: Tensor, _: int | None, **options: Any) -> tuple[Tensor, Any]:
            return render_view(model, camera, background, **options)

        metrics = evaluate_scene(render, self.scene, self.background, **self.options)
        return metrics["test" if self.scene.test else "train"]["psnr"]

    def contributions(self, splat: Splat) -> Tensor:
        """Over the training views. float64 [N], on the CPU"""
        model = model_of(_fitted(splat)).to(self.device)
        cameras = [view.camera for view in self.scene.train]
        return contributions(model, cameras, **self.options).cpu()


def prune(splat: Splat, options: PruneOptions) -> Splat:
    """The Gaussians that stay, in their order; says what went and what it cost.

    Raises:
        InputError: the scene cannot be used, or nothing would be left.
    """
    views = None if options.scene is None else _Views(options)
    before = 0.0 if views is None else views.psnr(splat)
    if (limit := options.prune_opacity) is not None:
        rows = splat.tensors["opacity"][:, 0].sigmoid() >= limit
        if not rows.any():
            raise InputError(f"--prune-opacity {limit:g}: no Gaussian is that opaque; lower it")
        print(
            f"prune     {int(rows.sum()):,} of {splat.count:,} Gaussians have an opacity of {limit:g} or more"
        )
        splat = select(splat, rows)
    if options.prune_count is not None and views is not None:
        splat = _keep_most(splat, views, options.prune_count)
    if views is not None:
        after, split = views.psnr(splat), "test" if views.scene.test else "training"
        print(f"lost      {before:.2f} dB before, {after:.2f} after: {after - before:+.2f} ({split} views)")
    return splat


def _keep_most(splat: Splat, views: _Views, count: int) -> Splat:
    shown = views.contributions(splat)
    rows = largest(shown, count)
    part = 100 * (shown[rows].sum() / shown.sum().clamp_min(torch.finfo(shown.dtype).tiny)).item()
    print(
        f"prune     {int(rows.sum()):,} of {splat.count:,} Gaussians have {part:.2f} % of what shows in the "
        f"{len(views.scene.train)} training views"
    )
    return select(splat, rows)


def _fitted(splat: Splat) -> Splat:
    """With no more harmonics than can be rendered."""
    return splat.with_degree(min(splat.sh_degree, MOST_DEGREE))
