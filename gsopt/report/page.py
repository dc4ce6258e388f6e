"""The page of a report."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from gsopt.report import chart, tables
from gsopt.report.curves import population_charts, rate_charts, training_charts
from gsopt.report.data import RunData
from gsopt.report.style import CSS, SCRIPT
from gsopt.report.views import Row, Seen


def page(runs: Sequence[RunData], rows: Sequence[Row], when: datetime) -> str:
    """One HTML document.

    Args:
        runs: one, or several to compare; told apart by their names.
        rows: views to show, with an entry for each run; none leaves the section away.
        when: it is made.
    """
    alone = runs[0] if len(runs) == 1 else None
    title = alone.name if alone else f"{len(runs)} runs"
    parts = [_head(alone, runs)]
    if alone is None:
        parts += ["<h2>Results</h2>", tables.overview(runs)]
        parts += ["<h2>Settings that differ</h2>", tables.settings_that_differ(runs)]
    parts += ["<h2>Training</h2>", _grid(training_charts(runs), "grid2")]
    parts += _views(runs, rows)
    for index, run in enumerate(runs):
        population = _grid(population_charts(run), "grid3") + tables.refinements(run)
        parts += _section("Gaussians", run, index, alone, population)
    parts += ["<h2>Parameter groups</h2>", _grid(rate_charts(runs), "grid2" if alone else "grid3")]
    for index, run in enumerate(runs):
        parts += _section("", run, index, alone, tables.groups(run))
    if bars := [tables.time_bar(run) for run in runs if run.finished]:
        parts.append("<h2>Time by stage</h2>")
        for index, (run, bar) in enumerate(zip([run for run in runs if run.finished], bars, strict=True)):
            parts += _section("", run, index, alone, bar)
    for index, run in enumerate(runs):
        parts += _section("Settings", run, index, alone, tables.settings(run))
    parts.append(f"<footer>gsopt report, {when:%Y-%m-%d %H:%M}</footer>")
    return _document(title, "\n".join(parts))


def _document(title: str, body: str) -> str:
    places = {name: getattr(chart, name) for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")}
    constants = f"const {', '.join(f'{name} = {value}' for name, value in places.items())};"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} – gsopt report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{constants}{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _head(alone: RunData | None, runs: Sequence[RunData]) -> str:
    if alone is None:
        names = ", ".join(escape(run.name) for run in runs)
        return f"<h1>{len(runs)} runs side by side</h1><p class='sub'>{names}</p>"
    config = alone.config
    about = [
        str(config.scene),
        f"{config.iterations:,} iterations",
        f"longest side {config.resolution} px" if config.resolution else "",
        f"strategy {config.strategy}",
        config.optimizer,
    ]
    head = f"<h1>{escape(alone.name)}</h1><p class='sub'>{escape(' · '.join(filter(None, about)))}</p>"
    if not alone.finished:
        head += f"<p class='warn'>Not finished: {tables.iterations_text(alone)} iterations.</p>"
    if skipped := alone.metrics.get("skipped_steps"):
        head += f"<p class='warn'>{skipped:,} steps were not finite and were left out.</p>"
    return head + _tiles(alone)


def _tiles(run: RunData) -> str:
    split = tables.split_of(run)
    psnr, ssim = tables.quality(run, "psnr"), tables.quality(run, "ssim")
    total = run.metrics.get("seconds", {}).get("total")
    step = tables.step_milliseconds(run)
    memory = run.metrics.get("peak_memory_bytes")
    entries = [
        (None if psnr is None else f"{psnr:.2f}", "dB", f"PSNR, {split} views"),
        (None if ssim is None else f"{ssim:.4f}", "", f"SSIM, {split} views"),
        (f"{tables.gaussians(run):,}", "", "Gaussians"),
        (None if total is None else f"{total:,.0f}", "s", "in all"),
        (None if step is None else f"{step:,.1f}", "ms", "a step"),
        (None if memory is None else f"{memory / 1e9:.2f}", "GB", "most memory"),
    ]
    tiles = "".join(
        f'<div class="tile"><b>{value}{f"<small>{unit}</small>" if unit else ""}</b><span>{name}</span></div>'
        for value, unit, name in entries
        if value is not None
    )
    return f'<div class="tiles">{tiles}</div>'


def _grid(cards: Sequence[str], kind: str) -> str:
    filled = "".join(cards)
    return f'<div class="{kind}">{filled}</div>' if filled else ""


def _section(title: str, run: RunData, index: int, alone: RunData | None, content: str) -> list[str]:
    """Its heading, with the run's name where there are several; nothing without content."""
    if not content:
        return []
    if alone is not None:
        return [f"<h2>{title}</h2>", content] if title else [content]
    heading = f"<h2>{title}: {escape(run.name)}</h2>" if title else f"<h3>{tables.run_name(run, index)}</h3>"
    return [heading, content]


def _views(runs: Sequence[RunData], rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    scale = '<div class="scale">error: none<i></i>0.5 or more (mean of red, green and blue, of 0 to 1)</div>'
    cards = "".join(_view(row, runs) for row in rows)
    return [
        "<h2>The worst views</h2>",
        scale,
        f'<div class="grid2">{cards}</div>' if len(runs) == 1 else cards,
    ]


def _view(row: Row, runs: Sequence[RunData]) -> str:
    first = next(each for each in row.seen if each is not None)
    figures = [_figure(first.photo, "photo")]
    for index, (run, seen) in enumerate(zip(runs, row.seen, strict=True)):
        if seen is None:
            continue
        name = tables.run_name(run, index) if len(runs) > 1 else "render"
        figures += [_figure(seen.render, name, _numbers(seen)), _figure(seen.error, "error")]
    return (
        f'<div class="card view"><div class="head"><strong>{escape(row.name)}</strong></div>'
        f'<div class="row">{"".join(figures)}</div></div>'
    )


def _figure(url: str, caption: str, numbers: str = "") -> str:
    return (
        f'<figure><img src="{url}" alt="" loading="lazy"><figcaption><span>{caption}</span>'
        f"<span>{numbers}</span></figcaption></figure>"
    )


def _numbers(seen: Seen) -> str:
    return f"{seen.psnr:.2f} dB · {seen.ssim:.4f}"
