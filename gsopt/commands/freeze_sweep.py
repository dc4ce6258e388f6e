"""`gsopt freeze-sweep`: what freezing costs and brings, and whatever else train has a flag for.

A grid of runs of `gsopt train`, a table, a picture and TensorBoard's HParams of them; see docs/freezing.md.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from gsopt.commands.flags import parse
from gsopt.config import TrainConfig
from gsopt.device import describe, pick_device
from gsopt.errors import InputError
from gsopt.rundir import RunFolder
from gsopt.settings import differences
from gsopt.sweep import hparams, plot, runner, table
from gsopt.sweep.grid import FREEZE, OWN, Configuration, Run, configurations, pick_baseline, plan
from gsopt.sweep.progress import SweepProgress
from gsopt.sweep.results import DONE, FAILED, WAITING, Result, read_result
from gsopt.trainer import Trainer

PROG = "gsopt freeze-sweep"
ABOUT = (
    "Train a scene with each of several configurations and seeds, and compare. All flags after -- are those "
    "of gsopt train, for every run: gsopt freeze-sweep --scene DIR --freeze none xyz -- --resolution 480. "
    "An interrupted sweep goes on by the same command with --output of its folder."
)


@dataclass
class SweepConfig:
    """Settings of `gsopt freeze-sweep`."""

    scene: Path | None = None
    """Folder of the scene."""
    output: Path | None = None
    """Folder of the sweep; default output/SCENE-sweep-DATE. An earlier sweep in it is continued."""
    freeze: tuple[str, ...] = ()
    """What each configuration freezes: none, or attributes joined by +, as scaling+rotation, opacity@0:1000,
    exclude:xyz."""
    vary: Annotated[tuple[str, ...], UseAppendAction] = ()
    """FLAG=VALUE,VALUE of train, as optimizer=adam,sgd; may be given again: all combinations are run. Values
    that have commas are separated by semicolons."""
    seeds: tuple[int, ...] = (0,)
    """Each configuration is run with each of them."""
    iterations: int | None = None
    """Optimizer steps of a run; default as in train."""
    tests: int = 8
    """Tests of each run, evenly over it, the last at its end; they make the curves."""
    jobs: int = 1
    """Runs at once; they share the processors."""
    baseline: str | None = None
    """Name of the configuration that the others are compared with; default none, else the first."""
    plot: bool = True
    """Draw sweep.png, by matplotlib."""
    quiet: bool = False
    """No progress display."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.scene is None:
            raise InputError("--scene: expected a folder, found none; give that of a scene")
        for name in ("tests", "jobs"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds {' '.join(map(str, self.seeds))}: expected one or more, each once")


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    own, rest = argv[:split], argv[split + 1 :]
    try:
        config = parse(SweepConfig, own, PROG, ABOUT)
    except InputError as error:
        hint = "; flags of gsopt train go after --" if "Unrecognized" in str(error) else ""
        raise InputError(f"{error}{hint}") from None
    config.check()
    if config.plot:
        plot.require_matplotlib()
    if config.output is None:
        config.output = RunFolder.new(None, f"{config.scene.absolute().name}-sweep").path
        own += ["--output", str(config.output)]
    command = shlex.join(["gsopt", "freeze-sweep", *own, *(["--", *rest] if rest else [])])
    Sweep(config, rest, command).run()


class Sweep:
    """One sweep: its runs, their results so far, and the files about them."""

    def __init__(self, config: SweepConfig, rest: Sequence[str], command: str) -> None:
        """`rest`: flags of train for every run. `command`: what starts this sweep, or goes on with it.

        Raises InputError for anything in the grid that cannot be used; nothing is made before `run`.
        """
        self.config, self.command = config, command
        self.cells = configurations(config.freeze, config.vary)
        self.baseline = pick_baseline(self.cells, config.baseline)
        configs = read_flags(config, rest, self.cells)
        self.runs = plan(
            self.cells, configs, config.seeds, config.output, tests=config.tests, jobs=config.jobs
        )
        self.results = [
            read_result(run) if runner.is_finished(run) else Result(run, WAITING) for run in self.runs
        ]
        self.csv, self.markdown, self.picture = (
            config.output / f"sweep.{suffix}" for suffix in ("csv", "md", "png")
        )

    def run(self) -> None:
        """Do what is left to do.

        Raises:
            InputError: the folder or a configuration cannot be used, found before anything is run; or, after
                everything has been tried, runs failed.
            KeyboardInterrupt: stopped by a signal, everything saved.
        """
        todo = [result.run for result in self.results if result.status != DONE]
        self._check_folder()
        try_out(todo)
        with runner.owned(self.config.output) as lock:
            self._write()
            print(f"sweep     {len(self.runs)} runs, {len(self.runs) - len(todo)} done: {self.config.output}")
            stopped = self._train(todo, lock)
            self._write_all()
        left = [result for result in self.results if result.status == WAITING]
        if stopped and left:
            ended = len(self.results) - len(left)
            raise KeyboardInterrupt(
                f"{stopped} after {ended} of {len(self.runs)} runs, all saved; go on with: {self.command}"
            )
        print(self.markdown.read_text(encoding="utf-8"))
        print(f"watch     tensorboard --logdir {self.config.output}")
        if failed := [result for result in self.results if result.status == FAILED]:
            each = "; ".join(f"{r.run.name}: {r.message} ({r.run.log})" for r in failed)
            raise InputError(
                f"{len(failed)} of {len(self.runs)} runs failed, the others are in {self.markdown}: {each}; "
                f"to try them again: {self.command}"
            )

    def _check_folder(self) -> None:
        """Nothing of another kind is in the sweep's folder. Raises InputError."""
        folder = self.config.output
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not self.csv.is_file())):
            raise InputError(
                f"--output {folder}: there is something here already, and it is no sweep; give another"
            )

    def _train(self, todo: Sequence[Run], lock: int) -> str | None:
        """Run them; the name of the signal that ended it early, if one did."""
        progress = SweepProgress(
            len(self.runs), len(self.runs) - len(todo), self.config.jobs, self.config.quiet
        )

        def ended(run: Run, failure: str | None) -> None:
            result = read_result(run) if failure is None else Result(run, FAILED, failure)
            self.results[self.runs.index(run)] = result
            self._write()
            progress.advance(line(result))

        try:
            return runner.run_all(todo, self.config.jobs, lock, progress, ended)
        finally:
            progress.close()

    def _write(self) -> None:
        """The tables as they are now."""
        self.csv.write_text(table.csv_text(self.results), encoding="utf-8")
        picture = self.picture if self.picture.is_file() else None
        about = self._about()
        text = table.markdown(self.results, self.cells, self.baseline, about, picture)
        self.markdown.write_text(text, encoding="utf-8")

    def _write_all(self) -> None:
        """All files about the runs that are done."""
        hparams.write_hparams(self.results)
        if self.config.plot and any(result.status == DONE for result in self.results):
            plot.draw(self.results, self.cells, self.picture)
        self._write()

    def _about(self) -> dict[str, str]:
        first = self.runs[0].config
        device = describe(pick_device(first.device, first.backend), first.threads)
        return {
            "scene": str(first.scene),
            "run": f"{first.iterations:,} iterations, images of at most {first.resolution} pixels",
            "machine": f"{device} a run, {self.config.jobs} at once",
            "command": f"`{self.command}`",
        }


def read_flags(config: SweepConfig, rest: Sequence[str], cells: Sequence[Configuration]) -> list[TrainConfig]:
    """The settings of each configuration: flags for every run, then its own. Raises InputError."""
    given = {name for name, *_ in differences(TrainConfig(), parse(TrainConfig, rest, "gsopt train", ABOUT))}
    for name in sorted(given):
        if name in OWN:
            raise InputError(f"--{name} after --: the sweep says it to train; give {OWN[name]} before --")
        freezes = FREEZE in cells[0].choices and name in (FREEZE, "exclude")
        if name in cells[0].choices or freezes:
            raise InputError(f"--{name} after --: it is varied; give it once")
    base = ["--scene", str(config.scene)]
    if config.iterations is not None:
        base += ["--iterations", str(config.iterations)]
    configs = [parse(TrainConfig, [*base, *rest, *cell.flags], "gsopt train", ABOUT) for cell in cells]
    if any(found.viewer for found in configs):
        raise InputError("--viewer: shows one run, and a sweep has many; leave it away and use TensorBoard")
    return configs


def try_out(todo: Sequence[Run]) -> None:
    """Build the trainer of each configuration, as far as no step is done and no file written.

    Raises InputError for what a run would fail of at its start, naming the configuration.
    """
    if not todo:
        return
    scene = todo[0].config.load_scene()
    first = {run.configuration.name: run for run in reversed(todo)}  # of each configuration
    for name, run in reversed(first.items()):
        try:
            Trainer(replace(run.config, output=None, quiet=True), scene=scene)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def line(result: Result) -> str:
    """One run in a line of text."""
    if result.status == FAILED:
        return f"{result.run.name}: failed: {result.message} ({result.run.log})"
    values = {name: result.values[name] for name in ("psnr", "gaussians", "train_seconds")}
    psnr = "no PSNR" if values["psnr"] is None else f"PSNR {values['psnr']:.2f} dB"
    return (
        f"{result.run.name}: {psnr}, {values['gaussians']:,} Gaussians, {values['train_seconds']:.1f} s "
        "of training"
    )
