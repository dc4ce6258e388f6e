"""`gsopt train`: photos and points in, a trained splat out."""

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gsopt import checkpoint
from gsopt.commands.flags import parse
from gsopt.config import DEFAULT_STRATEGY, SESSION_FLAGS, STRATEGIES, TrainConfig
from gsopt.datasets import Scene
from gsopt.device import choose_device, describe
from gsopt.errors import InputError
from gsopt.evaluation import Metrics
from gsopt.freeze_windows import parse_freezes
from gsopt.group_options import fitted_rate
from gsopt.joint_options import present_groups
from gsopt.locks import locked_rows
from gsopt.log_json import tell_end, tell_start, told
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.ranks import Ranks, joined, restarts
from gsopt.rundir import RunFolder, read_json
from gsopt.settings import differences
from gsopt.summary import last_line, summary
from gsopt.trainer import Trainer

if TYPE_CHECKING:
    from gsopt.viewer.live import LiveViewer

ABOUT = "Train a 3D Gaussian splatting scene: --scene DIR, or --resume RUN to go on with one."


def main(argv: Sequence[str]) -> None:
    """Parse, then run; with those that torchrun has started beside this process."""
    with joined() as ranks:
        if not ranks.first:  # the first process warns for all
            warnings.simplefilter("ignore")
        parse_and_run(argv, ranks)


def parse_and_run(argv: Sequence[str], ranks: Ranks) -> None:
    """As `main`, in one of the processes `ranks`."""
    config = parse(TrainConfig, argv, "gsopt train", ABOUT)
    if ranks.tell(lambda: is_restart(config)):
        argv = [*argv, "--resume", str(config.output)]
        config = parse(TrainConfig, argv, "gsopt train", ABOUT)
    old = TrainConfig()
    if config.resume:
        old = TrainConfig.of_run(config.resume)
        config = parse(TrainConfig, argv, "gsopt train", ABOUT, default=old)
        for name, before, after in differences(old, config) if ranks.first and config.talks else ():
            if name.replace("-", "_") in SESSION_FLAGS:  # no settings of the run
                continue
            print(f"--{name}: {after} (the run had {before})")
    warn_of_idle(old, config, ranks.size)
    run(config, ranks)


def is_restart(config: TrainConfig) -> bool:
    """Whether torchrun has started this command again, after a process died, and the run is there by now.

    Raises InputError where it could not find the run again.
    """
    if config.resume:
        return False
    allowed = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if allowed and config.output is None:
        raise InputError(
            f"--output: torchrun may start this run again (--max-restarts {allowed}) and would not find it "
            "under a default name; give --output DIR"
        )
    return restarts() > 0 and config.output is not None and RunFolder(config.output).config.is_file()


def warn_of_idle(old: TrainConfig, config: TrainConfig, processes: int = 1) -> None:
    """Warn of settings, other than those of `old`, of what there is none of: densification, poses, ..."""
    flags = [f"--{name}" for name, *_ in differences(old, config)]
    strategy = config.strategy or DEFAULT_STRATEGY
    used = STRATEGIES.get(strategy)
    others = tuple(f"--{part}." for part in STRATEGIES.values() if part != used)
    because = f"because of --strategy {strategy}"
    for reason, idle, prefixes in (
        (because, True, others if used else (*others, "--max-gaussians")),
        ("without --optimize-poses", not config.optimize_poses, ("--groups.poses.",)),
        ("because there is no --lock", not config.lock, ("--lock-attributes",)),
        ("because a step has one view", config.views_per_step * processes == 1, ("--scale-rates",)),
        ("without --viewer", not config.viewer, ("--viewer-",)),
        ("without --resume", not config.resume, ("--forget-by-hand",)),
        ("without --exposure", not config.exposure, ("--groups.exposure.",)),
        (
            "without --background-model-trainable",
            not config.background_model_trainable,
            ("--groups.background.",),
        ),
    ):
        named = [flag for flag in flags if flag.startswith(prefixes)]
        if idle and named:
            warnings.warn(f"{', '.join(named)}: without effect, {reason}", stacklevel=2)


def run(config: TrainConfig, ranks: Ranks | None = None) -> Metrics:
    """One run from start, or its checkpoint, to end; what is in its metrics.json."""
    ranks = ranks or Ranks()
    if not ranks.first:
        config = replace(config, quiet=True, log_json=False)
    with contextlib.ExitStack() as session:
        with told(config):
            if config.resume and (done := ranks.tell(lambda: finished(config))):
                return tell_finished(config, done, ranks.first)
            trainer = Trainer(config, ranks=ranks)
            viewer = session.enter_context(watched(trainer))
            if config.talks:
                print("\n".join(opening(trainer, viewer)))
            tell_start(trainer)
            metrics = trainer.train()
        if config.talks:
            print("\n".join(summary(trainer.run, metrics)))
            if viewer is not None:
                print(f"look      gsopt view {trainer.run.path}")
        elif ranks.first and not config.log_json:
            print(last_line(trainer.run, metrics))
        tell_end(config, "done", "", trainer.run.path, metrics)
        if viewer is not None and config.viewer_stay:
            if config.talks:
                print("viewer    stays until Ctrl-C (--viewer-stay)")
            with contextlib.suppress(KeyboardInterrupt):  # the run is done
                viewer.stay()
    return metrics


def tell_finished(config: TrainConfig, done: int, first: bool) -> Metrics:
    """Say that the run to resume has `done` all its iterations; its metrics."""
    assert config.resume is not None
    what = f"is finished: {done:,} iterations are done; give a larger --iterations to go on"
    metrics = read_json(RunFolder(config.resume).metrics)
    if first and not config.log_json:
        print(f"{config.resume} {what}")
    tell_end(config, "done", f"the run {what}", config.resume, metrics)
    return metrics


@contextlib.contextmanager
def watched(trainer: Trainer) -> Iterator["LiveViewer | None"]:
    """Inside, the run can be watched in a browser, if it is to be. Raises InputError where it cannot."""
    if not trainer.config.viewer:
        yield None
        return
    from gsopt.viewer.live import LiveViewer

    viewer = trainer.by_hand.watcher = LiveViewer(trainer)
    try:
        yield viewer
    finally:
        trainer.by_hand.watcher = None
        viewer.close()


def finished(config: TrainConfig) -> int:
    """The iterations done by the run to resume, if they are all that `config` asks for; else 0.

    Raises InputError for settings with which the run could not go on, and where the checkpoints of a finished
    run are gone. Whether another --scene is the run's
    own at a new place only its photos tell: that is left to the trainer.
    """
    assert config.resume is not None
    old = TrainConfig.of_run(config.resume)
    config.check()
    config.resolved("cpu").check_resume(old)
    folder = RunFolder.open(config.resume)
    newest = checkpoint.latest(folder.checkpoints)
    if newest is None and folder.metrics.is_file():
        raise InputError(
            f"{config.resume}: no checkpoint to go on from, and beginning anew would replace the model that "
            f"{folder.metrics} is about; give its PLY to --init in a new run, or delete that file"
        )
    if newest is None or not folder.metrics.is_file() or config.scene.absolute() != old.scene:
        return 0
    step = checkpoint.step_of(newest)
    return step if step >= config.iterations else 0


def opening(trainer: Trainer, viewer: "LiveViewer | None" = None) -> list[str]:
    """What is about to happen."""
    config, scene = trainer.config, trainer.scene
    camera = scene.train[0].camera
    start = f", from iteration {trainer.step:,}" if trainer.step else ""
    chosen = choose_device(config.device, config.backend)
    return [
        f"device    {describe(trainer.device, trainer.threads)} ({chosen.reason})",
        f"scene     {scene.path} ({scene.format}): {len(scene.train)} training, {len(scene.test)} test views",
        *([f"world     {world} (--normalize)"] if (world := what_world(scene)) else []),
        f"images    {camera.width}x{camera.height}, longest side at most {config.resolution} (--resolution)",
        *maps_lines(trainer),
        f"model     {trainer.model.num_gaussians:,} Gaussians, SH degree {trainer.model.max_sh_degree}",
        *init_lines(trainer),
        *([f"locked    {locked}"] if (locked := what_is_locked(trainer.model)) else []),
        *(f"beside    {line}" for line in beside(trainer)),
        f"training  {config.iterations:,} iterations{start}",
        *([step_line(config, trainer.ranks.size)] if trainer.views_per_step > 1 else []),
        *([f"growth    {plan} (--max-gaussians)"] if (plan := trainer.strategy.plan(trainer.model)) else []),
        *([f"rates     {raised} (--no-fit-rates)"] if (raised := raised_rates(config)) else []),
        *([f"frozen    {frozen} (--freeze)"] if (frozen := frozen_attributes(config)) else []),
        *by_hand_lines(trainer),
        f"run       {trainer.run.path}",
        *([f"viewer    {viewer.address}"] if viewer is not None else []),
    ]


def by_hand_lines(trainer: Trainer) -> list[str]:
    """What was set by hand in earlier sessions and still holds."""
    hand = trainer.by_hand
    parts = [f"{name} {'frozen' if frozen else 'not frozen'}" for name, frozen in hand.frozen.items()]
    parts += [f"rate of {name} x{factor:g}" for name, factor in hand.factors.items()]
    return [f"by hand   {', '.join(parts)} (--forget-by-hand)"] if parts else []


def what_world(scene: Scene) -> str:
    """What the units of a normalised scene are."""
    if scene.world is None:
        return ""
    return f"normalised, a unit is {1 / scene.world.scale:.4g} of the scene's; files are in the scene's own"


def maps_lines(trainer: Trainer) -> list[str]:
    """How many photos have masks and depth maps."""
    scene, weight = trainer.scene, trainer.config.depth_loss
    views = [*scene.train, *scene.test]
    masked = sum(view.mask is not None for view in views)
    known = sum(view.inverse_depth is not None for view in scene.train)
    return [
        *([f"masks     ignore a part of {masked} of {len(views)} photos (--no-masks)"] if masked else []),
        *(
            [f"depths    of {known} of {len(scene.train)} training photos (--depth-loss {weight:g})"]
            if known
            else []
        ),
    ]


def init_lines(trainer: Trainer) -> list[str]:
    """What a run that begins with Gaussians from a file does with them."""
    config = trainer.config
    if config.init_rates is None or not trainer.start_notes:
        return []
    if config.start_step is None:
        how = "rates at the end of their schedules" if config.init_rates == "continue" else "rates restart"
        how += ", no densification, no coarse-to-fine (--start-step N: as after N steps)"
    else:
        how = f"as after {config.start_step:,} steps, rates {config.init_rates}"
    warmup = f", warm-up of {config.init_warmup} steps" if config.init_warmup else ""
    return [
        f"init      {config.init}: {how}{warmup}",
        *(f"          {note}" for note in trainer.start_notes),
    ]


def frozen_attributes(config: TrainConfig) -> str:
    """Which attributes are frozen in which iterations."""
    windows = parse_freezes(config.freeze, present_groups(config))
    return "; ".join(
        f"{name} {' and '.join(window.iterations for window in of_name)}" for name, of_name in windows.items()
    )


def what_is_locked(model: GaussianModel) -> str:
    """How many Gaussians are locked, and in which attributes if not in all."""
    if model.locked is None:
        return ""
    names = locked_rows(model)
    some = "" if len(names) == len(ATTRIBUTES) else f" in {', '.join(names)}"
    return f"{int(model.locked.sum()):,} of {model.num_gaussians:,} Gaussians{some} (--lock)"


def beside(trainer: Trainer) -> list[str]:
    """What there is beside the model."""
    config, views = trainer.config, len(trainer.scene.train)
    lines = []
    if config.optimize_poses:
        lines.append(f"poses of {views} training cameras (--optimize-poses)")
    if config.exposure:
        lines.append(f"exposures of {views} training photos (--exposure)")
    if (background := trainer.joint.background_model) is not None:
        state = "trained" if config.background_model_trainable else "frozen"
        lines.append(f"{background.num_gaussians:,} Gaussians of {config.background_model}, {state}")
    return lines


def step_line(config: TrainConfig, processes: int) -> str:
    """What a step of several views is made of."""
    views = config.views_per_step * processes
    deal = f"{processes} processes x " if processes > 1 else ""
    deal += f"--batch-size {config.batch_size} x --accumulate {config.accumulate}"
    rates = f", all rates x{math.sqrt(views):.2f} (--scale-rates)" if config.scale_rates else ""
    return f"step      of {views} views: {deal}{rates}"


def raised_rates(config: TrainConfig) -> str:
    """Which learning rates are raised over the original's to fit a short run, and how far."""
    if not config.fit_rates:
        return ""
    length = config.schedule_iterations or config.iterations
    factors = {name: fitted_rate(name, length) for name in ATTRIBUTES}
    return ", ".join(
        f"{name} x{factor:.2f}"
        for name, factor in factors.items()
        if factor > 1 and getattr(config.groups, name).lr is None
    )
