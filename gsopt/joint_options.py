"""Groups of what is trained beside the model: their names, and the specs that come of a run's settings."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gsopt.group_options import attribute_name, given_changes, group_specs, named_options
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
    options = named_options(config.groups)
    frozen, excluded = ({attribute_name(text) for text in texts} for texts in (config.freeze, config.exclude))
    specs = {}
    for name, spec in side_specs(iterations).items():
        if name in present_groups(config):
            changes = given_changes(options[name], iterations)
            changes |= {"frozen": name in frozen, "optimize": name not in excluded}
            specs[name] = dataclasses.replace(spec, **changes)
    if config.background_model:
        own = group_specs(
            config.groups.background,
            extent,
            iterations,
            freeze=_of_background(config.freeze),
            exclude=_of_background(config.exclude),
            fit_rates=config.fit_rates,
        )
        still = not config.background_model_trainable
        specs |= {
            f"background.{name}": dataclasses.replace(spec, frozen=still or spec.frozen)
            for name, spec in own.items()
        }
    return specs


def _of_background(texts: Sequence[str]) -> list[str]:
    prefix = "background."
    return [text.removeprefix(prefix) for text in texts if text.startswith(prefix)]
