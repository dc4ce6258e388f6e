"""What `gsopt bench` prints: lines of text, in milliseconds unless it says otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

from gsopt.bench.machine import COPY_BYTES, MATMUL_SIDE
from gsopt.bench.measure import Case
from gsopt.bench.model import LANES
from gsopt.bench.monitoring import MonitorCost
from gsopt.bench.studies import Growth
from gsopt.text import table

NONE = "-"
CURVE_POINTS = 8


def number(value: float | None, digits: int = 2, factor: float = 1.0, unit: str = "") -> str:
    """A number times `factor` with so many decimals; a dash for None."""
    return NONE if value is None else f"{value * factor:,.{digits}f}{unit}"


def milliseconds(seconds: float | None) -> str:
    return number(seconds, 2, 1e3)


def percent(part: float | None) -> str:
    return number(part, 1, 100, " %")


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """The machine in two lines."""
    variant = f", {machine['isa']}, kernel {machine['kernel']}" if machine["isa"] else ""
    return [
        f"machine   {machine['cpu']}, {machine['cores']} cores: {machine['device']}{variant}",
        f"versions  gsopt {machine['gsopt']}, torch {machine['torch']}, Python {machine['python']}, "
        f"{machine['date']}",
    ]


def case_lines(case: Case) -> list[str]:
    """A case: its step, its work, the machine in its time, and its stages."""
    has_stages = any(step.stages for step in case.steps)
    return ["", *_step_lines(case), *_speed_lines(case), *(_stage_table(case) if has_stages else [])]


def _step_lines(case: Case) -> list[str]:
    size = f"{case.gaussians:,} Gaussians, {case.width}x{case.height}"
    lines = [
        f"{case.name}: {size}",
        f"  step     {milliseconds(case.median)} ms median, {milliseconds(case.least)} least of "
        f"{len(case.steps)}, {number(1 / case.median, 1)} a second",
    ]
    if case.work:
        work = {name: f"{round(value):,}" for name, value in case.work.items()}
        evaluated = (f"{case.work[f'{way}_blocks'] * LANES / 1e6:.2f}" for way in ("forward", "backward"))
        lines.append(
            f"  work     {work['visible']} visible, {work['pairs']} (Gaussian, tile) pairs, blocks forward "
            f"{work['forward_blocks']} and backward {work['backward_blocks']}: "
            f"{' and '.join(evaluated)} million pixels evaluated"
        )
    names = {"frames": "kernel buffers", "peak": "peak on the card"}
    held = ", ".join(f"{names[name]} {nbytes / 1e6:,.1f} MB" for name, nbytes in case.memory.items())
    return [*lines, *([f"  memory   {held}"] if held else [])]


def _speed_lines(case: Case) -> list[str]:
    if not case.speeds:
        return []
    speed: dict[str, Any] = case.speed
    matmul = speed["matmul_seconds"]
    flops = 2 * MATMUL_SIDE**3 / matmul
    lines = [
        f"  machine  matrix product {MATMUL_SIDE}^3 {milliseconds(matmul)} ms ({flops / 1e9:,.1f} GFLOP/s), "
        f"copy of {COPY_BYTES >> 20} MiB {speed['copy_bytes_per_second'] / 1e9:,.1f} GB/s, "
        f"multiply-add peak {number(case.speed['fma_flops_per_second'], 1, 1e-9)} GFLOP/s",
        f"  ratio    a step is {number(case.per_matmul, 4)} of that matrix product",
    ]
    if case.raster_of_peak is not None:
        lines[-1] += f"; forward + backward do {percent(case.raster_of_peak)} of the peak"
    return lines


def _stage_table(case: Case) -> list[str]:
    copy, peak = (case.speed.get(name) for name in ("copy_bytes_per_second", "fma_flops_per_second"))
    rows = []
    for name, seconds in case.parts.items():
        cost = case.costs.get(name) if seconds > 0 else None
        moved, flops = cost or (None, None)
        by_time = [None if not value else value / seconds for value in (moved, flops)]
        fractions = [
            rate / most if rate and most else None for rate, most in zip(by_time, (copy, peak), strict=True)
        ]
        rows.append(
            [
                *(f"  {name}", milliseconds(seconds), percent(seconds / case.median)),
                *(number(moved, 2, 1e-6), number(by_time[0], 1, 1e-9), percent(fractions[0])),
                *(number(flops or None, 2, 1e-6), number(by_time[1], 1, 1e-9), percent(fractions[1])),
            ]
        )
    rates = ["MB", "GB/s", "of copy", "MFLOP", "GFLOP/s", "of peak"]
    return table(["  stage", "ms", "of step", *rates], rows)


def thread_lines(cases: Mapping[int, Case]) -> list[str]:
    """Time by stage for each number of threads, and what the most of them gain over the fewest."""
    counts = sorted(cases)
    fewest, most = cases[counts[0]], cases[counts[-1]]
    rows = [["  step", *(milliseconds(cases[k].median) for k in counts), _gain(fewest.median, most.median)]]
    for name in fewest.parts:
        each = [cases[k].parts[name] for k in counts]
        rows.append([f"  {name}", *map(milliseconds, each), _gain(each[0], each[-1])])
    title = f"threads ({fewest.gaussians:,} Gaussians, {fewest.width}x{fewest.height}), ms"
    return ["", title, *table(["  threads", *map(str, counts), "gain"], rows)]


def _gain(before: float, after: float) -> str:
    return number(before / after if before > 0 and after > 0 else None, 2, 1, "x")


def freeze_lines(rows: Sequence[tuple[Sequence[str], str, Case]]) -> list[str]:
    """What a step takes with some attributes frozen, and in relation to the first row."""
    base = rows[0][2].median
    cells = [
        [
            f"  {' '.join(frozen) or 'nothing'}",
            strategy,
            milliseconds(case.median),
            milliseconds(case.least),
            percent(case.median / base),
        ]
        for frozen, strategy, case in rows
    ]
    case = rows[0][2]
    title = f"frozen attributes ({case.gaussians:,} Gaussians, {case.width}x{case.height})"
    return ["", title, *table(["  frozen", "strategy", "ms", "least", "of first"], cells)]


def isa_lines(variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Time by stage for each variant of the kernel; the last column is what the best gains over the last."""
    rows = [["  step", *(milliseconds(found["median_seconds"]) for found in variants.values())]]
    stages = [found["stage_seconds"] for found in variants.values()]
    rows += [[f"  {name}", *(milliseconds(each[name]) for each in stages)] for name in stages[0]]
    rows.append(
        [
            "  multiply-add peak, GFLOP/s",
            *(number(found["fma_flops_per_second"], 1, 1e-9) for found in variants.values()),
        ]
    )
    first = next(iter(variants.values()))
    title = f"instruction sets ({first['gaussians']:,} Gaussians, {first['width']}x{first['height']}), ms"
    return ["", title, *table(["  variant", *variants], rows)]


def growth_lines(growth: Growth) -> list[str]:
    """A growing scene, the fitted exponents, and the memory of a step."""
    names = ["step", *growth.cases[0].parts]
    exponents = growth.exponents()
    seconds = [{"step": case.median} | case.parts for case in growth.cases]
    rows = [
        [f"  {name}", *(milliseconds(each[name]) for each in seconds), number(exponents[name])]
        for name in names
    ]
    held = [number(nbytes, 1, 1e-6) for nbytes in growth.step_bytes]
    rows.append(["  memory, MB", *held, f"{growth.bytes_each():,.0f} B each"])
    header = [f"  {growth.by}", *(f"{amount:,}" for amount in growth.amounts), "exponent"]
    fixed = "image 400x400, coverage" if growth.by == "gaussians" else "30,000 Gaussians"
    return ["", f"growing {growth.by} (fixed: {fixed}), ms", *table(header, rows)]


def monitor_lines(cost: MonitorCost) -> list[str]:
    """What the events of TensorBoard add to a step."""
    times = f"{milliseconds(cost.without)} ms a step without, {milliseconds(cost.writing)} with"
    return ["", f"writing TensorBoard events: {100 * cost.share:+.1f} % of a step ({times})"]


def quality_lines(found: Mapping[str, Any]) -> list[str]:
    """When a training first reached each PSNR."""
    rows = [
        [
            f"  {target['psnr']:g} dB",
            number(target["seconds"], 1),
            NONE if target["iteration"] is None else f"{target['iteration']:,}",
        ]
        for target in found["targets"]
    ]
    last = found["history"][-1]
    return [
        "",
        f"time to quality, tested every {found['every']:,} of {found['iterations']:,} iterations",
        *table(["  test PSNR", "seconds of training", "iteration"], rows),
        f"  at the end {last['psnr']:.2f} dB after {last['seconds']:.1f} s, {last['gaussians']:,} Gaussians",
    ]


def training_line(row: Mapping[str, Any]) -> str:
    """A training in a line, when it is done."""
    return (
        f"  {row['training']}, seed {row['seed']}: {number(row['psnr'], 2, unit=' dB')}, "
        f"{row['gaussians']:,} Gaussians, {number(row['seconds'], 1)} s"
    )


def strategy_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What came of trainings, means over seeds, and how many Gaussians there were on the way."""
    named: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        named.setdefault(row["training"], []).append(row)
    header = [
        "  training",
        "test PSNR",
        "SSIM",
        "Gaussians",
        "most",
        "minutes",
        "busy",
        "peak MB",
        "its strategy",
    ]
    return [
        "",
        f"trainings, means over seeds {', '.join(dict.fromkeys(str(row['seed']) for row in rows))}",
        *table(header, [_strategy_row(name, each) for name, each in named.items()]),
        "",
        "Gaussians at iteration (first seed)",
        *(f"  {name}: {_curve(each[0]['counts'])}" for name, each in named.items()),
    ]


def _strategy_row(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def mean(key: str, digits: int, factor: float = 1.0, unit: str = "") -> str:
        known = [row[key] for row in rows if row[key] is not None]
        return number(sum(known) / len(known) if known else None, digits, factor, unit)

    return [
        f"  {name}",
        *(mean("psnr", 2, unit=" dB"), mean("ssim", 4), mean("gaussians", 0)),
        f"{max(row['most'] for row in rows):,}",
        *(
            mean("seconds", 2, 1 / 60),
            mean("steps", 2, 1 / 60),
            mean("peak_memory_bytes", 0, 1e-6),
            mean("share", 2, 100, " %"),
        ),
    ]


def _curve(counts: Sequence[Sequence[int]]) -> str:
    """At most `CURVE_POINTS` of the pairs of step and number, evenly, the first and the last included."""
    last = len(counts) - 1
    chosen = sorted({round(last * k / (CURVE_POINTS - 1)) for k in range(CURVE_POINTS)})
    return ", ".join(f"{counts[i][0]:,}: {counts[i][1]:,}" for i in chosen)


def compare_lines(name: str, ratios: Sequence[Mapping[str, Any]], differing: Sequence[str]) -> list[str]:
    """Ratios to an earlier report: under 1 is faster than then."""
    if not ratios:
        return ["", f"compared with {name}: no case in common"]
    stages = list(dict.fromkeys(stage for row in ratios for stage in row["stages"]))
    measures = {"step": "median", "step, least": "least", "step / matrix product": "normalised"}
    rows = [[f"  {text}", *(number(row[key], 3) for row in ratios)] for text, key in measures.items()]
    rows += [[f"  {stage}", *(number(row["stages"].get(stage), 3) for row in ratios)] for stage in stages]
    lines = [
        "",
        f"now / then ({name}); under 1 is faster",
        *table(["  case", *(r["name"] for r in ratios)], rows),
    ]
    return [*lines, *([f"  the machine is not the same: {'; '.join(differing)}"] if differing else [])]
