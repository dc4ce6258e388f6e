"""A training step with the settings of gsplat's own trainer, to be timed beside ours on CUDA.

After `examples/simple_trainer.py` of gsplat with its default settings, written anew: six optimizers (Adam,
fused), one tensor of harmonics joined in each step, photos in float32 that are waited for, the loss in plain
torch, read in each step for the progress line, statistics for densification. The rasterizer is the same, so
what differs is the loop around it. It takes its SSIM from the package fused_ssim; here it is ours.
"""

import time

import torch
import torch.nn.functional as F

from gsopt.bench.marks import Marks
from gsopt.bench.measure import Case, Step, repeat
from gsopt.bench.scenes import VIEWS, Size, synthetic
from gsopt.device import peak_memory, reset_peak_memory, synchronize
from gsopt.losses import ssim
from gsopt.render import rasterization
from gsopt.runtime import ViewOrder, torch_threads
from gsopt.strategy.statistics import ViewStatistics

SSIM_WEIGHT = 0.2


class GsplatTimer:
    """Timed steps of the same work as `bench.measure.Timer` has for a trainer of ours: rates of 0, noise."""

    def __init__(self, size: Size, device: torch.device, views: int = VIEWS) -> None:
        model, self.scene = synthetic(size, views)
        self.model, self.device = model.to(device), device
        self.optimizers = [
            torch.optim.Adam([parameter], lr=0.0, eps=1e-15, fused=True) for parameter in model.parameters()
        ]
        self.statistics = ViewStatistics("gsplat's trainer")
        self.order = ViewOrder(views, seed=0)
        self.photos = [view.image.float() for view in self.scene.train]  # as its data loader gives them
        self.marks = Marks(device)

    def warm_up(self, steps: int = VIEWS) -> None:
        """Untimed steps."""
        with torch_threads(1):
            for _ in range(steps):
                self.train_step()
        synchronize(self.device)

    def step(self) -> Step:
        """One timed step."""
        synchronize(self.device)
        with torch_threads(1):
            begin = time.perf_counter()
            self.train_step()
            synchronize(self.device)
            seconds = time.perf_counter() - begin
        return Step(seconds, self.marks.seconds(), 0.0, {})

    def train_step(self) -> float:
        """One update from one view; the loss."""
        marks, model, index = self.marks, self.model, self.order.next()
        marks.begin()
        camera = self.scene.train[index].camera
        viewmat, K = camera.viewmat.to(self.device), camera.K.to(self.device)
        pixels = self.photos[index].to(self.device) / 255.0
        marks.mark("photo")
        images, _, info = rasterization(
            model.xyz,
            model.rotation,
            model.scaling.exp(),
            model.opacity.sigmoid().squeeze(-1),
            torch.cat([model.feature_dc, model.feature_rest], dim=1),
            viewmat[None],
            K[None],
            camera.width,
            camera.height,
            sh_degree=3,
            packed=False,
        )
        info["means2d"].retain_grad()
        marks.mark("render")
        images.register_hook(lambda _: marks.mark("loss"))
        image = images[0]
        loss = torch.lerp(F.l1_loss(image, pixels), 1 - ssim(image, pixels), SSIM_WEIGHT)
        loss.backward()
        value = loss.item()
        marks.mark("backward")
        self.statistics.add(info)
        marks.mark("statistics")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        marks.mark("optimizer")
        return value


def measure_gsplat(size: Size, device: torch.device, rounds: int, steps: int) -> Case:
    """`bench.measure.measure_case` for gsplat's settings, without the machine's speed."""
    reset_peak_memory(device)
    timer = GsplatTimer(size, device)
    name = f"{size.name}, gsplat's trainer"
    found = repeat({name: timer}, rounds, steps)[name]
    memory = {} if device.type == "cpu" else {"peak": peak_memory(device)}
    return Case(name, size.gaussians, size.width, size.height, found, [], memory)
