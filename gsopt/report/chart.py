"""Charts as SVG: lines and bars with axes, in the colours of the page they are put on."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gsopt.report.data import Points

WIDTH, HEIGHT = 460, 260  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 32
MOST_POINTS = 400  # of a line; of more, each step of so many keeps its least and its largest
COLORS = 8  # the page has variables --c0 to --c7
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # one after the other when the colours are used up


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: Points
    color: int = 0
    faint: bool = False  # in the background, without a name and a value
    dots: bool = False  # few points, each shown
    steps: bool = False  # a value holds until the next


def smooth(points: Points, window: float = 0.05) -> Points:
    """A running mean whose memory is this part of the curve, without the bias to its first value."""
    keep = 1 - 1 / max(1.0, window * len(points))
    mean = weight = 0.0
    found = []
    for step, value in points:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append((step, mean / weight))
    return found


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    note: str = "",
    log: bool = False,
    unit: str = "",
    zero: bool = False,
) -> str:
    """A card with a chart, its title, a note and a legend; "" where there is nothing to draw.

    Args:
        log: a logarithmic axis; values that are not above 0 are left out.
        unit: of the values, after those shown at the pointer.
        zero: the axis begins at 0.
    """
    lines = [_drawable(line, log) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [step for line in lines for step, _ in line.points]
    ys = [value for line in lines for _, value in line.points]
    x_axis = Axis(0 if min(xs) < 0.2 * max(xs) else min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_padded(min(ys), max(ys), log, zero), HEIGHT - BOTTOM, TOP, log)
    shown = [line for line in lines if not line.faint]
    data = {
        "x": [x_axis.low, x_axis.high],
        "unit": unit,
        "lines": [
            {"name": line.name, "color": line.color % COLORS, "points": _rounded(line.points)}
            for line in shown
        ],
    }
    drawing = [*_grid(x_axis, y_axis), *(_path(line, x_axis, y_axis) for line in lines)]
    return _card(title, note, drawing, data, [(line.name, line.color) for line in shown])


def bar_chart(title: str, limits: Sequence[float], counts: Sequence[float], *, note: str = "") -> str:
    """A card with a histogram of which `limits` are the upper ends of the bins; "" where it is empty."""
    filled = [i for i, count in enumerate(counts) if count > 0]
    if len(limits) < 3 or not filled:
        return ""
    first, last = max(filled[0], 1), filled[-1]
    if last < first:
        return ""
    x_axis = Axis(limits[first - 1], limits[last], LEFT, WIDTH - RIGHT)
    y_axis = Axis(0.0, 1.05 * max(counts), HEIGHT - BOTTOM, TOP)
    bars = []
    for i in range(first, last + 1):
        left, right = x_axis(limits[i - 1]), x_axis(limits[i])
        top, width = y_axis(counts[i]), max(right - left - 0.6, 0.4)
        bars.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{y_axis(0) - top:.1f}"><title>{limits[i - 1]:.3g} to {limits[i]:.3g}: {counts[i]:,.0f}'
            "</title></rect>"
        )
    return _card(title, note, [*_grid(x_axis, y_axis), *bars], None, [])


@dataclass(frozen=True)
class Axis:
    """From values to places."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log else float
        low, high = scale(self.low), scale(self.high)
        part = 0.5 if high == low else (scale(value) - low) / (high - low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Some round values on it."""
        if not self.log or self.high < 3 * self.low:
            return _round_values(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        stride = max(1, math.ceil((last - first) / 6))
        factors = (1, 2, 5) if last - first <= 2 else (1,)
        values = [f * 10.0**e for e in range(first, last + 1, stride) for f in factors]
        return [value for value in values if self.low <= value <= self.high]


def key(color: int, content: str) -> str:
    """An entry of a legend: a patch of the colour, and HTML."""
    return f'<span class="key"><i style="background:var(--c{color % COLORS})"></i>{content}</span>'


def number(value: float) -> str:
    """A short text: 12k, 3.4M, 0.025, 1e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.4g}"


def _round_values(low: float, high: float, about: int = 5) -> list[float]:
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough)
    first = math.ceil(low / stride - 1e-9)
    count = math.floor(high / stride + 1e-9) - first + 1
    return [(first + i) * stride for i in range(count)]


def _padded(low: float, high: float, log: bool, zero: bool) -> tuple[float, float]:
    """Limits of an axis with a little room beyond the values."""
    if log:
        room = max((high / low) ** 0.05, 1.1)
        return low / room, high * room
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if zero else low - room), high + room


def _drawable(line: Line, log: bool) -> Line:
    points = [(x, y) for x, y in line.points if math.isfinite(y) and (y > 0 or not log)]
    return Line(line.name, _thinned(points), line.color, line.faint, line.dots, line.steps)


def _thinned(points: Points) -> Points:
    """At most about MOST_POINTS, with every peak."""
    size = math.ceil(2 * len(points) / MOST_POINTS)
    if size <= 2:
        return points
    found: Points = []
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        found += sorted(ends | ({points[-1]} if begin + size >= len(points) else set()))
    return found


def _rounded(points: Points) -> list[list[float]]:
    return [[x, float(f"{y:.5g}")] for x, y in points]


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for value in y_axis.ticks():
        y = y_axis(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in x_axis.ticks():
        x = x_axis(value)
        text = number(value)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>'
        )
    return parts


def _path(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    places = [(x_axis(x), y_axis(y)) for x, y in line.points]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}" if line.steps else f"L{x:.1f} {y:.1f}"
    style = f"stroke:var(--c{line.color % COLORS})"
    if dash := DASHES[line.color // COLORS % len(DASHES)]:
        style += f";stroke-dasharray:{dash}"
    kind = "line faint" if line.faint else "line"
    found = f'<path class="{kind}" d="{path}" style="{style}"/>'
    if line.dots:
        fill = f"fill:var(--c{line.color % COLORS})"
        found += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" style="{fill}"/>' for x, y in places)
    return found


def _card(
    title: str, note: str, drawing: Sequence[str], data: dict | None, legend: Sequence[tuple[str, int]]
) -> str:
    keys = "".join(key(color, escape(name)) for name, color in legend)
    about = "" if data is None else f' data-chart="{escape(json.dumps(data, separators=(",", ":")))}"'
    head = f"<h3>{escape(title)}</h3>" + (f'<p class="note">{escape(note)}</p>' if note else "")
    return (
        f'<figure class="card">{head}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"{about}>{"".join(drawing)}</svg>'
        f'<figcaption class="legend">{keys}</figcaption></figure>'
    )
