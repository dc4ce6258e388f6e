"""Locked Gaussians: rows of a model that keep their bits, values and moments, whatever trains the others.

    gsopt.lock(model, "outside:box:-1,-1,-1,1,1,1")
    with gsopt.hold_locked(model, optimizer):
        optimizer.step()

Locks are rows, chosen once: `lock` looks where the Gaussians are now. They are a buffer of the model, so
they follow their rows through `gsopt.surgery` and the model's `state_dict`. A strategy leaves locked
Gaussians alone altogether (`gsopt.strategy.movable`), also where only some attributes are locked.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsopt.errors import InputError
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.regions import parse_region
from gsopt.surgery import per_row_state, row_indices

Rows = str | Path | Sequence[str | Path] | Tensor | np.ndarray | Sequence[int] | Sequence[bool]


def lock(
    model: GaussianModel,
    rows: Rows,
    attributes: str | Iterable[str] | None = None,
    *,
    centres: Tensor | None = None,
) -> None:
    """Lock Gaussians, in addition to those that are locked already.

    Args:
        model: its `locked` says afterwards which rows are.
        rows: a region or several (see `gsopt.regions`), of which the union is meant; or a mask (bool [N]) or
            row numbers (integers [K]).
        attributes: those that keep their bits; None is all six.
        centres: where the Gaussians are in the units of the regions [N, 3]; None is where the model has them.

    Raises:
        InputError: a region that cannot be used or that no Gaussian is in, or an unknown attribute.
        ValueError: a mask of another length, or row numbers out of range or repeated.
    """
    _set(model, _mask(model, rows, centres), attributes, True)


def unlock(
    model: GaussianModel, rows: Rows | None = None, attributes: str | Iterable[str] | None = None
) -> None:
    """Undo :func:`lock`: the Gaussians train on with the moments they had.

    Args:
        model, rows, attributes: as for :func:`lock`; `rows` None is all.

    Raises:
        InputError, ValueError: as :func:`lock`.
    """
    everywhere = torch.ones(model.num_gaussians, dtype=torch.bool, device="cpu")
    _set(model, everywhere if rows is None else _mask(model, rows), attributes, False)


def hold_locked(model: GaussianModel, optimizer: Optimizer) -> AbstractContextManager[None]:
    """Around `optimizer.step()`: afterwards locked rows, values and moments, have the bits they had before.

    Works with every optimizer, whatever it does inside: momentum and weight decay included. Which of its
    state is per row is decided as in `gsopt.surgery`; of state that the step created locked rows are zero.

    Of each attribute the smaller part is copied: a few locked rows are put back after the step; where most
    rows are locked, the optimizer gets to see the others only. So compute gradients before; or, if a closure
    does it, let there be none at the start.
    """
    return _hold(model, optimizer) if model.has_locks else contextlib.nullcontext()


@contextlib.contextmanager
def _hold(model: GaussianModel, optimizer: Optimizer) -> Iterator[None]:
    undo = _set_aside(model, optimizer)
    try:
        yield
    finally:
        with torch.no_grad():
            for put_back in undo:
                put_back()


@torch.no_grad()
def _set_aside(model: GaussianModel, optimizer: Optimizer) -> list[Callable[[], None]]:
    """Hide or copy the locked rows of what trains; the results put them back."""
    undo = []
    for name, (locked, free) in _known(model).rows.items():
        parameter = model.get_parameter(name)
        if not parameter.requires_grad:  # the optimizer leaves it alone
            continue
        # One row could not be told from what is not per row, and masks of visible rows are for all rows.
        narrow = 1 < len(free) < len(locked) and not hasattr(optimizer, "add_visible")
        if narrow and parameter.grad is not None:
            undo.append(_show_only(optimizer, parameter, free))
        else:
            undo.append(_remember(optimizer, parameter, locked))
    return undo


def _remember(optimizer: Optimizer, parameter: nn.Parameter, rows: Tensor) -> Callable[[], None]:
    """Copy some rows of a parameter and its state; the result puts them back."""
    values = parameter.index_select(0, rows)
    before = {key: t.index_select(0, rows) for key, t in per_row_state(optimizer, parameter).items()}

    def put_back() -> None:
        parameter.index_copy_(0, rows, values)
        for key, tensor in per_row_state(optimizer, parameter).items():
            if key in before:
                tensor.index_copy_(0, rows, before[key])
            else:
                tensor.index_fill_(0, rows, 0)

    return put_back


def _show_only(optimizer: Optimizer, parameter: nn.Parameter, rows: Tensor) -> Callable[[], None]:
    """Make some rows all that there is of a parameter and its state; the result undoes it."""
    whole, gradient = parameter.data, parameter.grad
    before, known = per_row_state(optimizer, parameter), set(optimizer.state.get(parameter, ()))
    parameter.grad = None  # it must have the shape of the parameter at all times
    parameter.data = whole.index_select(0, rows)
    parameter.grad = gradient.index_select(0, rows)
    for key, tensor in before.items():
        optimizer.state[parameter][key] = tensor.index_select(0, rows)

    def put_back() -> None:
        values, state = parameter.data, optimizer.state.get(parameter, {})
        made = {key: t for key, t in per_row_state(optimizer, parameter).items() if key not in known}
        after = {key: state[key] for key in before} | made
        parameter.grad = None
        parameter.data = whole
        parameter.grad = gradient
        parameter.index_copy_(0, rows, values)
        for key, tensor in after.items():
            full = before[key] if key in before else tensor.new_zeros(len(whole), *tensor.shape[1:])
            state[key] = full.index_copy_(0, rows, tensor)

    return put_back


def clear_locked_gradients(model: GaussianModel) -> None:
    """Set the gradients of locked rows to zero: no norm of a gradient counts them then."""
    if not model.has_locks:
        return
    with torch.no_grad():
        for name, places in locked_rows(model).items():
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                gradient.index_fill_(0, places, 0)


def locked_rows(model: GaussianModel) -> dict[str, Tensor]:
    """Rows that are locked, for each attribute in which there are any. int64 [K]"""
    return {name: locked for name, (locked, _) in _known(model).rows.items()}


def check_attributes(flag: str, names: Iterable[str]) -> tuple[str, ...]:
    """The attributes that `names` mean. Raises InputError, naming `flag`, for others and for none."""
    found = tuple(map(_attribute, names))
    if unknown := [name for name in found if name not in ATTRIBUTES]:
        raise InputError(f"{flag} {unknown[0]}: no such attribute; there are {', '.join(ATTRIBUTES)}")
    if not found:
        raise InputError(f"{flag}: expected at least one of {', '.join(ATTRIBUTES)}, found none")
    return found


def check_something_moves(model: GaussianModel, still: Iterable[str] = ()) -> None:
    """Raise InputError where all Gaussians are locked in all attributes, leaving out those `still` anyway."""
    if model.locks is None:
        return
    locked = {name for name, column in zip(ATTRIBUTES, model.locks.T, strict=True) if column.all()}
    if locked | {_attribute(name) for name in still} >= set(ATTRIBUTES):
        raise InputError(
            f"--lock: that is all {model.num_gaussians:,} Gaussians, so there is nothing to train; "
            "lock fewer, or fewer --lock-attributes"
        )


@dataclass
class _Known:
    """The locks of a model as every step needs them."""

    locks: Tensor | None
    version: int  # of `locks`: it counts changes in place
    rows: dict[str, tuple[Tensor, Tensor]]  # locked and other rows of attributes with locked ones. [K], [N-K]


_KNOWN: WeakKeyDictionary[GaussianModel, _Known] = WeakKeyDictionary()


def _known(model: GaussianModel) -> _Known:
    """What is known of the model's locks, found anew where they have changed."""
    locks, known = model.locks, _KNOWN.get(model)
    version = 0 if locks is None else locks._version
    if known is None or known.locks is not locks or known.version != version:
        rows = {}
        for i, name in enumerate(ATTRIBUTES if locks is not None else ()):
            if locks[:, i].any():
                rows[name] = tuple(torch.nonzero(column).flatten() for column in (locks[:, i], ~locks[:, i]))
        known = _KNOWN[model] = _Known(locks, version, rows)
    return known


def _set(model: GaussianModel, mask: Tensor, attributes: str | Iterable[str] | None, locked: bool) -> None:
    names = ATTRIBUTES if attributes is None else [attributes] if isinstance(attributes, str) else attributes
    columns = [ATTRIBUTES.index(name) for name in check_attributes("--lock-attributes", names)]
    shape = (model.num_gaussians, len(ATTRIBUTES))
    locks = torch.zeros(shape, dtype=torch.bool, device="cpu")
    if model.locks is not None:
        locks.copy_(model.locks)
    for column in columns:
        locks[mask, column] = locked
    model.locks = locks.to(model.xyz.device) if locks.any() else None


def _mask(model: GaussianModel, rows: Rows, centres: Tensor | None = None) -> Tensor:
    """Mask on the CPU. [N]"""
    if isinstance(rows, str | Path):
        rows = [rows]
    if isinstance(rows, Sequence) and rows and all(isinstance(entry, str | Path) for entry in rows):
        centres = model.xyz if centres is None else centres
        masks = [parse_region(str(text)).rows(centres) for text in rows]
        return torch.stack(masks).any(dim=0)
    chosen = torch.as_tensor(rows, device="cpu")
    if chosen.dtype != torch.bool and not chosen.is_floating_point():
        chosen = chosen.long()
    mask = torch.zeros(model.num_gaussians, dtype=torch.bool, device="cpu")
    mask[row_indices(chosen, model.num_gaussians)] = True
    return mask


def _attribute(name: str) -> str:
    """The attribute that a flag's value names: "feature-rest" is feature_rest."""
    return name.replace("-", "_")
