"""Runs trained in processes of their own: several at once, each continued where it was interrupted.

A run is started by writing its settings into its folder and resuming it there. So a new run, one that was
interrupted and one that failed are all the same to the runner, and each can be resumed by hand.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from gsopt import rundir
from gsopt.config import TrainConfig
from gsopt.errors import InputError
from gsopt.rundir import read_json, write_json
from gsopt.runtime import StopSignals
from gsopt.settings import differences, from_json
from gsopt.sweep.grid import Run
from gsopt.sweep.progress import SweepProgress

ROOT = Path(__file__).resolve().parents[2]  # for a checkout that is not installed
LOOK_EVERY = 0.2  # seconds between looks at the processes
TAIL = 4096  # bytes of a log that are searched for its last line
# settings that a run's result does not depend on
INDIFFERENT = {"output", "resume", "threads", "cache", "quiet"}


def owned(folder: Path) -> AbstractContextManager[int]:
    """Make `folder`, and keep other sweeps out of it: `rundir.owned`, whose lock the runs inherit."""
    return rundir.owned(folder, f"--output {folder}", "a sweep, or a run of one, is")


def is_finished(run: Run, what: str = "sweep") -> bool:
    """Whether the run is done, to its last iteration. `what` asks for it, for messages.

    Raises:
        InputError: what is in its folder was made with other settings.
    """
    if not run.folder.config.is_file():
        return False
    file = run.folder.config
    found = from_json(TrainConfig, read_json(file), str(file))
    for name, before, after in differences(found, run.config):
        if name not in INDIFFERENT:
            raise InputError(
                f"{run.folder.path}: this run has --{name} {before}, and the {what} asks for {after}; "
                f"give the {what} another folder, or delete the run"
            )
    if not run.folder.metrics.is_file():
        return False
    metrics = read_json(run.folder.metrics)
    return metrics.get("iterations") == run.config.iterations and bool(metrics.get("history"))


class Job:
    """A run and its process."""

    def __init__(self, run: Run, lock: int) -> None:
        """Start it. `lock`: of the sweep's folder, which the process keeps as long as it lives."""
        self.run = run
        self._told = False  # to end early
        run.folder.make()
        if not run.folder.config.is_file():
            write_json(run.folder.config, run.config.to_json())
        words = ["train", "--resume", str(run.folder.path), "--threads", str(run.config.threads)]
        words += ["--no-quiet"]  # its last line is shown
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with run.log.open("ab") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gsopt", *words],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the sweep, which ends its runs itself
                pass_fds=[lock],
            )

    def end_early(self) -> None:
        """Let the process save and end. Once only: a second signal would not let it save."""
        if not self._told:
            self._told = True
            self.process.send_signal(signal.SIGTERM)

    def last_line(self) -> str:
        """What the process said last; "" for nothing."""
        with self.run.log.open("rb") as log:
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - TAIL))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def failure(self) -> str | None:
        """Why the ended process did not do what it should; None where it did."""
        if is_finished(self.run):
            return None
        code, last = self.process.returncode, self.last_line() or "no message"
        if code < 0:
            return f"ended by {signal.Signals(-code).name} ({last})"
        return last.removeprefix("gsopt: error: ") if code else f"without metrics of its end ({last})"


def run_all(
    runs: Sequence[Run],
    jobs: int,
    lock: int,
    progress: SweepProgress,
    on_end: Callable[[Run, str | None], None],
) -> str | None:
    """Train `runs`, so many at once. Some may fail; the others go on.

    Ctrl-C and SIGTERM let the processes save and end; a second one ends them at once.

    Args:
        runs: those to do, in order.
        jobs: processes at once.
        lock: see `Job`.
        progress: shows what each process is at.
        on_end: called after each run with its failure, or None.

    Returns:
        The name of the signal that asked for an early end; None if none came.
    """
    waiting, at_work = list(runs), list[Job]()
    with StopSignals() as stop:
        try:
            while at_work or (waiting and not stop.asked):
                while waiting and len(at_work) < jobs and not stop.asked:
                    at_work.append(Job(waiting.pop(0), lock))
                for job in at_work if stop.asked else ():
                    job.end_early()
                time.sleep(LOOK_EVERY)
                for job in [job for job in at_work if job.process.poll() is not None]:
                    at_work.remove(job)
                    failure = job.failure()
                    if not (stop.asked and failure):
                        on_end(job.run, failure)
                progress.show([f"{job.run.name}: {job.last_line()}" for job in at_work])
            return stop.asked
        finally:
            for job in at_work:
                job.process.kill()
                job.process.wait()
