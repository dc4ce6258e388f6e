"""`gsopt bench`: how long a training step takes, stage by stage, beside what the machine can do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from gsopt.bench import monitoring, quality, refinement, report, studies, tables, variants
from gsopt.bench.gsplat_trainer import measure_gsplat
from gsopt.bench.machine import Probes, describe_machine
from gsopt.bench.measure import Case, measure_case
from gsopt.bench.scenes import Size, all_bands, parse_size, still, trainer_of
from gsopt.commands.flags import parse
from gsopt.config import STRATEGIES, TrainConfig
from gsopt.device import DeviceName, cpu_count, pick_device
from gsopt.errors import InputError
from gsopt.rundir import write_json
from gsopt.settings import to_json
from gsopt.sweep.grid import value_flags
from gsopt.trainer import Trainer

ABOUT = (
    "Time training steps on synthetic scenes of fixed size, or on --scene DIR, stage by stage, and beside "
    "them a matrix product, a copy and the processor's multiply-add peak, as machines drift. Learning rates "
    "are 0, so that every step has the same to do. Flags add tables; those of --threads, --freeze-sets, "
    "--isas and --monitor are of the first of --sizes."
)
DEFAULT_SIZES = ("small", "medium")
Trainings = tuple[list[refinement.Training], refinement.Results]  # those of --strategies
Study = Callable[[], tuple[list[str], Any]]  # lines to print, what goes into the JSON file


@dataclass
class BenchConfig:
    """Settings of `gsopt bench`."""

    sizes: tuple[str, ...] | None = None
    """small (30,000 Gaussians, 400x400), medium (100,000, 960x540), large (1,000,000, 1600x1066), or others
    as GAUSSIANS@WIDTHxHEIGHT; default small and medium, none with --scene."""
    scene: Path | None = None
    """Folder of a scene to bench, with the model that a training begins with."""
    init: Path | None = None
    """PLY to start from instead of the scene's points: a point cloud, or a splat."""
    resolution: int | None = None
    """Longest side of the scene's images in pixels; default as in train."""
    device: DeviceName = "auto"
    """auto: CUDA where torch sees a device and gsplat can be imported, else the CPU."""
    threads: tuple[int, ...] | None = None
    """Processors the kernel uses, default all; several give a table, and the rest uses the most of them."""
    rounds: int = 6
    """Times the machine is measured, each followed by STEPS steps."""
    steps: int = 5
    """Timed steps a round."""
    freeze_sets: bool = False
    """Table: what a step takes with some attributes frozen."""
    isas: bool = False
    """Table: every variant of the kernel that this processor runs, each in a process of its own."""
    growth: bool = False
    """Tables: growing numbers of Gaussians and of pixels, fitted exponents, memory; half a minute, 2 GB."""
    monitor: bool = False
    """What TensorBoard costs: steps that write its events beside steps that do not."""
    time_to_quality: tuple[float, ...] | None = None
    """Train the scene; seconds and iteration at which the test views first reach each of these PSNRs (dB)."""
    gsplat: Literal["auto", "on", "off"] = "auto"
    """Beside each of --sizes, a step with the settings of gsplat's own trainer; auto: on CUDA."""
    strategies: bool = False
    """Table: train the scene with every strategy; what comes of it, and what part of the time each takes."""
    trainings: tuple[str, ...] = ()
    """Rows of that table instead: flags of train, as strategy=budget,max-gaussians=40000."""
    seeds: tuple[int, ...] = (0,)
    """Each row of it is the mean over trainings with these."""
    results: Path | None = None
    """File of their results, written after each: with the same file an interrupted table goes on."""
    iterations: int = 2_000
    """Of these trainings."""
    test_every_steps: int | None = None
    """Iterations between tests of that training, which do not count as its time; default 1/20 of it."""
    json: Path | None = None
    """File for all numbers."""
    compare: Path | None = None
    """File of an earlier bench: print ratios to it."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        for name in ("rounds", "steps", "iterations", "test_every_steps", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
        for count in self.threads or ():
            if count < 1:
                raise InputError(f"--threads {count}: expected 1 or more")
        for name in ("init", "resolution", "time_to_quality", "strategies"):
            if getattr(self, name) and self.scene is None:
                raise InputError(f"--{name.replace('_', '-')}: is of a scene, found none; give --scene DIR")
        for name in ("trainings", "results"):
            if getattr(self, name) and not self.strategies:
                raise InputError(f"--{name}: is about the table of --strategies, found none; give both")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds {' '.join(map(str, self.seeds))}: expected one or more, each once")
        for name in ("json", "results"):
            path = getattr(self, name)
            if path is not None and not path.absolute().parent.is_dir():
                raise InputError(f"--{name} {path}: no folder {path.parent}; make it, or give another")

    def check_device(self, device_type: str) -> None:
        """Raise InputError for tables that only the CPU kernel has."""
        asked = {
            "threads": len(set(self.threads or ())) > 1,
            "freeze_sets": self.freeze_sets,
            "isas": self.isas,
            "growth": self.growth,
        }
        for name, value in asked.items():
            if value and device_type != "cpu":
                raise InputError(f"--{name.replace('_', '-')}: is about the CPU kernel; give --device cpu")


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(BenchConfig, argv, "gsopt bench", ABOUT))


def run(config: BenchConfig) -> dict[str, Any]:
    """Bench, print, and write the JSON file if one is asked for; what is in it."""
    config.check()
    device = pick_device(config.device)
    config.check_device(device.type)
    names = config.sizes or (() if config.scene else DEFAULT_SIZES)
    sizes = [parse_size(name) for name in names]
    earlier = config.compare and report.read_report(config.compare)
    threads = max(config.threads or (cpu_count(),))
    trainings = _trainings(config, threads)
    machine = describe_machine(device, threads)
    print("\n".join(tables.machine_lines(machine)), flush=True)
    found = report.document(machine, to_json(config))
    probes = Probes(device, threads)
    for case in _cases(config, sizes, device.type, threads, probes):
        print("\n".join(tables.case_lines(case)), flush=True)
        found["cases"].append(case.to_json())
    del probes  # the tables need the memory
    first = sizes[0] if sizes else parse_size(DEFAULT_SIZES[0])
    for name, make in _asked(config, first, threads, device.type, trainings):
        lines, found[name] = make()
        print("\n".join(lines), flush=True)
    if config.compare and earlier:
        ratios, differing = report.compare(found, earlier), report.differences(found, earlier)
        found["compared"] = {"with": str(config.compare), "ratios": ratios}
        print("\n".join(tables.compare_lines(config.compare.name, ratios, differing)))
    if config.json is not None:
        write_json(config.json, found)
    return found


def _cases(
    config: BenchConfig, sizes: Sequence[Size], device: str, threads: int, probes: Probes
) -> Iterator[Case]:
    for size in sizes:
        trainer = trainer_of(size, device=device, threads=threads)
        yield measure_case(size.name, trainer, probes, config.rounds, config.steps)
        if config.gsplat == "on" or (config.gsplat == "auto" and trainer.device.type != "cpu"):
            yield measure_gsplat(size, trainer.device, config.rounds, config.steps)
    if config.scene is not None:
        settings = still(scene_settings(config, device, threads))
        trainer = all_bands(Trainer(settings))
        yield measure_case(f"scene {trainer.scene.path.name}", trainer, probes, config.rounds, config.steps)


def scene_settings(config: BenchConfig, device: str, threads: int) -> TrainConfig:
    """Settings of a training of --scene; of none where there is none."""
    return TrainConfig(
        scene=cast(Path, config.scene),
        init=config.init,
        resolution=config.resolution,
        iterations=config.iterations,
        device=cast(DeviceName, device),
        threads=threads,
    )


def _asked(
    config: BenchConfig, size: Size, threads: int, device: str, trainings: Trainings
) -> Iterator[tuple[str, Study]]:
    """The tables that flags ask for, by their name in the JSON file."""
    repeats = (config.rounds, config.steps)
    if len(several := sorted(set(config.threads or ()))) > 1:
        yield "threads", lambda: _threads(size, several, *repeats)
    if config.freeze_sets:
        yield "freeze_sets", lambda: _freeze_sets(size, threads, *repeats)
    if config.isas:
        yield "isas", lambda: _isas(size, threads, *repeats)
    if config.growth:
        yield "growth_of_gaussians", lambda: _growth(studies.growing_gaussians(threads))
        yield "growth_of_pixels", lambda: _growth(studies.growing_pixels(threads))
    if config.monitor:
        yield "monitor", lambda: _monitor(size, device, threads, config.rounds)
    if config.strategies:
        yield "strategies", lambda: _strategies(*trainings)
    if config.time_to_quality:
        yield "time_to_quality", lambda: _quality(config, threads)


def _threads(size: Size, counts: Sequence[int], rounds: int, steps: int) -> tuple[list[str], Any]:
    cases = studies.thread_scaling(size, counts, rounds, steps)
    return tables.thread_lines(cases), {str(count): case.to_json() for count, case in cases.items()}


def _freeze_sets(size: Size, threads: int, rounds: int, steps: int) -> tuple[list[str], Any]:
    rows = studies.freeze_sets(size, threads, rounds, steps)
    return tables.freeze_lines(rows), [
        {"frozen": list(frozen), "strategy": strategy, **case.to_json()} for frozen, strategy, case in rows
    ]


def _isas(size: Size, threads: int, rounds: int, steps: int) -> tuple[list[str], Any]:
    found = variants.variants(size.name, threads, rounds, steps)
    return tables.isa_lines(found), found


def _growth(growth: studies.Growth) -> tuple[list[str], Any]:
    return tables.growth_lines(growth), growth.to_json()


def _monitor(size: Size, device: str, threads: int, rounds: int) -> tuple[list[str], Any]:
    cost = monitoring.monitor_cost(size, device, threads, rounds)
    return tables.monitor_lines(cost), asdict(cost) | {"share": cost.share}


def _trainings(config: BenchConfig, threads: int) -> Trainings:
    """The trainings of --strategies, and what there is of them already. Raises InputError."""
    texts = config.trainings or [f"strategy={name}" for name in (*STRATEGIES, "none")]
    base = scene_settings(config, config.device, threads)
    trainings = read_trainings(texts, config.seeds, base) if config.strategies else []
    return trainings, refinement.Results(config.results)


def _strategies(
    trainings: Sequence[refinement.Training], results: refinement.Results
) -> tuple[list[str], Any]:
    rows = []
    for row in refinement.train_all(trainings, results):
        print(tables.training_line(row), flush=True)
        rows.append(row)
    return tables.strategy_lines(rows), rows


def read_trainings(
    texts: Sequence[str], seeds: Sequence[int], base: TrainConfig
) -> list[refinement.Training]:
    """All trainings of the table, the first seed first.

    Args:
        texts: flags of train as "FLAG=VALUE,FLAG=VALUE", which change `base`.

    Raises:
        InputError: text that is not of this form, or settings that cannot be used.
    """
    settings = {}
    for text in texts:
        flags: list[str] = []
        for part in text.split(","):
            flag, equals, value = part.partition("=")
            if not (flag and equals and value):
                raise InputError(
                    f"--trainings {text}: expected flags of gsopt train with their values, such as "
                    f"strategy=budget,max-gaussians=40000, found {part!r}"
                )
            flags += value_flags(flag.removeprefix("--"), value)
        try:
            settings[text] = parse(TrainConfig, flags, "gsopt train", ABOUT, default=base)
            settings[text].check()
        except InputError as error:
            raise InputError(f"--trainings {text}: {error}") from None
    return [
        refinement.Training(text, replace(config, seed=seed))
        for seed in seeds
        for text, config in settings.items()
    ]


def _quality(config: BenchConfig, threads: int) -> tuple[list[str], Any]:
    every = config.test_every_steps or max(1, config.iterations // 20)
    settings = scene_settings(config, config.device, threads)
    found = quality.time_to_quality(settings, config.time_to_quality or (), every)
    return tables.quality_lines(found), found
