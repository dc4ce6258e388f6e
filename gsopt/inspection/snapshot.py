"""A file of a model, an optimizer or both, as parameters and groups with names; nothing in it is executed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsopt import checkpoint
from gsopt.config import TrainConfig
from gsopt.datasets import read_splat
from gsopt.errors import InputError
from gsopt.inspection import torch_file
from gsopt.model import ATTRIBUTES
from gsopt.rundir import RunFolder
from gsopt.settings import from_json

NO_OPTIONS = frozenset({"params", "param_names", "name"})  # entries of a group that are none
WANTED = "give a checkpoint, the folder of a run, a splat PLY, or torch.save's file of state_dicts"


@dataclass
class Parameter:
    """One parameter and what its optimizer keeps for it.

    Args:
        name: in full, as "coarse.xyz".
        value: raw, on the CPU; None where the file has the optimizer's state alone.
        state: the optimizer's entries: tensors and numbers; {} before its first step.
        group: name of its group; None where it is not in an optimizer.
    """

    name: str
    value: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)
    group: str | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Its shape, from its moments if need be; None if the file does not tell."""
        if self.value is not None:
            return tuple(self.value.shape)
        shapes = [tuple(entry.shape) for entry in self.state.values() if isinstance(entry, Tensor)]
        return max(filter(None, shapes), key=len, default=None)


@dataclass
class Group:
    """One parameter group. `options` are the optimizer's; `schedule` is None where the file does not tell."""

    name: str
    options: dict[str, Any]
    schedule: str | None = None


@dataclass
class Snapshot:
    """What a file holds.

    Args:
        path: of the file; of a run, its newest checkpoint.
        kind: of file, in words.
        step: optimizer steps done, None where the file does not tell.
        groups: by name, in the order of the optimizer; {} where there is none.
        parameters: by name, in the order of the optimizer, and after them those that are in none.
        about: facts about the whole file, for people.
        notes: what could not be told, and why.
    """

    path: Path
    kind: str
    step: int | None = None
    groups: dict[str, Group] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_snapshot(path: Path) -> Snapshot:
    """Read a checkpoint, a run's newest checkpoint, a splat PLY, or any file of state_dicts by torch.save.

    Such a file may hold an `Optimizer.state_dict()`, a `Module.state_dict()`, or both in a dict under any
    keys; or be a checkpoint of the original 3DGS. An optimizer whose state has no names gets those of the
    model's tensors in their order, if all shapes agree; `notes` says so.

    Raises:
        InputError: no such file, a damaged one, one that holds neither model nor optimizer, or one that only
            running code from it would restore.
    """
    path = Path(path)
    if path.is_dir():
        path = _newest(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {WANTED}")
    with path.open("rb") as stream:
        if stream.read(3) == b"ply":
            return _of_splat(path)
    content = checkpoint.read(path, WANTED)
    if isinstance(content, Mapping) and content.get("format") == checkpoint.FORMAT:
        return _of_checkpoint(path, checkpoint.unpack(path, content))
    return _of_torch_file(path, content)


def _newest(folder: Path) -> Path:
    """The newest checkpoint of a run, whose folder or folder of checkpoints is given."""
    found = checkpoint.latest(folder) or checkpoint.latest(RunFolder.open(folder).checkpoints)
    if found is None:
        raise InputError(f"{folder}: no checkpoint in this run yet; give one of its PLYs in point_cloud/")
    return found


def _of_splat(path: Path) -> Snapshot:
    splat = read_splat(path)
    values = {name: torch.from_numpy(splat[name]) for name in ATTRIBUTES}
    snapshot = Snapshot(path, "splat PLY", about=["no optimizer in it"])
    _add_model(snapshot, values)
    return snapshot


def _of_checkpoint(path: Path, state: dict[str, Any]) -> Snapshot:
    missing = [key for key in ("step", "model", "optimizer", "config") if key not in state]
    if missing:
        raise InputError(f"{path}: a checkpoint without {', '.join(missing)}; give one that a training wrote")
    snapshot = Snapshot(path, "gsopt checkpoint", step=state["step"])
    model = torch_file.flat({**state["model"], **state.get("joint", {})})  # with what is trained beside it
    optimizer = state["optimizer"]
    _add_optimizer(snapshot, optimizer, torch_file.unique(torch_file.names_of(optimizer)), model)
    _add_model(snapshot, model)
    try:
        config = from_json(TrainConfig, state["config"], f"{path}: config")
        specs = config.specs(extent=1.0)  # schedules are factors, whatever the extent
    except InputError as error:
        snapshot.notes.append(f"schedules: not known, as the settings are of another version ({error})")
        return snapshot
    snapshot.about += [f"optimizer {config.optimizer}", f"run of {config.iterations:,} iterations"]
    for group in snapshot.groups.values():
        if group.name in specs:
            group.schedule = str(specs[group.name].schedule or "constant")
    return snapshot


def _of_torch_file(path: Path, content: Any) -> Snapshot:
    found = torch_file.search(content)
    if found is None:
        keys = f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else type(content)
        raise InputError(f"{path}: holds no state_dict of a model or an optimizer, found {keys}; {WANTED}")
    snapshot = Snapshot(path, found.kind, step=found.step, notes=found.notes)
    for place, optimizer, names in found.optimizers:
        prefix = f"{place}." if len(found.optimizers) > 1 else ""
        _add_optimizer(snapshot, optimizer, names, found.model, prefix)
    _add_model(snapshot, found.model)
    if not found.optimizers:
        snapshot.about.append("no optimizer in it")
    return snapshot


def _add_optimizer(
    snapshot: Snapshot,
    optimizer: Mapping[str, Any],
    names: list[str],
    model: Mapping[str, Tensor],
    prefix: str = "",
) -> None:
    """Groups and parameters of an `Optimizer.state_dict()` whose parameters have these names."""
    name = iter(names)
    labels = torch_file.unique(torch_file.labels_of(optimizer))
    for label, saved in zip(labels, optimizer["param_groups"], strict=True):
        label = f"{prefix}{label}"
        options = {key: value for key, value in saved.items() if key not in NO_OPTIONS}
        snapshot.groups[label] = Group(label, options)
        for index in saved["params"]:
            own = next(name)
            state = dict(optimizer["state"].get(index, {}))
            snapshot.parameters[own] = Parameter(own, model.get(own), state, label)


def _add_model(snapshot: Snapshot, model: Mapping[str, Tensor]) -> None:
    """The tensors of a model that are in no optimizer."""
    for name, value in model.items():
        snapshot.parameters.setdefault(name, Parameter(name, value))
