"""Changes to the Gaussians of a file as a whole: crop, join, move, turn, scale.

splat = crop(splat, parse_region("sphere:0,0,0,2"))
splat = transform(splat, parse_transform(["scale:2", "euler:0,90,0", "translate:0,0,1"]))
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gsopt.errors import InputError
from gsopt.formats.splat import SHAPES, Splat
from gsopt.geometry import quat_to_rotmat
from gsopt.regions import Region
from gsopt.similarity import Similarity, move_gaussians

FORMS = {
    "scale": ("a factor above 0", (1,)),
    "translate": ("x,y,z in world units", (3,)),
    "quaternion": ("w,x,y,z", (4,)),
    "euler": ("x,y,z in degrees, about the fixed axes x, then y, then z", (3,)),
    "matrix": ("12 or 16 numbers, row by row, of a rotation, one scale and a translation", (12, 16)),
}
_TOLERANCE = 1e-4  # of a matrix that is meant to be a scaled rotation; files give few digits


def parse_transform(texts: Sequence[str]) -> Similarity:
    """The move that texts such as "scale:2" mean, one after another; `FORMS` are the kinds.

    Raises:
        InputError: not one of them, numbers too few or too many, or no similarity; the message quotes the
            text.
    """
    move = Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    for text in texts:
        move = _parse_one(text).after(move)
    return move


def transform(splat: Splat, move: Similarity) -> Splat:
    """Move, turn and scale the Gaussians, and turn their harmonics, so that the picture moves with them.

    The optimizer's moments do not survive it: they are of coordinates that are no more.
    """
    notes = [*splat.notes, *(["moments: of other coordinates now, left out"] if splat.moments else [])]
    extent = splat.extent and splat.extent * move.scale
    tensors = move_gaussians(splat.tensors, move)
    return replace(splat, tensors=tensors, moments={}, extent=extent, notes=notes)


def crop(splat: Splat, region: Region) -> Splat:
    """The Gaussians whose centres are in a region, with their moments. Raises InputError where none is."""
    return select(splat, region.rows(splat.tensors["xyz"]))


def select(splat: Splat, rows: Tensor) -> Splat:
    """The Gaussians that a mask [N] says, in their order, with their moments."""
    count = splat.count

    def kept(value: Any) -> Any:
        per_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
        return value[rows] if per_row else value

    moments = {
        name: {key: kept(value) for key, value in entries.items()} for name, entries in splat.moments.items()
    }
    tensors = {name: value[rows] for name, value in splat.tensors.items()}
    return replace(splat, tensors=tensors, moments=moments)


def merge(splats: Sequence[Splat]) -> Splat:
    """All Gaussians, in the order given, with the harmonics of the highest degree; without moments."""
    if len(splats) == 1:
        return splats[0]
    degree = max(splat.sh_degree for splat in splats)
    fitted = [splat.with_degree(degree) for splat in splats]
    tensors = {name: torch.cat([splat.tensors[name] for splat in fitted]) for name in SHAPES}
    notes = list(dict.fromkeys(note for splat in splats for note in splat.notes))
    if any(splat.moments for splat in splats):
        notes.append("moments: not of one model, left out")
    extents = {splat.extent for splat in splats}
    return Splat(
        tensors, f"{len(splats)} files", extent=extents.pop() if len(extents) == 1 else None, notes=notes
    )


def _parse_one(text: str) -> Similarity:
    kind, _, values = text.partition(":")
    if kind not in FORMS:
        known = "; ".join(f"{name}:{form}" for name, (form, _) in FORMS.items())
        raise InputError(f"--transform {text}: expected one of {known}")
    form, lengths = FORMS[kind]
    try:
        numbers = [float(word) for word in values.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in lengths or not all(map(math.isfinite, numbers)):
        raise InputError(f"--transform {text}: expected {kind}:{form}")
    given = torch.tensor(numbers, dtype=torch.float64)
    still, nowhere = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    if kind == "translate":
        return Similarity(1.0, still, given)
    if kind == "euler":
        return Similarity(1.0, _euler(given), nowhere)
    if kind == "matrix":
        return _from_matrix(text, given)
    if not (numbers[0] > 0 if kind == "scale" else given.norm() > 0):
        raise InputError(f"--transform {text}: expected {kind}:{form}, not 0 or less")
    if kind == "scale":
        return Similarity(numbers[0], still, nowhere)
    return Similarity(1.0, quat_to_rotmat(given), nowhere)


def _euler(degrees: Tensor) -> Tensor:
    """Rz Ry Rx. [3, 3]"""
    halves = torch.deg2rad(degrees) / 2
    rotation = torch.eye(3, dtype=torch.float64)
    for axis in range(3):
        quaternion = torch.zeros(4, dtype=torch.float64)
        quaternion[0], quaternion[axis + 1] = torch.cos(halves[axis]), torch.sin(halves[axis])
        rotation = quat_to_rotmat(quaternion) @ rotation
    return rotation


def _from_matrix(text: str, numbers: Tensor) -> Similarity:
    rows = numbers.view(-1, 4)
    linear, last = rows[:3, :3], rows[3:]
    determinant = torch.linalg.det(linear).item()
    scale = abs(determinant) ** (1 / 3)
    rotation = linear / scale if scale > 0 else linear
    is_rotation = torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=_TOLERANCE)
    is_affine = len(last) == 0 or torch.equal(last[0], torch.tensor([0, 0, 0, 1], dtype=torch.float64))
    if determinant <= 0 or not is_rotation or not is_affine:
        raise InputError(
            f"--transform {text}: expected a rotation times one factor above 0, and a last row 0,0,0,1; "
            "mirrors and factors that differ by axis do not keep Gaussians with harmonics what they are"
        )
    u, _, vh = torch.linalg.svd(rotation)
    return Similarity(scale, u @ vh, rows[:3, 3])
