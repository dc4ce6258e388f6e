"""What a checkpoint holds of a run, how the newest of a run is found, and how a trainer goes on from it.

docs/resume.md says what is promised.
"""

import warnings
from typing import TYPE_CHECKING, Any

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.datasets import Scene
from gsopt.errors import InputError
from gsopt.optim import load_optimizer_state
from gsopt.ranks import Ranks
from gsopt.rundir import RunFolder, read_json
from gsopt.similarity import Similarity
from gsopt.versions import other_versions, versions

if TYPE_CHECKING:
    from gsopt.trainer import Trainer

SAVED = (  # in every checkpoint
    *("step", "first_sh_degree", "model", "optimizer", "strategy", "strategy_kind"),
    *("order", "generator", "seconds", "config"),
)


def state_of(trainer: "Trainer") -> dict[str, Any]:
    """All that the rest of a run depends on, as a checkpoint holds it: `SAVED` and what is newer."""
    return {
        "step": trainer.step,
        "skipped": trainer.skipped,
        "by_hand": trainer.by_hand.state_dict(),
        "first_sh_degree": trainer.first_sh_degree,
        "model": trainer.model.state_dict(),
        "joint": trainer.joint.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "strategy": trainer.strategy.state_dict(),
        "strategy_kind": type(trainer.strategy).__name__,
        "order": trainer.order.state_dict(),
        "generator": trainer.generator.get_state(),
        "seconds": dict(trainer.clock.seconds),
        "extent": trainer.scene.extent,  # for other programs, see `gsopt.formats`
        "world": trainer.scene.world and trainer.scene.world.to_json(),  # the model is in units of its own
        "config": trainer.config.to_json(),
        "versions": versions(),
    }


def saved_state(config: TrainConfig, run: RunFolder, ranks: Ranks) -> dict[str, Any] | None:
    """What the newest checkpoint of the run to resume holds; None for a new run and one that has none.

    Raises InputError where the run cannot go on with these settings.
    """
    if not config.resume:
        return None
    config.check_resume(TrainConfig.of_run(run.path))
    # The first process chooses for all: only one may rename what is damaged.
    found = checkpoint.load_latest(run.checkpoints) if ranks.first else None
    path = ranks.tell(lambda: found and found[0])
    if path is None:
        return None
    state = found[1] if found else checkpoint.load(path)
    if missing := sorted(set(SAVED) - set(state)):
        raise InputError(f"{path}: no {', '.join(missing)} in it; delete it, and --resume starts earlier")
    if state["step"] > config.iterations:
        raise InputError(
            f"--iterations {config.iterations}: the run has done {state['step']} already; give more"
        )
    return state


def saved_world(state: dict[str, Any] | None) -> Similarity | None:
    """The move that normalised the scene of the run, from what a checkpoint holds."""
    world = (state or {}).get("world")  # older checkpoints have no such entry
    return world and Similarity.of_json(world)


def go_on(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Let a trainer whose optimizer is not built yet go on from what a checkpoint holds.

    Raises InputError where its scene has other views than the run's, or is normalised in another way.
    """
    quiet = not trainer.config.talks
    check_views(trainer.scene, trainer.run)
    check_world(trainer.scene, state)
    trainer.step, trainer.first_sh_degree = state["step"], state["first_sh_degree"]
    trainer.skipped = state.get("skipped", 0)  # older checkpoints have no such entry
    trainer.model.load_state_dict(state["model"], take_sh_degree=True)
    trainer.joint.load_state_dict(state.get("joint", {}))  # older checkpoints have no such entry
    recall_by_hand(trainer, state)
    trainer.build_optimizer()
    report = load_optimizer_state(trainer.optimizer, state["optimizer"], strict=False)
    if not report.complete and not quiet:
        print(f"optimizer state of step {trainer.step}:\n{report}")
    trainer.scheduler.load_state_dict({"step": trainer.step})
    for name, factor in trainer.by_hand.factors.items():
        trainer.scheduler.scale(name, factor)
    kind = type(trainer.strategy).__name__
    if state["strategy_kind"] == kind:
        trainer.strategy.load_state_dict(state["strategy"])
    elif not quiet:
        print(f"strategy  {kind} starts afresh (was {state['strategy_kind']})")
    trainer.order.load_state_dict(state["order"])
    trainer.generator.set_state(state["generator"])
    trainer.clock.seconds = dict(state["seconds"])
    if changed := other_versions(state.get("versions", {})):
        warnings.warn(f"{changed}; the bits may differ from those of an undisturbed run", stacklevel=4)


def recall_by_hand(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Take over what was done by hand before the checkpoint, where the settings do not say otherwise.

    `--freeze` with other values than the checkpoint's replaces the freezes by hand, as `--lock` does with
    locks.
    """
    hand, config = trainer.by_hand, trainer.config
    if "by_hand" not in state:  # of an older version
        return
    hand.load_state_dict(state["by_hand"], trainer.specs)
    if config.forget_by_hand:
        hand.factors = {}
    if config.forget_by_hand or config.freeze != tuple(state["config"]["freeze"]):
        hand.frozen = {}
    trainer.specs = hand.decided(trainer.specs)


def check_world(scene: Scene, state: dict[str, Any]) -> None:
    """Raise InputError unless a scene is in the units of the model that a checkpoint holds."""
    here = scene.world and scene.world.to_json()
    if here != state.get("world"):
        raise InputError(
            f"--scene {scene.path}: normalised by {here}, the run by {state.get('world')}; "
            "let the trainer load the scene of the run"
        )


def check_views(scene: Scene, run: RunFolder) -> None:
    """Raise InputError unless a scene has the run's photos; it may have moved since the run began."""
    train, test = ([view.camera.name for view in views] for views in (scene.train, scene.test))
    known = [camera["img_name"] for camera in read_json(run.cameras)]
    if known not in (test + train, train + test):  # runs of earlier versions have the train cameras first
        odd = sorted({*train, *test} ^ set(known)) or ["their order"]
        raise InputError(
            f"--scene {scene.path}: not the {len(known)} views that {run.cameras} has: "
            f"{', '.join(odd[:5])}; resume with the scene and --images of the run"
        )
