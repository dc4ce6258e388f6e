"""What differs in two files, parameter by parameter and option by option, matched by name."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gsopt.inspection.snapshot import Parameter, Snapshot

ABSENT = "absent"
VALUE = "value"  # the entry of a parameter that is not of its optimizer


@dataclass
class EntryDifference:
    """One entry of a parameter in two files A and B: its value, a moment or a number.

    Args:
        parameter, entry: names; the entry "value" is the parameter itself.
        same_bits: type, shape and every bit agree.
        rows: how many rows differ in any bit, and how many there are; None without rows or of other shapes.
        largest: max |B - A|; None where shapes differ or one is absent.
        relative: ‖B - A‖ / ‖A‖, infinite where only A is 0; None as `largest`.
        remark: both values of a number; else what differs beside bits: shapes, types, or only one file has
            it.
    """

    parameter: str
    entry: str
    same_bits: bool
    rows: tuple[int, int] | None = None
    largest: float | None = None
    relative: float | None = None
    remark: str = ""


@dataclass
class Comparison:
    """Two files by name.

    Args:
        options: "group.option" to (A's, B's) where they differ.
        only_a, only_b: parameters that one file has.
        entries: of the parameters in both, in A's order.
    """

    options: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    entries: list[EntryDifference] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        alike = all(entry.same_bits for entry in self.entries)
        return alike and not (self.options or self.only_a or self.only_b)


def compare(a: Snapshot, b: Snapshot) -> Comparison:
    """Compare two files by the names of their parameters, and the options of the groups these are in.

    Where one of them has no optimizer, values alone are compared.
    """
    found = Comparison(
        only_a=[name for name in a.parameters if name not in b.parameters],
        only_b=[name for name in b.parameters if name not in a.parameters],
    )
    for name, mine in a.parameters.items():
        if name in b.parameters:
            other = b.parameters[name]
            both = bool(a.groups and b.groups)  # else one file says nothing about state and options
            found.entries += _compare_entries(mine, other, with_state=both)
            if both:
                _compare_options(found, _options(a, mine), _options(b, other), mine.group or other.group)
    return found


def _options(snapshot: Snapshot, parameter: Parameter) -> dict[str, Any]:
    if parameter.group is None:
        return {"group": "excluded"}
    group = snapshot.groups[parameter.group]
    return {"group": group.name, **group.options} | ({"schedule": group.schedule} if group.schedule else {})


def _compare_options(found: Comparison, a: dict[str, Any], b: dict[str, Any], label: str | None) -> None:
    keys = a.keys() | b.keys()
    if "excluded" in (a["group"], b["group"]):
        keys = {"group"}  # which says it all
    for key in sorted(keys):
        pair = tuple(plain_option(options.get(key, ABSENT)) for options in (a, b))
        if pair[0] != pair[1]:
            found.options.setdefault(f"{label}.{key}", pair)


def plain_option(value: Any) -> Any:
    """An option without tensors, so that equal ones compare equal."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _compare_entries(a: Parameter, b: Parameter, with_state: bool) -> list[EntryDifference]:
    mine, other = ({VALUE: p.value} | (p.state if with_state else {}) for p in (a, b))
    found = []
    for entry in dict.fromkeys([*mine, *other]):
        x, y = mine.get(entry), other.get(entry)
        if x is None and y is None:
            continue
        if x is None or y is None:
            found.append(EntryDifference(a.name, entry, False, remark=f"only in {'B' if x is None else 'A'}"))
        else:
            found.append(_compare_entry(a.name, entry, x, y))
    return found


def _compare_entry(name: str, entry: str, a: Any, b: Any) -> EntryDifference:
    if not (is_number(a) or isinstance(a, Tensor)) or not (is_number(b) or isinstance(b, Tensor)):
        same = type(a) is type(b) and a == b
        return EntryDifference(name, entry, same, remark="" if same else f"{a!r} and {b!r}")
    a, b = (torch.as_tensor(value) for value in (a, b))
    if a.shape != b.shape:
        return EntryDifference(name, entry, False, remark=_shapes(a, b))
    numbers: Any = _distance(a, b)
    if a.dim() == 0:  # a step is a number, whether a tensor holds it or not
        same = bool(a == b)
        return EntryDifference(name, entry, same, **numbers, remark="" if same else f"{a:g} and {b:g}")
    if a.dtype != b.dtype:
        types = " and ".join(str(value.dtype).removeprefix("torch.") for value in (a, b))
        return EntryDifference(name, entry, False, **numbers, remark=types)
    differing = int((_bits(a) != _bits(b)).any(dim=1).sum())
    return EntryDifference(name, entry, differing == 0, rows=(differing, len(a)), **numbers)


def _shapes(a: Tensor, b: Tensor) -> str:
    """How two shapes differ: in rows alone, or else."""
    if a.dim() and b.dim() and a.shape[1:] == b.shape[1:]:
        return f"{len(a):,} and {len(b):,} rows"
    return f"shape {list(a.shape)} and {list(b.shape)}"


def is_number(value: Any) -> bool:
    """Whether an entry of an optimizer's state is a number that no tensor holds."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of each row. uint8 [rows, bytes]"""
    if tensor.numel() == 0:
        return torch.empty(len(tensor), 0, dtype=torch.uint8)
    return tensor.contiguous().reshape(len(tensor), -1).view(torch.uint8)


def _distance(a: Tensor, b: Tensor) -> dict[str, float]:
    """max |B - A|, and ‖B - A‖ / ‖A‖; both 0 for tensors without elements."""
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    difference = b.to(wide) - a.to(wide)
    if difference.numel() == 0:
        return {"largest": 0.0, "relative": 0.0}
    apart, size = difference.norm().item(), a.to(wide).norm().item()
    relative = apart / size if size else (math.inf if apart else apart)
    return {"largest": difference.abs().max().item(), "relative": relative}
