"""The matrix of resumes: cases, how two runs are compared, and the fresh process that goes on with some.

    python tests/resuming.py THREADS FOLDER...       # go on with the runs in these folders

A new strategy or optimizer is one line here.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import torch
from PIL import Image
from torch import Tensor

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.datasets import pyramid
from gsopt.group_options import GroupOptions, Groups
from gsopt.model import GaussianModel
from gsopt.optim import catalog
from gsopt.rundir import read_json
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy
from gsopt.trainer import Trainer

STEPS = 32
SPLAT, MASKS = Path("splat.ply"), "ignored"  # in the folder of the scene
LEAST_PIXELS = 6  # photos of 24 pixels are reduced, too: to 6 until step 3, to 12 until step 10

WHEN = {"refine_start_iter": 5, "refine_stop_iter": 30, "refine_every": 5}  # after steps 10, 15, ..., 25
DENSIFY = DefaultStrategy(**WHEN, reset_every=20, grow_grad2d=1e-5, prune_opa=0.02)
STRATEGIES: dict[str, dict[str, Any]] = {
    "default": {"strategy": "default", "densify": DENSIFY},
    "absgrad": {
        "strategy": "default",
        "densify": replace(DENSIFY, absgrad=True, refine_scale2d_stop_iter=30),
    },
    "revised_opacity": {
        "strategy": "default",
        "densify": replace(DENSIFY, revised_opacity=True, grow_scale3d=0.02),
    },
    "mcmc": {"strategy": "mcmc", "max_gaussians": 90, "mcmc": MCMCStrategy(**WHEN, min_opacity=0.098)},
    "budget": {"strategy": "budget", "max_gaussians": 90, "budget": BudgetStrategy(**WHEN)},
    "none": {"strategy": "none"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name} for name in sorted(catalog._classes())},
    "adamw, decay": {"optimizer": "adamw", "weight_decay": 1e-3},
    "amsgrad": {"optimizer_args": ("amsgrad=true",)},
    "momentum": {"optimizer": "sgd", "optimizer_args": ("momentum=0.9", "nesterov=true")},
    "centered": {"optimizer": "rmsprop", "optimizer_args": ("momentum=0.5", "centered=true")},
    "mixed": {
        "groups": Groups(
            xyz=GroupOptions(optimizer="sgd"),
            feature_dc=GroupOptions(optimizer="visible_adam"),
            opacity=GroupOptions(optimizer="rmsprop"),
        )
    },
}


def write_ball(folder: Path) -> Path:
    """The scene of the cases, 60 points and their photos, with 40 Gaussians beside it as `SPLAT`.

    There are depth maps, and masks in a folder of another name than the usual.
    """
    scenes.write_nerf_synthetic(folder, points=60)
    used = np.full((24, 24), 255, np.uint8)
    used[5:15, 3:11] = 0
    for number, camera in enumerate(scenes.orbit(8, 24, 24)[:6]):
        for part in (MASKS, "depths"):
            (folder / part / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(used).save(folder / MASKS / "train" / f"r_{number}.png")
        np.save(folder / "depths" / "train" / f"r_{number}.npy", scenes.depth(camera))
    xyz, rgb = scenes.ball_points(40, seed=1)
    GaussianModel.from_points(xyz, rgb / 255, sh_degree=3).save_ply(folder / SPLAT)
    return folder


@dataclass
class Case:
    """Settings of a run, and the steps after which it is stopped."""

    settings: dict[str, Any] = field(default_factory=dict)
    stops: tuple[int, ...] = (13,)


CASES = {  # what happens between the stop and the end, or around the stop; photos are six
    "first step": Case(stops=(1,)),
    "mid-epoch": Case(stops=(8, 16)),
    "before, at and after a densification": Case(stops=(14, 15, 16)),
    "before, at and after an opacity reset": Case(stops=(19, 20, 21)),
    "before, at and after finer photos": Case(stops=(2, 3, 4, 9, 10)),
    "last step": Case(stops=(31, 32)),
    "SH rise": Case({"sh_degree_every": 7}, stops=(6, 7, 8)),
    "freeze window": Case({"freeze": ("xyz@5:20", "opacity@10:")}, stops=(5, 12, 20, 22)),
    "excluded": Case({"exclude": ("rotation",)}),
    "accumulation boundary": Case({"accumulate": 2, "batch_size": 2, "scale_rates": True}, stops=(1, 7)),
    "random background": Case({"background": "random"}),
    "locked": Case({"lock": ("sphere:0,0,1,0.5",)}),
    "locked, mcmc": Case({"lock": ("sphere:0,0,1,0.5",)} | STRATEGIES["mcmc"]),
    "beside": Case({"optimize_poses": True, "exposure": True}, stops=(13, 20)),
    "beside, mcmc and mixed": Case(
        {"optimize_poses": True, "exposure": True} | STRATEGIES["mcmc"] | OPTIMIZERS["mixed"]
    ),
    "a background that is trained": Case({"background_model": SPLAT, "background_model_trainable": True}),
    "begun with Gaussians": Case({"init": SPLAT}, stops=(1, 13)),
    "begun with Gaussians, as the rest of a run": Case({"init": SPLAT, "start_step": 4}, stops=(5, 13)),
    "antialiased, deterministic": Case({"antialiased": True, "deterministic": True}),
    "masks": Case({"masks": MASKS}),
    "masks and depth maps": Case({"masks": MASKS, "depth_loss": 1.0}, stops=(2, 13)),
    "schedules": Case(
        {
            "groups": Groups(
                xyz=GroupOptions(schedule="cosine:0.1"),
                opacity=GroupOptions(schedule="warmup:6 then step:5:0.5"),
            )
        }
    ),
    **{
        f"{strategy} with {optimizer}": Case(STRATEGIES[strategy] | OPTIMIZERS[optimizer], stops=(13, 20))
        for strategy in STRATEGIES
        for optimizer in OPTIMIZERS
    },
}
SHORT = (  # of the default suite: each strategy, most optimizers
    "before, at and after an opacity reset",
    "before, at and after finer photos",
    "freeze window",
    "accumulation boundary",
    "SH rise",
    "locked, mcmc",
    "beside",
    "masks and depth maps",
    "default with visible_adam",
    "absgrad with mixed",
    "revised_opacity with adamw, decay",
    "mcmc with visible_adam",
    "budget with mixed",
    "none with momentum",
)


def straight(case: Case, scene: Path, folder: Path) -> Path:
    """A run without interruption in `folder`, which keeps the checkpoints of all steps."""
    settings = {
        "scene": scene,
        "output": folder,
        "iterations": STEPS,
        "threads": 1,
        "checkpoint_every": 1,
        "keep": STEPS,
        "test_iterations": (14, 25),
        "save_iterations": (),
        "device": "cpu",
        "quiet": True,
    }
    settings |= STRATEGIES["default"] | case.settings
    settings |= {name: scene / value for name, value in settings.items() if value == SPLAT}
    Trainer(TrainConfig(**settings)).train()
    return folder


def stopped(run: Path, step: int, folder: Path) -> Path:
    """A copy of a run as it was when it was killed after `step`, but for TensorBoard's later events."""
    shutil.copytree(run, folder)
    for path in checkpoint.find(folder / "checkpoints"):
        if checkpoint.step_of(path) > step:
            path.unlink()
    (folder / "metrics.json").unlink()
    return folder


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Where two checkpoints are not the same to the bit; not the times, and where and how fast they ran."""
    if isinstance(a, Tensor):
        if not (isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and same_bits(a, b)):
            yield place
    elif isinstance(a, dict):
        if not (isinstance(b, dict) and a.keys() == b.keys()):
            yield f"{place}: {sorted(map(str, a))} against {sorted(map(str, b))}"
        for key in [key for key in a if key in b]:
            if f"{place}/{key}" not in ("/seconds", "/config/threads", "/config/output", "/config/resume"):
                yield from differences(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{place}: {len(a)} entries against {len(b)}"
        for number, pair in enumerate(zip(a, b, strict=False)):
            yield from differences(*pair, f"{place}[{number}]")
    elif a != b:
        yield f"{place}: {a!r} against {b!r}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Zeros of another sign are others; the same NaN is the same."""
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)))


def run_differences(a: Path, b: Path) -> list[str]:
    """What differs at the end of two runs: checkpoint, PLY, TensorBoard's scalars, tests."""
    states = [checkpoint.load(checkpoint.latest(run / "checkpoints")) for run in (a, b)]
    found = list(differences(*states))
    if states[0]["step"] == states[1]["step"]:
        ply = Path("point_cloud") / f"iteration_{states[0]['step']}" / "point_cloud.ply"
        if (a / ply).read_bytes() != (b / ply).read_bytes():
            found.append(str(ply))
    found += differences(scalars(a), scalars(b), "scalars")
    tests = [
        [entry | {"seconds": 0} for entry in read_json(run / "metrics.json")["history"]] for run in (a, b)
    ]
    return found + list(differences(*tests, "history"))


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run's events but the times, as TensorBoard reads them: (step, value) in order."""
    from test_monitor import read

    events = read(run)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
        if tag != "iter_time"
    }


def main(threads: int, *folders: str) -> None:
    """Go on with each run, with other numbers of threads than the first had."""
    pyramid.SMALLEST = LEAST_PIXELS
    torch.set_num_threads(threads)
    for folder in folders:
        Trainer(replace(TrainConfig.of_run(folder), threads=threads)).train()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
