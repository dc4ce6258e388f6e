"""Our own checkpoint as a file of Gaussians."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gsopt import checkpoint
from gsopt.errors import InputError
from gsopt.formats.splat import SHAPES, Splat, checked, moments_of
from gsopt.similarity import Similarity, move_gaussians

NAMES = {name: name for name in SHAPES}


def is_own(content: Any) -> bool:
    """Whether the content of a torch file is a checkpoint of gsopt."""
    return isinstance(content, dict) and content.get("format") == checkpoint.FORMAT


def from_content(path: Path, content: Any) -> Splat:
    """The Gaussians, moments, step and extent in a checkpoint.

    Raises:
        InputError: another version, or no model in it.
    """
    state = checkpoint.unpack(path, content)
    model = state.get("model")
    if not isinstance(model, dict) or not set(SHAPES) <= set(model):
        raise InputError(f"{path}: model: expected {', '.join(SHAPES)}; give a checkpoint of a run")
    splat = Splat(checked(path, model, NAMES), "checkpoint of gsopt", step=state.get("step"))
    found = moments_of(state.get("optimizer"), path, NAMES)
    splat.moments = {name: entries for name, entries in found.items() if _fits(entries, splat.count)}
    splat.extent = state.get("extent")
    if state.get("world"):
        splat = _in_world(splat, Similarity.of_json(state["world"]))
    sides: Any = state.get("joint") if isinstance(state.get("joint"), dict) else {}
    if beside := [*(name for name in model if name not in SHAPES), *sides]:
        splat.notes.append(f"left out: {', '.join(beside)}")
    return splat


def _in_world(splat: Splat, world: Similarity) -> Splat:
    """Gaussians of a scene that was normalised by `world`, back where they belong."""
    tensors = move_gaussians(splat.tensors, world.inverse())
    notes = [*splat.notes, "trained in a normalised world: moved back, without moments"]
    extent = splat.extent and splat.extent / world.scale
    return replace(splat, tensors=tensors, moments={}, extent=extent, notes=notes)


def _fits(entries: dict[str, Any], count: int) -> bool:
    """Whether there is state, and all of it is per row or one number: of any optimizer."""
    tensors = [value for value in entries.values() if isinstance(value, Tensor)]
    return bool(entries) and all(value.dim() == 0 or len(value) == count for value in tensors)
