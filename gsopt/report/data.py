"""What a report is made of: the settings, metrics and events in a run's folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gsopt.config import TrainConfig
from gsopt.errors import InputError
from gsopt.groups import GroupSpec
from gsopt.rundir import RunFolder, read_json
from gsopt.settings import differences

TOTAL_LOSS = "train_loss_patches/total_loss"
CHANGES = ("cloned", "split", "pruned", "relocated", "added")  # of Gaussians, tags gaussians/...
ALWAYS_SHOWN = ("scene", "iterations", "resolution", "strategy", "optimizer", "seed")
OF_THE_PLACE = {"scene", "output", "resume", "iterations", "schedule-iterations", "resolution", "quiet"}
Points = list[tuple[int, float]]  # of a curve: step, value


@dataclass(frozen=True)
class Histogram:
    """How many Gaussians have a value between `limits[i - 1]` and `limits[i]`."""

    limits: list[float]
    counts: list[float]


@dataclass
class RunData:
    """A run, read."""

    name: str
    folder: RunFolder
    config: TrainConfig
    scalars: dict[str, Points]  # by the tag of TensorBoard
    histograms: dict[str, Histogram]  # the newest of each tag
    metrics: dict[str, Any] = field(default_factory=dict)  # of its end; {} before

    @property
    def specs(self) -> dict[str, GroupSpec]:
        """The groups as the settings say, with rates for a scene of extent 1."""
        return self.config.specs(1.0)

    @property
    def last_step(self) -> int:
        """The newest step that there is an event of."""
        return self.scalars[TOTAL_LOSS][-1][0]

    @property
    def finished(self) -> bool:
        """Whether it has reached its end."""
        return bool(self.metrics)

    def last(self, tag: str) -> float | None:
        """The newest value of a curve; None where there is none."""
        return self.scalars[tag][-1][1] if self.scalars.get(tag) else None

    def changed(self) -> list[tuple[str, Any, Any]]:
        """(flag, default, value) of the settings that are not what they are by default in so long a run."""
        plain = TrainConfig(
            scene=self.config.scene,
            iterations=self.config.iterations,
            schedule_iterations=self.config.schedule_iterations,
        ).resolved("cpu")
        return [entry for entry in differences(plain, self.config) if entry[0] not in OF_THE_PLACE]


def read_run(path: Path) -> RunData:
    """The run in a folder, finished or not.

    Raises InputError where there is none, or one without events of its training.
    """
    folder = RunFolder.open(path)
    config = TrainConfig.of_run(path)
    if not list(path.glob("events.out.tfevents.*")):
        raise InputError(
            f"{path}: no TensorBoard events (events.out.tfevents.*) in this run, and a report is drawn from "
            "them; copy them back from where it was trained"
        )
    scalars, histograms = read_events(path)
    if not scalars.get(TOTAL_LOSS):
        raise InputError(
            f"{path}: no {TOTAL_LOSS} in its events yet; let it get further with: gsopt train --resume {path}"
        )
    metrics = read_json(folder.metrics) if folder.metrics.is_file() else {}
    return RunData(path.resolve().name, folder, config, scalars, histograms, metrics)


def read_events(path: Path) -> tuple[dict[str, Points], dict[str, Histogram]]:
    """All scalars in the event files of a folder, and the newest of each histogram.

    Steps that an interrupted session did and a later one did again are there once.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keep = {"scalars": 0, "histograms": 1, "images": 1, "tensors": 1}  # 0: all
    events = EventAccumulator(str(path), size_guidance=keep).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    histograms = {}
    for tag in tags["histograms"]:
        newest = events.Histograms(tag)[-1].histogram_value
        histograms[tag] = Histogram(list(newest.bucket_limit), list(newest.bucket))
    return scalars, histograms


def told_apart(runs: Sequence[RunData]) -> list[RunData]:
    """The runs with names of which no two are the same: those of more and more folders above them."""
    parts = [run.folder.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
