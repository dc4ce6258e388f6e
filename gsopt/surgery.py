"""The one place that changes the rows of parameters: values, gradients and moments move together.

Which rows to change is for a strategy to decide; how they move is decided here. Kept rows keep their
moments, new and overwritten rows begin with moments of zero (three of torch's optimizers begin some state
elsewhere, and so do their rows here).

Per-row state of an optimizer are the entries that it declares in an attribute `per_row_state` (a
collection of keys of its state); without that, the tensors of at least one dimension whose first is the
number of rows. All else, such as Adam's `step`, stays as it is. An optimizer that has not stepped yet has
no state to move, and a parameter that is not in the optimizer only has values. Of an
optimizer made of several, its method `part_of(parameter)` tells whose state it is.

Buffers that a module names in an attribute `per_row_buffers` move with the rows of its parameters; they are
zero for new rows. Where a module has a mask `locked` (bool [N]), its rows can be neither dropped nor
overwritten: that is refused, whoever asks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def keep(module: nn.Module, names: Sequence[str], optimizer: Optimizer | None, rows: Tensor) -> None:
    """Drop all rows but some.

    Args:
        module: owner of the parameters; other parameters of the optimizer are not touched.
        names: of the parameters with one row per element, all with as many rows.
        optimizer: None if there is none.
        rows: which to keep: a mask (bool [N]) or indices in the order wanted (int64 [K], each at most
            once).

    Raises:
        ValueError: numbers of rows that disagree, a mask of another length, indices out of range or
            repeated, or a locked row that would go.
    """
    resize(module, names, optimizer, rows, {})


def append(
    module: nn.Module, names: Sequence[str], optimizer: Optimizer | None, values: Mapping[str, Tensor]
) -> None:
    """Add rows at the end, with moments of zero.

    Args:
        module, names, optimizer: as for :func:`keep`.
        values: the new rows of each parameter. [M, ...]

    Raises:
        ValueError: values for too few or too many parameters or of another shape.
    """
    resize(module, names, optimizer, None, values)


def resize(
    module: nn.Module,
    names: Sequence[str],
    optimizer: Optimizer | None,
    rows: Tensor | None,
    values: Mapping[str, Tensor],
) -> None:
    """Keep some rows and add new ones after them, with one allocation per tensor.

    The parameters become new `nn.Parameter`s that take the place of the old in module, optimizer and
    groups, with their `requires_grad` and what gradient they have (zero for new rows). Groups keep their
    options and names.

    Args:
        module, names, optimizer: as for :func:`keep`.
        rows: as for :func:`keep`; None keeps all.
        values: as for :func:`append`; {} adds none.

    Raises:
        ValueError: as :func:`keep` and :func:`append`. Then nothing is changed.
    """
    count = _row_count(module, names)
    kept = None if rows is None else row_indices(rows, count)
    if kept is not None:
        _refuse_locked(module, names, kept, dropped=True)
    added = _checked_values(module, names, values) if values else 0

    @torch.no_grad()
    def resized(old: Tensor, new: Tensor | float) -> Tensor:
        length = count if kept is None else len(kept)
        out = old.new_empty(length + added, *old.shape[1:])
        if kept is None:
            out[:length] = old
        else:
            torch.index_select(old, 0, kept, out=out[:length])
        out[length:] = new
        return out

    for owner in _owners(module, names):
        for name in getattr(owner, "per_row_buffers", ()):
            if (buffer := owner.get_buffer(name)) is not None:
                setattr(owner, name, resized(buffer, 0))
    for name in names:
        old = module.get_parameter(name)
        new = nn.Parameter(resized(old.detach(), values.get(name, 0)), requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = resized(old.grad, 0)
        _put_in_place(module, name, old, new, optimizer)
        _map_state(optimizer, old, new, resized, new.detach()[new.shape[0] - added :])


@torch.no_grad()
def overwrite(
    module: nn.Module, optimizer: Optimizer | None, values: Mapping[str, Tensor], rows: Tensor | None = None
) -> None:
    """Give rows of some parameters other values, and set their moments (and gradients) to zero.

    The parameters stay the same objects.

    Args:
        module, optimizer: as for :func:`keep`.
        values: the new values of each parameter that changes, one row for each of `rows`. [K, ...]
        rows: which rows: a mask (bool [N]) or indices (int64 [K], each at most once); None is all.

    Raises:
        ValueError: as :func:`keep`, values of another shape, or a locked row. Then nothing is changed.
    """
    count = _row_count(module, list(values))
    places = None if rows is None else row_indices(rows, count)
    length = count if places is None else len(places)
    _refuse_locked(module, values, places, dropped=False)
    for name, value in values.items():
        expected = (length, *module.get_parameter(name).shape[1:])
        if tuple(value.shape) != expected:
            raise ValueError(f"{name}: expected values {list(expected)}, found {list(value.shape)}")

    def put(tensor: Tensor, value: Tensor | float) -> Tensor:
        tensor[slice(None) if places is None else places] = value
        return tensor

    for name, value in values.items():
        parameter = module.get_parameter(name)
        put(parameter, value.to(parameter))
        if parameter.grad is not None:
            put(parameter.grad, 0)
        _map_state(optimizer, parameter, parameter, put, value)


def per_row_state(optimizer: Optimizer | None, parameter: Tensor) -> dict[str, Tensor]:
    """The entries of the optimizer's state of `parameter` with one row for each of its rows."""
    if optimizer is None or parameter not in optimizer.state:
        return {}
    return _rows_of(_part(optimizer, parameter), optimizer.state[parameter], parameter)


def row_indices(rows: Tensor, count: int) -> Tensor:
    """`rows`, a mask (bool [N]) or indices (int64 [K]) of `count` rows, as checked indices. [K]

    Raises:
        ValueError: a mask of another length, another type, indices out of range or repeated.
    """
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise ValueError(f"rows: expected a mask [{count}], found {list(rows.shape)}")
        return torch.nonzero(rows).flatten()
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise ValueError(f"rows: expected a mask or a list of int64, found {rows.dtype} {list(rows.shape)}")
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise ValueError(f"rows: expected 0 to {count - 1}, found {int(rows.min())} to {int(rows.max())}")
    if len(rows) != len(torch.unique(rows)):
        raise ValueError("rows: found an index twice, which would give two rows one set of moments")
    return rows


def _map_state(
    optimizer: Optimizer | None,
    old: Tensor,
    new: Tensor,
    change: Callable[[Tensor, Tensor | float], Tensor],
    values: Tensor,
) -> None:
    """Hand the state of `old` to `new`, in whose place it is; `change` gives rows a beginning in its tensors.

    `values` are those of the parameter in the rows that begin.
    """
    if optimizer is None or old not in optimizer.state:
        return
    group = next(g for g in optimizer.param_groups if any(new is entry for entry in g["params"]))
    part = _part(optimizer, new)
    state = optimizer.state.pop(old)
    changed = {
        key: change(value, _beginning(part, key, group, values))
        for key, value in _rows_of(part, state, old).items()
    }
    optimizer.state[new] = state | changed


def _part(optimizer: Optimizer, parameter: Tensor) -> Optimizer:
    """The optimizer that updates the parameter, where one is made of several."""
    return optimizer.part_of(parameter) if hasattr(optimizer, "part_of") else optimizer


def _rows_of(optimizer: Optimizer, state: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """The entries of the state of a parameter with one row for each of its rows."""
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor)
        and _is_per_row(optimizer, key, value, parameter.shape[0], parameter.dim())
    }


def _is_per_row(optimizer: Optimizer, key: str, value: Tensor, rows: int, dimensions: int) -> bool:
    """Whether the entry `key` of the state of a parameter has a row for each of its rows."""
    declared = getattr(optimizer, "per_row_state", None)
    if declared is not None:
        return key in declared
    if isinstance(optimizer, torch.optim.Adafactor) and key == "col_var" and dimensions == 2:
        return False  # [1, K], the mean over the rows, which looks like a row each where there is one
    return value.dim() > 0 and value.shape[0] == rows


def _beginning(optimizer: Optimizer, key: str, group: Mapping[str, Any], values: Tensor) -> Tensor | float:
    """What the entry `key` of a row begins with, as in the optimizer's own first step."""
    if isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
        return group["initial_accumulator_value"]
    if isinstance(optimizer, torch.optim.ASGD) and key == "ax":
        return values  # of which it is the mean
    return 0.0


def _put_in_place(
    module: nn.Module, name: str, old: nn.Parameter, new: nn.Parameter, optimizer: Optimizer | None
) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, new)
    for group in optimizer.param_groups if optimizer is not None else ():
        for position, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][position] = new


def _owners(module: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The modules whose own the parameters are."""
    return [module.get_submodule(owner) for owner in dict.fromkeys(n.rpartition(".")[0] for n in names)]


def _refuse_locked(module: nn.Module, names: Iterable[str], rows: Tensor | None, dropped: bool) -> None:
    """Raise ValueError where `rows` (None: all) would overwrite locked rows or, if `dropped`, lack some."""
    for owner in _owners(module, names):
        locked = getattr(owner, "locked", None)
        if isinstance(locked, Tensor):
            there = int(locked.sum() if rows is None else locked[rows].sum())
            if refused := int(locked.sum()) - there if dropped else there:
                raise ValueError(
                    f"rows: {refused} locked ones would be {'dropped' if dropped else 'overwritten'}; "
                    "leave those alone that are not gsopt.strategy.movable, or unlock them"
                )


def _row_count(module: nn.Module, names: Iterable[str]) -> int:
    counts = {name: module.get_parameter(name).shape[0] for name in names}
    if len(set(counts.values())) != 1:
        raise ValueError(f"expected parameters with one number of rows, found {counts}")
    return next(iter(counts.values()))


def _checked_values(module: nn.Module, names: Sequence[str], values: Mapping[str, Tensor]) -> int:
    """Number of new rows, the same in all `values`, which there are for each of `names`."""
    if set(values) != set(names):
        raise ValueError(f"expected new rows of {', '.join(names)}, found {', '.join(values)}")
    added = len(values[names[0]])
    for name in names:
        expected = (added, *module.get_parameter(name).shape[1:])
        if tuple(values[name].shape) != expected:
            raise ValueError(f"{name}: expected new rows {list(expected)}, found {list(values[name].shape)}")
    return added
