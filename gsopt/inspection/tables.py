"""What `gsopt inspect` prints, and the same as plain values for JSON."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gsopt.inspection.compare import Comparison, is_number, plain_option
from gsopt.inspection.snapshot import Group, Parameter, Snapshot
from gsopt.text import narrow_table

WIDTH = 110  # characters
NONE = "-"
COLUMNS = ("lr", "initial_lr", "weight_decay", "frozen")  # options with a column of their own


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """A file as plain values; numbers that are not finite are None."""
    return {
        "file": str(snapshot.path),
        "kind": snapshot.kind,
        "step": snapshot.step,
        "groups": {group.name: _group_json(group, snapshot) for group in snapshot.groups.values()},
        "parameters": {name: _parameter_json(each) for name, each in snapshot.parameters.items()},
        "notes": snapshot.notes,
    }


def _group_json(group: Group, snapshot: Snapshot) -> dict[str, Any]:
    members = [name for name, each in snapshot.parameters.items() if each.group == group.name]
    options = {key: _finite(plain_option(value)) for key, value in group.options.items()}
    return {"parameters": members, "schedule": group.schedule, **options}


def _parameter_json(parameter: Parameter) -> dict[str, Any]:
    shape = parameter.shape
    return {
        "group": parameter.group,
        "rows": shape[0] if shape else None,
        "shape": None if shape is None else list(shape),
        "norm": None if parameter.value is None else _finite(_norm(parameter.value)),
        "state": {key: _entry_json(entry) for key, entry in parameter.state.items()},
    }


def _entry_json(entry: Any) -> Any:
    if isinstance(entry, Tensor) and entry.numel() != 1:
        return {"shape": list(entry.shape), "norm": _finite(_norm(entry))}
    return _finite(plain_option(entry))


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain values; numbers that are not finite are None."""
    parameters: dict[str, dict[str, Any]] = {}
    for each in comparison.entries:
        parameters.setdefault(each.parameter, {})[each.entry] = {
            "same_bits": each.same_bits,
            "rows_differing": each.rows and each.rows[0],
            "rows": each.rows and each.rows[1],
            "largest": _finite(each.largest),
            "relative": _finite(each.relative),
            "remark": each.remark,
        }
    return {
        "same": comparison.same,
        "options": {key: [_finite(value) for value in pair] for key, pair in comparison.options.items()},
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
        "parameters": parameters,
    }


def snapshot_lines(snapshot: Snapshot) -> list[str]:
    """A file as tables of its groups and its parameters."""
    rows = {p.shape[0] for p in snapshot.parameters.values() if p.shape}
    facts = [snapshot.kind, *([] if snapshot.step is None else [f"step {snapshot.step:,}"]), *snapshot.about]
    if len(rows) == 1:
        facts.append(f"{rows.pop():,} rows")
    lines = [str(snapshot.path), ", ".join(facts)]
    if snapshot.groups:
        lines += ["", *_group_table(snapshot), *_option_lines(snapshot)]
        left_out = [name for name, each in snapshot.parameters.items() if each.group is None]
        if left_out:
            lines += _wrapped(f"not in the optimizer: {', '.join(left_out)}")
    lines += ["", *_parameter_table(snapshot)]
    return [*lines, *(line for note in snapshot.notes for line in _wrapped(f"note: {note}"))]


def _group_table(snapshot: Snapshot) -> list[str]:
    header = ["group", "lr", "lr at start", "schedule", "weight decay", "frozen"]
    rows = []
    for group in snapshot.groups.values():
        lr, start, decay, frozen = (group.options.get(key) for key in COLUMNS)
        words = NONE if frozen is None else "yes" if frozen else "no"
        rows.append([group.name, _number(lr), _number(start), group.schedule or NONE, _number(decay), words])
    return narrow_table(header, rows, WIDTH)


def _option_lines(snapshot: Snapshot) -> list[str]:
    """The other options that say something: one line for those that all groups share, one for each rest."""
    own = {
        name: {key: plain_option(value) for key, value in group.options.items() if key not in COLUMNS}
        for name, group in snapshot.groups.items()
    }
    first = next(iter(own.values()))
    shared = [key for key in first if all(key in o and o[key] == first[key] for o in own.values())]
    lines = _option_line("all groups", {key: first[key] for key in shared})
    for name, options in own.items():
        lines += _option_line(name, {key: value for key, value in options.items() if key not in shared})
    return lines


def _option_line(label: str, options: Mapping[str, Any]) -> list[str]:
    said = [f"{key} {value}" for key, value in options.items() if value is not None and value is not False]
    return _wrapped(f"{label}: {', '.join(said)}") if said else []


def _parameter_table(snapshot: Snapshot) -> list[str]:
    entries = list(dict.fromkeys(key for each in snapshot.parameters.values() for key in each.state))
    grouped = any(each.group not in (None, name) for name, each in snapshot.parameters.items())
    header = ["parameter", *(["group"] if grouped else []), "rows", "shape", "norm", *entries]
    rows = []
    for name, each in snapshot.parameters.items():
        shape = each.shape
        rows.append(
            [
                name,
                *([each.group or NONE] if grouped else []),
                f"{shape[0]:,}" if shape else NONE,
                NONE if shape is None else str(list(shape)),
                NONE if each.value is None else _number(_norm(each.value)),
                *(_cell(key, each.state.get(key)) for key in entries),
            ]
        )
    return narrow_table(header, rows, WIDTH)


def _cell(key: str, entry: Any) -> str:
    """An entry of the state: a number as it is, a tensor by its norm, the steps of rows by their range."""
    if not isinstance(entry, Tensor) or entry.numel() == 1:
        return _number(plain_option(entry))
    if key == "step" and entry.numel():
        return f"{_number(entry.min().item())} to {_number(entry.max().item())}"
    return _number(_norm(entry))


def comparison_lines(a: Snapshot, b: Snapshot, comparison: Comparison) -> list[str]:
    """What differs: options, parameters of one file alone, and entries that have not the same bits."""
    lines = [f"A  {_titled(a)}", f"B  {_titled(b)}"]
    for side, each in (("A", a), ("B", b)):
        if not each.groups:
            lines.append(f"{side} has no optimizer: only values are compared")
    if comparison.options:
        rows = [[name, *(_number(value) for value in pair)] for name, pair in comparison.options.items()]
        lines += ["", *narrow_table(["option", "A", "B"], rows, WIDTH)]
    for side, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            lines += ["", *_wrapped(f"only in {side}: {', '.join(names)}")]
    rows = _difference_rows(comparison)
    if rows:
        header = ["parameter", "entry", "differs", "max |B - A|", "relative norm"]
        lines += ["", *narrow_table(header, rows, WIDTH)]
    odd = {row[0] for row in rows}
    same = dict.fromkeys(each.parameter for each in comparison.entries if each.parameter not in odd)
    if same:
        lines += ["", *_wrapped(f"same bits: {', '.join(same)}")]
    if comparison.same:
        lines += ["", "nothing differs"]
    notes = [f"note on {side}: {note}" for side, each in (("A", a), ("B", b)) for note in each.notes]
    return [*lines, *(line for note in notes for line in _wrapped(note))]


def _titled(snapshot: Snapshot) -> str:
    step = "" if snapshot.step is None else f", step {snapshot.step:,}"
    return f"{snapshot.path}: {snapshot.kind}{step}"


def _difference_rows(comparison: Comparison) -> list[list[str]]:
    """A row for each entry that differs; one for several of a parameter with a remark instead of numbers."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for each in comparison.entries:
        if each.same_bits:
            continue
        rows_differing = f"{each.rows[0]:,} of {each.rows[1]:,} rows" if each.rows else NONE
        numbers = (_number(each.largest), _number(each.relative))
        row = [each.parameter, each.entry, each.remark or rows_differing, *numbers]
        key = (each.parameter, each.remark if each.largest is None else each.entry)
        if key in rows:
            rows[key][1] += f", {each.entry}"
        else:
            rows[key] = row
    return list(rows.values())


def _norm(tensor: Tensor) -> float:
    """Euclidean, of any type of numbers, in double precision."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        tensor = tensor.double()
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return torch.linalg.vector_norm(tensor, dtype=wide).item().real


def _number(value: Any) -> str:
    """Four digits of a number; a dash for None; other things as they are."""
    if value is None:
        return NONE
    if not is_number(value):
        return str(value)
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return f"{int(value):,}" if is_whole else f"{value:.4g}"


def _finite(value: Any) -> Any:
    """`value` with None for each number in it that JSON cannot hold."""
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
