"""The tables of a report."""

from collections.abc import Sequence
from html import escape
from typing import Any

from gsopt.report.chart import COLORS, key
from gsopt.report.data import ALWAYS_SHOWN, CHANGES, RunData
from gsopt.settings import differences

STAGES = ("load", "train", "evaluate", "save")  # in the order of a run; others follow
NOTHING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML; the first column is a heading of its row."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"
        for first, *others in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def run_name(run: RunData, index: int) -> str:
    """Its name with the colour it has in charts."""
    return key(index, escape(run.name))


def overview(runs: Sequence[RunData]) -> str:
    """A row for each run: what it was, and what came of it; the best of a column is marked."""
    rows = [_overview_row(run) for run in runs]
    best = {}
    for column, largest in (("test PSNR", True), ("test SSIM", True), ("training", False)):
        values = [value for row in rows if (value := row[column][0]) is not None]
        if len(values) > 1:
            best[column] = max(values) if largest else min(values)
    body = []
    for index, (run, row) in enumerate(zip(runs, rows, strict=True)):
        cells = [
            f"<strong>{text}</strong>" if value is not None and best.get(column) == value else text
            for column, (value, text) in row.items()
        ]
        body.append([run_name(run, index), *cells])
    return table(["run", *rows[0]], body)


def _overview_row(run: RunData) -> dict[str, tuple[float | None, str]]:
    """By column: the value, and its text."""
    seconds = run.metrics.get("seconds", {}).get("train")
    return {
        "scene": (None, escape(run.config.scene.name)),
        "iterations": (None, iterations_text(run)),
        "test PSNR": _shown(quality(run, "psnr"), "{:.2f} dB"),
        "test SSIM": _shown(quality(run, "ssim"), "{:.4f}"),
        "Gaussians": (None, f"{gaussians(run):,}"),
        "training": _shown(seconds, "{:,.1f} s"),
        "a step": _shown(step_milliseconds(run), "{:.1f} ms"),
    }


def _shown(value: float | None, form: str) -> tuple[float | None, str]:
    return value, NOTHING if value is None else form.format(value)


def iterations_text(run: RunData) -> str:
    """How far it is: 2,000, or 700 of 2,000."""
    whole = f"{run.config.iterations:,}"
    return whole if run.finished else f"{run.last_step:,} of {whole}"


def gaussians(run: RunData) -> int:
    """How many it has now."""
    return int(run.metrics.get("gaussians") or run.last("total_points") or 0)


def split_of(run: RunData) -> str:
    """The views that quality is about."""
    return "test" if run.scalars.get("test/loss_viewpoint - psnr") else "train"


def quality(run: RunData, name: str) -> float | None:
    """The mean over the test views (training views where there are no others), at the newest test."""
    split = split_of(run)
    mean = run.metrics.get(split, {}).get(name)
    return run.last(f"{split}/loss_viewpoint - {name}") if mean is None else mean


def step_milliseconds(run: RunData) -> float | None:
    """Mean over the training; of a run that is not finished, of its reports."""
    seconds = run.metrics.get("seconds", {}).get("train")
    if seconds is not None:
        return 1000 * seconds / max(run.metrics["iterations"], 1)
    times = [value for _, value in run.scalars.get("iter_time", [])]
    return sum(times) / len(times) if times else None


def time_bar(run: RunData) -> str:
    """Seconds by stage, as one bar and its legend; "" for a run that is not finished."""
    seconds = {name: value for name, value in run.metrics.get("seconds", {}).items() if name != "total"}
    total = sum(seconds.values())
    if not total:
        return ""
    order = sorted(seconds, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    parts = "".join(
        f'<i style="width:{100 * seconds[name] / total:.2f}%;background:var(--c{index % COLORS})" '
        f'title="{escape(name)}: {seconds[name]:,.1f} s"></i>'
        for index, name in enumerate(order)
    )
    keys = "".join(
        key(
            index,
            f"{escape(name)} {seconds[name]:,.1f} s <small>{100 * seconds[name] / total:.0f}%</small>",
        )
        for index, name in enumerate(order)
    )
    return f'<div class="bar-row"><div class="stages">{parts}</div><div class="legend">{keys}</div></div>'


def groups(run: RunData) -> str:
    """A row for each parameter group: rates at both ends, schedule, weight decay, freezes."""
    rows = []
    for name, spec in run.specs.items():
        rates = run.scalars.get(f"lr/{name}", [])
        begin, end = (f"{rates[i][1]:.3g}" for i in (0, -1)) if rates else (NOTHING, NOTHING)
        schedule = "constant" if spec.schedule is None else str(spec.schedule)
        rows.append(
            [
                f"<code>{escape(name)}</code>",
                *(begin, end, f"<code>{escape(schedule)}</code>"),
                f"{spec.weight_decay:g}" if spec.weight_decay else NOTHING,
                _frozen(spec),
                escape(spec.optimizer or run.config.optimizer) if spec.optimize else NOTHING,
            ]
        )
    header = ["group", "lr at the start", "at the end", "schedule", "weight decay", "frozen", "optimizer"]
    return table(header, rows, "numbers")


def _frozen(spec: Any) -> str:
    if not spec.optimize:
        return "excluded"
    if spec.frozen:
        return "throughout"
    return escape(" and ".join(window.iterations for window in spec.freeze)) or NOTHING


def refinements(run: RunData) -> str:
    """How many Gaussians were cloned, split, pruned, ... in all; "" where none was."""
    totals = {name: sum(value for _, value in run.scalars.get(f"gaussians/{name}", [])) for name in CHANGES}
    if not any(totals.values()):
        return ""
    totals = {name: value for name, value in totals.items() if value}
    first = run.scalars["total_points"][0][1]
    cells = [f"{first:,.0f}", *(f"{value:,.0f}" for value in totals.values()), f"{gaussians(run):,}"]
    return table(["", "at first", *totals, "now"], [["Gaussians", *cells]], "numbers")


def settings(run: RunData) -> str:
    """What is set otherwise than by default, then everything."""
    plain = [[_flag(name), _value(getattr(run.config, name)), ""] for name in ALWAYS_SHOWN]
    shown = {name.replace("_", "-") for name in ALWAYS_SHOWN}
    changed = [
        [_flag(name), f"<strong>{_value(value)}</strong>", _value(default)]
        for name, default, value in run.changed()
        if name not in shown
    ]
    every = [[_flag(name), _value(value)] for name, value in _flat(run.config.to_json())]
    return (
        table(["setting", "value", "default"], [*plain, *changed], "settings")
        + f"<details><summary>All {len(every)} settings</summary>"
        + table(["setting", "value"], every, "settings")
        + "</details>"
    )


def settings_that_differ(runs: Sequence[RunData]) -> str:
    """A row for each setting in which any two runs differ."""
    first = runs[0].config
    names = dict.fromkeys(
        name
        for run in runs[1:]
        for name, *_ in differences(first, run.config)
        if name not in ("output", "resume")
    )
    if not names:
        return '<p class="note">The runs have the same settings.</p>'
    values = [dict(_flat(run.config.to_json())) for run in runs]
    rows = [[_flag(name), *(_value(each.get(name.replace("-", "_"))) for each in values)] for name in names]
    return table(["setting", *(run_name(run, i) for i, run in enumerate(runs))], rows, "settings")


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def _flag(name: str) -> str:
    return f"<code>{escape(name.replace('_', '-'))}</code>"


def _value(value: Any) -> str:
    if value is None or value in ("", [], ()):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value)))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
