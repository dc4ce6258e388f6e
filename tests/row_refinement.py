"""The slow twin of the default strategy: which Gaussians grow and go, decided one by one."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from row_model import ROUNDING, Cell, RowModel

WIDTH, HEIGHT = 64, 32  # pixels: powers of two, so that scores are exact in float32 and equal ones are equal


@dataclass
class Seen:
    """A Gaussian in one camera."""

    gradient: tuple[float, float]  # of the loss by the projected centre, pixels, for a mean over the cameras
    radii: tuple[int, int]  # pixels


Observation = Sequence[Sequence[Seen]]  # of each camera, of each row


def refine(
    model: RowModel,
    observations: Sequence[Observation],
    settings: Mapping[str, Any],
    step: int,
    draw: Callable[[int], np.ndarray],
) -> tuple[int, int, int, bool]:
    """Clone, split, prune and reset as is due after `step`; `draw` gives normal numbers. [K, 3]

    Returns how many were cloned, split and pruned, and whether opacities were reset.
    """
    if step >= settings["refine_stop_iter"]:
        return 0, 0, 0, False
    cloned = split = pruned = 0
    since_reset = step % settings["reset_every"]
    due = step > settings["refine_start_iter"] and step % settings["refine_every"] == 0
    if due and since_reset >= settings["pause_refine_after_reset"]:
        cloned, split, pruned = _change_rows(model, observations, settings, step, draw)
    reset = since_reset == 0 and not model.attributes["opacity"].still
    if reset:
        limit = np.float32(_logit(2 * settings["prune_opa"]))
        for place, movable in enumerate(model.movable()):
            if movable:
                opacity = model.at(place)["opacity"]
                opacity.value = np.minimum(opacity.value, limit)
                opacity.blank()
    return cloned, split, pruned, reset


def _change_rows(model, observations, settings, step, draw) -> tuple[int, int, int]:
    scores = [_score(observations, place) for place in range(len(model))]
    radii = [_radius(observations, place) for place in range(len(model))]
    clones, splits = _growing(model, scores, radii, settings, step)
    doomed = {
        place
        for place, movable in enumerate(model.movable())
        if movable and _is_doomed(model.at(place), radii[place], settings, step)
    }
    new = [(place, _copy(model.at(place))) for place in clones]
    draws = draw(2 * len(splits))
    for k, place in enumerate([*splits, *splits]):
        new.append((place, _half(model, _copy(model.at(place)), draws[k], settings)))
    living = [row for place, row in new if not _is_doomed(row, radii[place], settings, step)]
    model.keep([place for place in range(len(model)) if place not in doomed and place not in splits])
    for row in living:
        model.add(row)
    return len(clones), len(splits), len(doomed - set(splits)) + len(new) - len(living)


def _score(observations: Sequence[Observation], place: int) -> float:
    """Mean norm of the gradient over the cameras that see a Gaussian, normalised device coordinates."""
    norms = []
    for cameras in observations:
        for camera in cameras:
            (x, y), radii = camera[place].gradient, camera[place].radii
            if min(radii) > 0:
                norms.append(math.hypot(x * WIDTH / 2, y * HEIGHT / 2) * len(cameras))
    return sum(norms) / max(len(norms), 1)


def _radius(observations: Sequence[Observation], place: int) -> float:
    """Largest radius in any camera that sees a Gaussian, longest image sides."""
    seen = [camera[place].radii for cameras in observations for camera in cameras]
    return max((max(radii) for radii in seen if min(radii) > 0), default=0) / max(WIDTH, HEIGHT)


def _growing(model, scores, radii, settings, step) -> tuple[list[int], list[int]]:
    """Places of the rows to clone and of those to split, in order; a row may do both."""
    can_split = not (model.attributes["xyz"].still or model.attributes["scaling"].still)
    wishes = {}
    for place, movable in enumerate(model.movable()):
        high, scale = scores[place] > settings["grow_grad2d"], _scale(model.at(place))
        is_small = scale <= settings["grow_scale3d"]
        wide = step < settings["refine_scale2d_stop_iter"] and radii[place] > settings["grow_scale2d"]
        clone, split = high and is_small, can_split and ((high and not is_small) or wide)
        if movable and (clone or split):
            wishes[place] = (clone, split)
    limit = settings["max_gaussians"]
    if limit is not None:
        room = limit - len(model)
        for place in sorted(wishes, key=lambda place: -scores[place]):  # of equal ones the first
            room -= sum(wishes[place])
            if room < 0:
                del wishes[place]
    clones = [place for place, (clone, _) in wishes.items() if clone]
    return clones, [place for place, (_, split) in wishes.items() if split]


def _copy(row: dict[str, Cell]) -> dict[str, Cell]:
    return {name: Cell(cell.value.copy()) for name, cell in row.items()}


def _half(model, row: dict[str, Cell], draw: np.ndarray, settings: Mapping[str, Any]) -> dict[str, Cell]:
    """A Gaussian drawn from the one that `row` is a copy of, a bit smaller."""
    old = {name: cell.value.astype(np.float64) for name, cell in deepcopy(row).items()}
    terms = _rotation(old["rotation"]) * (np.exp(old["scaling"]) * draw)  # [3, 3]
    row["xyz"].put(
        "value", old["xyz"] + terms.sum(axis=1), 3 * ROUNDING * (abs(old["xyz"]) + abs(terms).sum(axis=1))
    )
    row["scaling"].put("value", old["scaling"] - math.log(1.6), ROUNDING * (abs(old["scaling"]) + 1))
    if settings["revised_opacity"] and not model.attributes["opacity"].still:
        rest = np.sqrt(1 - _sigmoid(old["opacity"]))  # of the light that one half lets through
        row["opacity"].put("value", _logit(1 - rest), ROUNDING / rest**2 / (1 - rest))
    return row


def _is_doomed(row: dict[str, Cell], radius: float, settings: Mapping[str, Any], step: int) -> bool:
    if _sigmoid(float(row["opacity"].value[0])) < settings["prune_opa"]:
        return True
    if step <= settings["reset_every"]:
        return False
    wide = step < settings["refine_scale2d_stop_iter"] and radius > settings["prune_scale2d"]
    return wide or _scale(row) > settings["prune_scale3d"]


def _scale(row: dict[str, Cell]) -> float:
    return math.exp(row["scaling"].value.max())


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """[3, 3] of w, x, y, z of any length, after Rodrigues: 1 + 2w K + 2 K K."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _logit(p):
    return np.log(p / (1 - p))
