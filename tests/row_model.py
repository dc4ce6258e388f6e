"""The slow twin of model, groups, optimizer and surgery: Gaussians one by one, as the rules are written.

A Gaussian is a dict from attribute to :class:`Cell`. Nothing here knows gsopt or torch. Arithmetic is in
double, with a bound of what float32 may make of it; what was not computed keeps its bits and has no bound.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np

ROUNDING = 1e-6  # of the numbers that enter a sum: some units in the last place of float32
BETAS, EPS, MOMENTUM = (0.9, 0.999), 1e-15, 0.9


@dataclass
class Cell:
    """One attribute of one Gaussian. Arrays are float32 of the shape of a row."""

    value: np.ndarray
    moments: dict[str, np.ndarray] = field(default_factory=dict)  # none before the attribute's first update
    gradient: np.ndarray | None = None
    locked: bool = False
    bounds: dict[str, np.ndarray] = field(default_factory=dict)  # of what was computed: "value" or a moment

    def put(self, name: str, number: np.ndarray, bound: np.ndarray) -> None:
        """Set the value or a moment to a double that float32 may miss by `bound`."""
        with_name = self.__dict__ if name == "value" else self.moments
        with_name[name], self.bounds[name] = number.astype(np.float32), bound

    def blank(self) -> None:
        """What a row begins with: moments of zero, and a gradient of zero where the attribute has one."""
        self.moments = {name: np.zeros_like(moment) for name, moment in self.moments.items()}
        self.gradient = None if self.gradient is None else np.zeros_like(self.gradient)


@dataclass
class Attribute:
    """What holds for an attribute of all rows."""

    lr: float
    weight_decay: float
    excluded: bool = False
    frozen: bool = False
    windows: Sequence[tuple[int, int | None]] = ()
    updates: int = 0  # done; the optimizer has no state before the first
    has_gradient: bool = False

    @property
    def still(self) -> bool:
        """Nothing may give it another value, and it gets no gradient."""
        return self.frozen or self.excluded

    def in_window(self, step: int) -> bool:
        return any(start <= step and (end is None or step < end) for start, end in self.windows)


Update = Callable[[Cell, Attribute], None]
Rows = dict[int, dict[str, Cell]]


class RowModel:
    """The rows in their order, by a number that no two rows ever share.

    Args:
        values: of each attribute. float32 [N, ...]
        attributes: what holds for each.
        update: the rule of the optimizer, for a cell that has a gradient.
    """

    def __init__(
        self, values: Mapping[str, np.ndarray], attributes: dict[str, Attribute], update: Update
    ) -> None:
        self.attributes, self.update = attributes, update
        count = len(next(iter(values.values())))
        self.rows: Rows = {
            row: {name: Cell(of_all[row].copy()) for name, of_all in values.items()} for row in range(count)
        }
        self.next_row = count

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, place: int) -> dict[str, Cell]:
        return self.rows[list(self.rows)[place]]

    def column(self, name: str) -> list[Cell]:
        """An attribute of all rows."""
        return [row[name] for row in self.rows.values()]

    def movable(self) -> list[bool]:
        """Of each row whether nothing of it is locked."""
        return [not any(cell.locked for cell in row.values()) for row in self.rows.values()]

    # -------------------------------------------------------------------------------- training

    def backward(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Add to the gradients of all that is not still. Each float32 [N, ...]"""
        for name, attribute in self.attributes.items():
            if not attribute.still:
                attribute.has_gradient = True
                for cell, added in zip(self.column(name), gradients[name], strict=True):
                    cell.gradient = added.copy() if cell.gradient is None else cell.gradient + added

    def step(self) -> None:
        """One update of what has a gradient but is not locked; then the gradients are gone."""
        for name, attribute in self.attributes.items():
            if attribute.has_gradient:
                attribute.updates += 1
                for cell in self.column(name):
                    self.update(cell, attribute)
                self.drop_gradient(name)

    def drop_gradient(self, name: str) -> None:
        self.attributes[name].has_gradient = False
        for cell in self.column(name):
            cell.gradient = None

    def set_frozen(self, names: Iterable[str], frozen: bool) -> None:
        for name in names:
            self.attributes[name].frozen = frozen
            if frozen:
                self.drop_gradient(name)

    def apply_windows(self, step: int) -> None:
        """As the update after `step` others wants it, for the attributes that have windows."""
        for name, attribute in self.attributes.items():
            if attribute.windows:
                self.set_frozen([name], attribute.in_window(step))

    def set_locked(self, places: Iterable[int], names: Iterable[str], locked: bool) -> None:
        for place in places:
            for name in names:
                self.at(place)[name].locked = locked

    # ------------------------------------------------------------------------------------ rows

    def keep(self, places: Sequence[int]) -> None:
        """These rows, in this order."""
        numbers = list(self.rows)
        self.rows = {numbers[place]: self.rows[numbers[place]] for place in places}

    def append(self, values: Mapping[str, np.ndarray]) -> None:
        """New rows, unlocked. Each [M, ...]"""
        for place in range(len(next(iter(values.values())))):
            self.add({name: Cell(of_all[place].copy()) for name, of_all in values.items()})

    def clone(self, places: Iterable[int]) -> None:
        """New rows with the values of others."""
        for row in [self.at(place) for place in places]:
            self.add({name: Cell(cell.value.copy()) for name, cell in row.items()})

    def add(self, row: dict[str, Cell]) -> None:
        """One more row with these values, that begins as all do."""
        for name, cell in row.items():
            attribute = self.attributes[name]
            cell.moments = {
                moment: np.zeros_like(cell.value) for moment in self.moment_names() if attribute.updates
            }
            cell.gradient = np.zeros_like(cell.value) if attribute.has_gradient else None
        self.rows[self.next_row] = row
        self.next_row += 1

    def moment_names(self) -> tuple[str, ...]:
        return MOMENTS[self.update]

    def overwrite(self, name: str, places: Sequence[int], values: np.ndarray) -> None:
        """Other values, and moments of zero. [K, ...]"""
        for place, value in zip(places, values, strict=True):
            cell = self.at(place)[name]
            cell.value = value.copy()
            cell.blank()

    # ----------------------------------------------------------------------------------- files

    def loaded(self, attributes: dict[str, Attribute], update: Update) -> "RowModel":
        """What a new optimizer with these attributes goes on from: values, locks, and moments by name.

        Moments are only of what both optimizers train; a gradient is in no file.
        """
        other = deepcopy(self)
        other.attributes, other.update = attributes, update
        for name, attribute in attributes.items():
            goes_on = not (attribute.excluded or self.attributes[name].excluded)
            attribute.updates = self.attributes[name].updates if goes_on else 0
            other.drop_gradient(name)
            for cell in other.column(name):
                cell.moments = cell.moments if goes_on else {}
        return other


# ------------------------------------------------------------------------------------- optimizers


def _begin(cell: Cell, names: Iterable[str]) -> None:
    for name in names:
        cell.moments.setdefault(name, np.zeros_like(cell.value))


def _adam(cell: Cell, attribute: Attribute, decoupled: bool) -> None:
    """Kingma and Ba 2015, algorithm 1; weight decay decoupled as by Loshchilov and Hutter 2019, or not."""
    _begin(cell, ("exp_avg", "exp_avg_sq"))
    if cell.locked:
        return
    value, gradient, m, v = (
        array.astype(np.float64)
        for array in (cell.value, cell.gradient, cell.moments["exp_avg"], cell.moments["exp_avg_sq"])
    )
    lr, decay = attribute.lr, attribute.weight_decay
    g = gradient if decoupled else gradient + decay * value
    size_g = abs(gradient) if decoupled else abs(gradient) + decay * abs(value)
    start = value * (1 - lr * decay) if decoupled else value
    (b1, b2), t = BETAS, attribute.updates
    size_m, size_v = b1 * abs(m) + (1 - b1) * size_g, b2 * v + (1 - b2) * size_g**2
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    slope = lr / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + EPS)
    lost = np.divide(size_v, v, out=np.ones_like(v), where=v > 0)  # 1 where the sums do not cancel
    cell.put("exp_avg", m, ROUNDING * size_m)
    cell.put("exp_avg_sq", v, ROUNDING * size_v)
    cell.put("value", start - slope * m, ROUNDING * (abs(value) + slope * size_m * (1 + lost)))


def adam(cell: Cell, attribute: Attribute) -> None:
    _adam(cell, attribute, decoupled=False)


def adamw(cell: Cell, attribute: Attribute) -> None:
    _adam(cell, attribute, decoupled=True)


def sgd(cell: Cell, attribute: Attribute) -> None:
    """Momentum of Nesterov's kind as Sutskever et al. 2013 write it, with weight decay in the gradient."""
    _begin(cell, ("momentum_buffer",))
    if cell.locked:
        return
    value, gradient, buffer = (
        array.astype(np.float64) for array in (cell.value, cell.gradient, cell.moments["momentum_buffer"])
    )
    g = gradient + attribute.weight_decay * value
    size = abs(gradient) + attribute.weight_decay * abs(value) + MOMENTUM * abs(buffer)
    buffer = MOMENTUM * buffer + g
    cell.put("momentum_buffer", buffer, ROUNDING * size)
    cell.put(
        "value",
        value - attribute.lr * (g + MOMENTUM * buffer),
        ROUNDING * (abs(value) + 2 * attribute.lr * size),
    )


MOMENTS = {adam: ("exp_avg", "exp_avg_sq"), adamw: ("exp_avg", "exp_avg_sq"), sgd: ("momentum_buffer",)}
