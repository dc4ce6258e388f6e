"""Training that begins with Gaussians from a file (`--init`) instead of with points.

Such a model is worth something, and three things that are right for a new run would spoil it: rates made for
a start (the positions' are 100 times those at the end), images at a quarter of the resolution, and
densification with its resets of opacity. So by default a run goes on as a finished one: rates stay at the end
of their schedules, and rise to it in a warm-up while there are no moments yet; rows stay as they are.
`--start-step N` asks for something else: the run is then the rest of one that has done N steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt.datasets.point_files import POINT_FILES
from gsopt.errors import InputError
from gsopt.formats import INPUTS, Splat, read
from gsopt.formats.splat import SHAPES
from gsopt.groups import GroupSpec
from gsopt.guards import diverged
from gsopt.model import GaussianModel
from gsopt.optim import load_optimizer_state
from gsopt.schedules import Constant, Product, Schedule, Sequential, WarmUp

if TYPE_CHECKING:
    from gsopt.config import TrainConfig

WITHOUT_MOMENTS = (".ply", ".splat", ".spz")  # formats that have no room for an optimizer's state
NEVER = 2**31 - 1  # iterations: no run gets there
LONGEST_WARMUP = 100  # steps: Adam's second moment, with beta 0.999, has seen enough by then
_ABOUT_START = ("start_step", "init_rates", "init_warmup", "init_reset_opacity")
_HEADER = 1 << 16  # bytes in which the header of a PLY ends


def is_splat(path: Path) -> bool:
    """Whether a file holds Gaussians, not bare points: its ending says so, or the header of a PLY.

    Raises:
        InputError: no such file, or an ending that no format has.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER).partition(b"end_header")[0]
    except OSError as error:
        raise InputError(f"--init {path}: cannot be read ({error.strerror}); check the path") from None
    suffix, known = path.suffix.lower(), tuple(dict.fromkeys((*INPUTS, *POINT_FILES)))
    if suffix not in known:
        raise InputError(f"--init {path}: no format has this ending; expected one of {', '.join(known)}")
    if suffix in POINT_FILES and suffix != ".ply":
        return False
    return suffix != ".ply" or b" f_dc_0" in header or b" packed_position" in header


def check_start(config: "TrainConfig") -> None:
    """Raise InputError, naming the flag, for settings of the start that cannot be used."""
    for name in _ABOUT_START:
        value = getattr(config, name)
        if config.init is None and value not in (None, False):
            raise InputError(f"{_flag(name)} {value}: is about Gaussians from a file; give --init FILE")
    if config.start_step is not None and config.start_step >= config.iterations:
        raise InputError(
            f"--start-step {config.start_step}: expected fewer than the {config.iterations} of --iterations, "
            "which counts those steps, too"
        )


def started(config: "TrainConfig") -> "TrainConfig":
    """The settings with the defaults of a run that begins with Gaussians from a file, if it does.

    What was given stays, but for coarse to fine and the fit of rates, which only `start_step` keeps: whether
    they were given cannot be told.

    Raises:
        InputError: the file is missing, or a point cloud where there must be a model.
    """
    if config.init is None or config.resume is not None:  # a run that goes on has it all in its config.json
        return config
    if not is_splat(config.init):
        if given := [_flag(name) for name in _ABOUT_START if getattr(config, name) not in (None, False)]:
            raise InputError(
                f"--init {config.init}: a point cloud, which has no training to go on from; "
                f"leave {' and '.join(given)} away"
            )
        return config
    changes: dict[str, Any] = {"init_rates": config.init_rates or "continue"}
    if config.init_warmup is None and config.init.suffix.lower() in WITHOUT_MOMENTS:
        changes["init_warmup"] = _warmup_steps(config)
    densify: dict[str, Any] = {}
    if config.start_step is None:
        changes |= {"coarse_to_fine": False, "fit_rates": False, "strategy": config.strategy or "none"}
        if config.densify.refine_stop_iter is None:
            densify["refine_stop_iter"] = 0
    if not config.init_reset_opacity and config.densify.reset_every is None:
        densify["reset_every"] = NEVER
    return replace(config, densify=replace(config.densify, **densify), **changes)


def for_start(config: "TrainConfig", start: Splat) -> "TrainConfig":
    """The settings for a run that begins with `start`, once it is known what is in it."""
    if config.init_warmup is not None:
        return config
    return replace(config, init_warmup=0 if start.moments else _warmup_steps(config))


def read_start(path: Path, sh_degree: int) -> Splat:
    """The Gaussians to begin with, in harmonics of this degree. Raises InputError; infinite sizes are one."""
    splat = read(path).with_degree(sh_degree)
    if found := diverged(splat.tensors.items()):
        name, rows = found
        raise InputError(
            f"--init {path}: {name} is not finite in {rows}, expected numbers (sizes are logarithms); "
            "remove these Gaussians"
        )
    return splat


def model_of(splat: Splat) -> GaussianModel:
    """The Gaussians as a model."""
    model = GaussianModel(splat.count, splat.sh_degree)
    with torch.no_grad():
        for name, value in splat.tensors.items():
            model.get_parameter(name).copy_(value)
    return model


def load_moments(optimizer: Optimizer, splat: Splat) -> list[str]:
    """Give the optimizer the moments that came with the Gaussians, by name; what became of them, in words."""
    if not splat.moments:
        return ["no moments in the file: fresh ones"]
    names = [name for name in SHAPES if name in splat.moments]
    groups = [{"params": [i], "param_names": [name], "name": name} for i, name in enumerate(names)]
    state = {i: dict(splat.moments[name]) for i, name in enumerate(names)}
    if "step" in getattr(optimizer, "per_row_state", ()):  # as in `VisibleAdam`: every row has had them all
        for entries in state.values():
            if isinstance(entries.get("step"), Tensor) and entries["step"].dim() == 0:
                entries["step"] = entries["step"].repeat(splat.count)
    report = load_optimizer_state(optimizer, {"state": state, "param_groups": groups}, strict=False)
    lines = [f"moments of {', '.join(report.matched)}"] if report.matched else []
    fresh = [*report.missing, *report.shape_mismatch, *report.state_mismatch]
    return [*lines, *([f"fresh moments of {', '.join(fresh)}"] if fresh else [])]


def warm_specs(specs: Mapping[str, GroupSpec], config: "TrainConfig", length: int) -> dict[str, GroupSpec]:
    """The group table of a run that begins with Gaussians from a file.

    Groups whose schedule was given keep it. Rates that were given stay as they are where the others would be
    held at the end of their schedules.

    Args:
        specs: as for a new run.
        config: of the run; its `init_rates` is "continue" or "restart".
        length: steps of the schedules; for "restart" those that are left.
    """
    start_step, rates, warmup = config.start_step, config.init_rates, config.init_warmup
    warm = {}
    for name, spec in specs.items():
        given: Any = getattr(config.groups, name)
        if given.schedule is not None:
            warm[name] = spec
            continue
        factors: list[Schedule] = []
        if spec.schedule is not None and rates == "continue" and start_step is None:
            factors += [Constant(spec.schedule(length))] if given.lr is None else []
        elif spec.schedule is not None:
            factors.append(_delayed(spec.schedule, start_step if rates == "restart" else 0))
        if warmup:
            factors.append(_delayed(WarmUp(warmup), start_step))
        schedule = Product(tuple(factors)) if len(factors) > 1 else factors[0] if factors else None
        warm[name] = replace(spec, schedule=schedule)
    return warm


def _warmup_steps(config: "TrainConfig") -> int:
    """Steps over which rates rise where there are no moments: a tenth of the run, 100 at most."""
    return max(1, min(LONGEST_WARMUP, (config.iterations - (config.start_step or 0)) // 10))


def _delayed(schedule: Schedule, steps: int | None) -> Schedule:
    """`schedule` counted from a later step."""
    return Sequential((Constant(), schedule), (steps,)) if steps else schedule


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
