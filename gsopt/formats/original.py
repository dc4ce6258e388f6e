"""`chkpntN.pth` of the original 3DGS (Kerbl et al. 2023), in and out, with its moments.

The file is `torch.save((gaussians.capture(), iteration))`, and `capture()` a tuple of twelve:

    0  active_sh_degree    int
    1  xyz                 [N, 3]      nn.Parameter, like the other five
    2  features_dc         [N, 1, 3]
    3  features_rest       [N, K-1, 3]  coefficient first; its PLY has the channel first
    4  scaling             [N, 3]      logarithms
    5  rotation            [N, 4]      w x y z
    6  opacity             [N, 1]      logits
    7  max_radii2D         [N]         statistics of densification
    8  xyz_gradient_accum  [N, 1]
    9  denom               [N, 1]
    10 optimizer           state_dict of Adam; each group has one parameter, and its name: xyz, f_dc, ...
    11 spatial_lr_scale    extent of the scene, a number, often of NumPy
"""

import math
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsopt.errors import InputError
from gsopt.formats.splat import SHAPES, Splat, checked, moments_of, taken_moments
from gsopt.groups import gaussian_specs

NAMES = {
    "xyz": "xyz",
    "feature_dc": "f_dc",
    "feature_rest": "f_rest",
    "opacity": "opacity",
    "scaling": "scaling",
    "rotation": "rotation",
}  # in the order of its groups
_PLACES = {"xyz": 1, "feature_dc": 2, "feature_rest": 3, "scaling": 4, "rotation": 5, "opacity": 6}
_LENGTH = 12
_ADAM = ("step", "exp_avg", "exp_avg_sq")


def is_original(content: Any) -> bool:
    """Whether the content of a torch file is such a checkpoint."""
    return isinstance(content, tuple) and len(content) == 2 and isinstance(content[0], tuple)


def from_content(path: Path, content: Any) -> Splat:
    """The Gaussians, moments, step and extent in such a checkpoint.

    Raises:
        InputError: another number of entries, or entries that do not fit together.
    """
    captured, step = content
    if len(captured) != _LENGTH or type(step) is not int or step < 0:
        raise InputError(
            f"{path}: expected the {_LENGTH} entries of 3DGS and an iteration, found {len(captured)} entries "
            f"and {step!r}; a fork of 3DGS may have others: export a PLY with it"
        )
    tensors = {attribute: captured[place] for attribute, place in _PLACES.items()}
    splat = Splat(checked(path, tensors, NAMES), "checkpoint of the original 3DGS", step=step)
    splat.moments = taken_moments(splat, path, moments_of(captured[10], path, NAMES), NAMES)
    extent = float(captured[11]) if isinstance(captured[11], Real) else math.nan
    splat.extent = extent if math.isfinite(extent) and extent > 0 else None
    return splat


def to_content(splat: Splat, extent: float) -> tuple:
    """What `torch.save` writes for `restore()` of the original: parameters that require grad.

    Args:
        splat: Gaussians of degree 0 to 3; moments of Adam are kept, others not.
        extent: of the scene, world units.
    """
    parameters = {name: nn.Parameter(splat.tensors[name].clone()) for name in SHAPES}
    count = splat.count
    statistics = (torch.zeros(count), torch.zeros(count, 1), torch.zeros(count, 1))
    captured = (
        splat.sh_degree,
        *(parameters[name] for name in _PLACES),
        *statistics,
        _optimizer(splat, extent),
        extent,
    )
    return captured, splat.step or 0


def keeps_moments(splat: Splat) -> bool:
    """Whether the splat's moments are those of Adam for every attribute, which the format has room for."""
    return set(splat.moments) == set(SHAPES) and all(
        set(_ADAM) <= set(entries) and torch.as_tensor(entries["step"]).numel() == 1
        for entries in splat.moments.values()
    )


def _optimizer(splat: Splat, extent: float) -> dict[str, Any]:
    specs = gaussian_specs(extent=extent, iterations=30_000)
    groups, state = [], {}
    for index, (attribute, name) in enumerate(NAMES.items()):
        parameter = nn.Parameter(torch.zeros(1))
        adam = torch.optim.Adam([{"params": [parameter], "lr": specs[attribute].lr, "name": name}], eps=1e-15)
        groups.append(adam.state_dict()["param_groups"][0] | {"params": [index]})
        if keeps_moments(splat):
            state[index] = {key: _tensor(splat.moments[attribute][key]) for key in _ADAM}
    return {"state": state, "param_groups": groups}


def _tensor(value: Any) -> Tensor:
    return value.clone() if isinstance(value, Tensor) else torch.tensor(float(value))
