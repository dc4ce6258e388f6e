"""Whether a model and its optimizer are what the slow model says: bits, or rounding where it computed."""

import numpy as np
import torch
from row_model import Cell, RowModel

from gsopt.model import ATTRIBUTES, GaussianModel


def assert_same(model: GaussianModel, optimizer: torch.optim.Optimizer, slow: RowModel) -> None:
    """Compare all; then the slow model goes on from the same float32, so that no rounding piles up."""
    assert model.num_gaussians == len(slow)
    for name, attribute in slow.attributes.items():
        parameter, cells = model.get_parameter(name), slow.column(name)
        assert parameter.requires_grad == (not attribute.still), name
        assert (parameter.grad is not None) == attribute.has_gradient, name
        if attribute.has_gradient:
            _assert_rows(
                f"{name}.grad", parameter.grad, [cell.gradient for cell in cells], [None] * len(cells)
            )
        _assert_field(name, "value", parameter, cells)
        state = dict(optimizer.state.get(parameter, {}))
        if attribute.excluded or not attribute.updates:
            assert not state, name
            continue
        assert set(state) == {*slow.moment_names(), *(["step"] if "exp_avg" in state else [])}, name
        assert state.pop("step", attribute.updates) == attribute.updates, name
        for moment, tensor in state.items():
            _assert_field(name, moment, tensor, cells)
    for cell in (cell for row in slow.rows.values() for cell in row.values()):
        cell.bounds = {}
    _assert_locks(model, slow)
    _assert_groups(model, optimizer, slow)


def _assert_field(name: str, field: str, tensor: torch.Tensor, cells: list[Cell]) -> None:
    expected = [cell.value if field == "value" else cell.moments[field] for cell in cells]
    _assert_rows(f"{name}.{field}", tensor, expected, [cell.bounds.get(field) for cell in cells])
    for cell, found in zip(cells, tensor.detach().numpy(), strict=True):
        if field in cell.bounds:
            cell.put(field, found, cell.bounds[field])


def _assert_rows(label: str, tensor: torch.Tensor, expected: list, bounds: list) -> None:
    """Row by row the same bits, or within bounds where there are any."""
    found = tensor.detach().numpy()
    assert found.dtype == np.float32
    assert len(found) == len(expected), label
    for place, (row, wanted, bound) in enumerate(zip(found, expected, bounds, strict=True)):
        if bound is None:
            fine = row.shape == wanted.shape and row.tobytes() == wanted.tobytes()
        else:
            fine = row.shape == wanted.shape and bool((abs(row.astype(float) - wanted) <= bound).all())
        assert fine, f"{label}[{place}]: {row.tolist()}, expected {wanted.tolist()} ± {bound}"


def _assert_locks(model: GaussianModel, slow: RowModel) -> None:
    locks = [[row[name].locked for name in ATTRIBUTES] for row in slow.rows.values()]
    if any(map(any, locks)):
        assert model.locks.tolist() == locks
    else:
        assert model.locks is None or not model.locks.any()


def _assert_groups(model: GaussianModel, optimizer: torch.optim.Optimizer, slow: RowModel) -> None:
    """Each attribute that is not excluded in a group of its name, and no state of anything else."""
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert set(groups) == {name for name, attribute in slow.attributes.items() if not attribute.excluded}
    for name, group in groups.items():
        attribute = slow.attributes[name]
        assert [*map(id, group["params"])] == [id(model.get_parameter(name))]
        assert group["frozen"] == attribute.frozen, name
        assert (group["lr"], group["weight_decay"]) == (attribute.lr, attribute.weight_decay)
    assert set(map(id, optimizer.state)) <= {id(group["params"][0]) for group in groups.values()}
