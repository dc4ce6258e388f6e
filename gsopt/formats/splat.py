"""What every file of Gaussians holds, whichever program wrote it."""

from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsopt.errors import InputError
from gsopt.geometry import num_sh_bases, sh_degree_of

SHAPES = {  # of one row, as in `GaussianModel`; None is a length that depends on the degree
    "xyz": (3,),
    "feature_dc": (1, 3),
    "feature_rest": (None, 3),
    "scaling": (3,),
    "rotation": (4,),
    "opacity": (1,),
}
REST_COUNTS = tuple(num_sh_bases(degree) - 1 for degree in range(5))  # rows of feature_rest

Moments = dict[str, dict[str, Any]]  # attribute -> entries of the optimizer's state, as torch keeps them


@dataclass
class Splat:
    """Gaussians from a file, and what else training can go on from.

    Args:
        tensors: raw float32 parameters with the names and shapes of `GaussianModel`, degree 0 to 4.
        kind: of file, in words.
        moments: of the optimizer, by attribute; {} where the file has none.
        step: training steps that are done; None where the file does not tell.
        extent: size of the scene, world units, that rates are relative to; None where the file does not tell.
        notes: what was assumed or lost, for the reader.
    """

    tensors: dict[str, Tensor]
    kind: str
    moments: Moments = field(default_factory=dict)
    step: int | None = None
    extent: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of Gaussians N."""
        return len(self.tensors["xyz"])

    @property
    def sh_degree(self) -> int:
        """Highest band of the harmonics, 0 to 4."""
        return sh_degree_of(self.tensors["feature_rest"].shape[1] + 1)

    def with_degree(self, degree: int) -> "Splat":
        """The same with bands of harmonics dropped or added as zeros, in the moments too; notes say so."""
        count = num_sh_bases(degree) - 1
        dropped = self.tensors["feature_rest"][:, count:]
        notes = list(self.notes)
        if dropped.any():
            notes.append(f"harmonics of degree {self.sh_degree} cut to {degree}")

        def fit(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() != 3:
                return value
            fitted = value.new_zeros(len(value), count, 3)
            fitted[:, : value.shape[1]] = value[:, :count]
            return fitted

        moments = dict(self.moments)
        if "feature_rest" in moments:
            moments["feature_rest"] = {key: fit(value) for key, value in moments["feature_rest"].items()}
        tensors = self.tensors | {"feature_rest": fit(self.tensors["feature_rest"])}
        return replace(self, tensors=tensors, moments=moments, notes=notes)


def checked(path: Path, tensors: dict[str, Any], names: dict[str, str]) -> dict[str, Tensor]:
    """Tensors from a file as float32 of the shapes in `SHAPES`.

    Axes of length 1 may be left out, and `feature_rest` may be [N, 3, K-1], the order of a PLY.

    Args:
        path: of the file, for messages.
        tensors: by attribute.
        names: what the file calls each attribute.

    Raises:
        InputError: not a tensor of numbers, another shape, another number of rows, or not finite; the
            message names the entry, and the row.
    """
    count = len(tensors["xyz"]) if isinstance(tensors["xyz"], Tensor) and tensors["xyz"].dim() else 0
    found = {}
    for attribute in SHAPES:
        value, name = tensors[attribute], names[attribute]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{path}: {name}: expected a tensor of floats, found {what}; save it again")
        if not _is_whole(value):
            raise InputError(f"{path}: {name}: more numbers than the file has; download or write it again")
        value = laid_out(attribute, value.detach(), count)
        if value is None:
            shape = ", ".join("K" if size is None else str(size) for size in SHAPES[attribute])
            raise InputError(
                f"{path}: {name}: expected the shape [{count}, {shape}], found "
                f"{list(tensors[attribute].shape)}; is it of classic 3D Gaussian splatting?"
            )
        found[attribute] = value.float().contiguous()
    for attribute, value in found.items():
        require_finite(path, names[attribute], value)
    return found


def laid_out(attribute: str, value: Tensor, count: int) -> Tensor | None:
    """A tensor (of values or moments) in the layout of `GaussianModel`; None where it does not fit."""
    if not _is_whole(value):
        return None
    if attribute != "feature_rest":
        shape = (count, *(size for size in SHAPES[attribute] if size is not None))
        same = value.numel() == torch.Size(shape).numel() and value.dim() and len(value) == count
        return value.reshape(shape) if same and _squeezed(value.shape) == _squeezed(shape) else None
    if value.dim() != 3 or len(value) != count:
        return None
    if value.shape[2] == 3 and value.shape[1] in REST_COUNTS:  # [N, 3, 3] is read so, too
        return value
    if value.shape[1] == 3 and value.shape[2] in REST_COUNTS:
        return value.transpose(1, 2)
    return None


def require_finite(path: Path, name: str, value: Tensor) -> None:
    """Raise InputError, naming the first row, where a tensor has numbers that are not finite. [N, ...]"""
    bad = ~torch.isfinite(value).flatten(1).all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise InputError(
            f"{path}: {name}: row {row} is not finite ({int(bad.sum()):,} of {len(value):,} rows are so), "
            "expected numbers; remove these Gaussians, for example with splat-transform --filter-nan"
        )


def taken_moments(
    splat: Splat, path: Path, found: dict[str, dict[str, Any]], names: dict[str, str]
) -> Moments:
    """Optimizer state from a file by attribute, each entry in the layout of its parameter.

    Where it does not fit a parameter, the parameter gets none, and `splat.notes` says so.
    """
    moments: Moments = {}
    for attribute, entries in found.items():
        laid = {key: _entry(splat, attribute, value) for key, value in entries.items()}
        if any(value is None for value in laid.values()):
            splat.notes.append(f"moments of {names[attribute]} do not fit it: it starts with fresh ones")
            continue
        for key, value in laid.items():
            if isinstance(value, Tensor) and value.dim():
                require_finite(path, f"{names[attribute]}.{key}", value)
        if laid:
            moments[attribute] = laid
    return moments


def _entry(splat: Splat, attribute: str, value: Any) -> Any:
    """An entry of the state of a parameter in the layout of that; None where it is none, or does not fit."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, Real) else None
    if value.is_complex() or value.is_quantized:
        return None
    if value.dim() == 0:
        return value
    value = laid_out(attribute, value.detach(), splat.count)
    fits = value is not None and value.shape == splat.tensors[attribute].shape
    return value.float().contiguous() if fits else None


def moments_of(optimizer: Any, path: Path, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """State in an `Optimizer.state_dict()` by attribute, matched by name: of groups, or of parameters.

    Raises:
        InputError: it is not such a dict.
    """
    attributes = {name: attribute for attribute, name in names.items()}
    found = {}
    try:
        state = optimizer["state"]
        for group in optimizer["param_groups"]:
            labels = group.get("param_names") or [group["name"]]
            for label, index in zip(labels, group["params"], strict=True):
                if label in attributes:
                    found[attributes[label]] = dict(state.get(index, {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: optimizer: expected state and named param_groups of torch, found something else "
            f"({type(error).__name__}: {error}); save it again"
        ) from None
    return found


def _is_whole(value: Tensor) -> bool:
    """Whether every number of a tensor is stored: a damaged file can claim more than memory has."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape[1:] if size != 1]
