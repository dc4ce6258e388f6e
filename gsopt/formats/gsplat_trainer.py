"""`ckpt_N_rankR.pt` of gsplat's `simple_trainer.py`, in and out; it holds no moments.

The file is `torch.save({"step": N, "splats": {...}})`; N counts from 0, so N + 1 steps are done:

    means      [N, 3]
    scales     [N, 3]      logarithms
    quats      [N, 4]      w x y z
    opacities  [N]         logits
    sh0        [N, 1, 3]
    shN        [N, K-1, 3]  coefficient first

A run on R GPUs writes R files, each with its part of the Gaussians; they are joined in the order of ranks.
"""

import re
from pathlib import Path
from typing import Any

import torch

from gsopt.errors import InputError
from gsopt.formats.splat import Splat, checked

NAMES = {
    "xyz": "means",
    "feature_dc": "sh0",
    "feature_rest": "shN",
    "scaling": "scales",
    "rotation": "quats",
    "opacity": "opacities",
}
_FILE = re.compile(r"(ckpt_\d+_rank)(\d+)\.pt")
FRESH = "no moments in it: training from it starts with fresh ones"


def is_gsplat(content: Any) -> bool:
    """Whether the content of a torch file is such a checkpoint."""
    return isinstance(content, dict) and isinstance(content.get("splats"), dict)


def from_content(path: Path, content: Any) -> Splat:
    """The Gaussians and the step in such a checkpoint.

    Raises:
        InputError: entries missing, or of other shapes.
    """
    splats = content["splats"]
    if missing := [name for name in NAMES.values() if name not in splats]:
        raise InputError(
            f"{path}: splats: no {', '.join(missing)}, expected {', '.join(NAMES.values())}, found "
            f"{', '.join(map(str, splats)) or 'nothing'}; a run with app_opt has no colours of its own"
        )
    tensors = {attribute: splats[name] for attribute, name in NAMES.items()}
    step = content.get("step")
    others = [key for key in content if key not in ("step", "splats")]
    return Splat(
        checked(path, tensors, NAMES),
        "checkpoint of gsplat",
        step=step + 1 if type(step) is int and step >= 0 else None,
        notes=[FRESH, *([f"left out: {', '.join(map(str, others))}"] if others else [])],
    )


def ranks(path: Path) -> list[Path]:
    """The files of all ranks of the run that wrote `path`, in order; [path] where the name is another.

    Raises:
        InputError: one of them is missing.
    """
    match = _FILE.fullmatch(path.name)
    if match is None:
        return [path]
    found = {}
    for other in path.parent.glob(f"{match[1]}*.pt"):
        if (part := _FILE.fullmatch(other.name)) and part[1] == match[1]:
            found[int(part[2])] = other
    found[int(match[2])] = path
    if missing := sorted(set(range(max(found) + 1)) - set(found)):
        raise InputError(
            f"{path}: part of a run on {max(found) + 1} or more GPUs, and rank {missing[0]} is missing; "
            f"put {match[1]}{missing[0]}.pt beside it, or rename it to read it alone"
        )
    return [found[rank] for rank in sorted(found)]


def to_content(splat: Splat) -> dict[str, Any]:
    """What `torch.save` writes; all on one rank."""
    splats = {name: splat.tensors[attribute].clone() for attribute, name in NAMES.items()}
    splats["opacities"] = splats["opacities"].flatten()
    return {"step": max((splat.step or 0) - 1, 0), "splats": splats}


def joined(parts: list[Splat]) -> Splat:
    """The Gaussians of all ranks as one."""
    if len(parts) == 1:
        return parts[0]
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in NAMES}
    notes = [*parts[0].notes, f"joined from {len(parts)} ranks"]
    return Splat(tensors, parts[0].kind, step=parts[0].step, notes=notes)
