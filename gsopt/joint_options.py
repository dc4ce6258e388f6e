"""Groups of what is trained beside the model: their names, and the specs that come of a run's settings."""

import dataclasses
from typing import TYPE_CHECKING

from gsopt.freeze_windows import ALWAYS, parse_freezes
from gsopt.group_options import (
    attribute_name,
    given_changes,
    group_specs,
    named_options,
    stillness,
)
from gsopt.groups import GroupSpec
from gsopt.model import ATTRIBUTES
from gsopt.schedules import LogLinear

if TYPE_CHECKING:
    from gsopt.config import TrainConfig

BACKGROUND_GROUPS = tuple(f"background.{name}" for name in ATTRIBUTES)


def side_specs(iterations: int) -> dict[str, GroupSpec]:
    """The groups of pose refinement and exposure, for a run of so many optimizer steps.

    Rates, decay and schedule of the poses are those of gsplat's `simple_trainer`, there for scenes that are
    scaled to an extent of about 1; rate and schedule of the exposure those of the original 3DGS.
    """
    return {
        "poses": GroupSpec(lr=1e-5, schedule=LogLinear(0.01, iterations), weight_decay=1e-6),
        "exposure": GroupSpec(lr=0.01, schedule=LogLinear(0.1, iterations)),
    }


def present_groups(config: "TrainConfig") -> tuple[str, ...]:
    """Names of all groups of a run."""
    asked = {"poses": config.optimize_poses, "exposure": config.exposure}
    background = BACKGROUND_GROUPS if config.background_model else ()
    return (*ATTRIBUTES, *(name for name in asked if asked[name]), *background)


def still_groups(config: "TrainConfig") -> tuple[str, ...]:
    """Those that are frozen without `--freeze`."""
    return BACKGROUND_GROUPS if config.background_model and not config.background_model_trainable else ()


def joint_specs(config: "TrainConfig", extent: float) -> dict[str, GroupSpec]:
    """Specs of the groups beside the model's own: those of `present_groups`.

    Args:
        config: settings of the run.
        extent: size of the scene, world units.
    """
    iterations = config.schedule_iterations or config.iterations
    options, present = named_options(config.groups), present_groups(config)
    windows, excluded = parse_freezes(config.freeze, present), set(map(attribute_name, config.exclude))
    specs = {}
    for name, spec in side_specs(iterations).items():
        if name in present:  # --weight-decay is the Gaussians' affair: these have their own
            changes = given_changes(name, options[name], iterations)
            specs[name] = dataclasses.replace(spec, **changes, **stillness(name, windows, excluded))
    if config.background_model:
        specs |= group_specs(
            config.groups.background,
            extent,
            iterations,
            windows=windows | dict.fromkeys(still_groups(config), (ALWAYS,)),
            excluded=excluded,
            weight_decay=config.weight_decay,
            fit_rates=config.fit_rates,
            prefix="background.",
        )
    return specs
