"""COLMAP's process: started for one stage, watched until it ends."""

import json
import queue
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gsopt.errors import InputError

WORKER = Path(__file__).with_name("worker.py")
_LOOK_EVERY = 0.5  # seconds between looks at how far it is


def run_colmap(
    job: dict[str, Any],
    log: Path,
    *,
    keep: int,
    progress: Callable[[int], None],
    count: Callable[[], int | None] | None = None,
) -> dict[str, Any]:
    """The result of one stage of `prepare.worker`, worked out by a process that ends with this one.

    Args:
        job: for the worker; "stage" names the function.
        log: gets what COLMAP says, after what is there.
        keep: a file descriptor that the process inherits: the lock of the folder it writes in.
        progress: is called with how much is done, as the worker says it or `count` finds it.

    Raises:
        InputError: COLMAP gives up, or the process ends without a result.
    """
    with log.open("ab") as messages:
        process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            pass_fds=[keep],
            start_new_session=True,  # Ctrl-C is for us: we end it
            text=True,
            encoding="utf-8",
        )
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        result = _listen(process, progress, count)
        process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
    if result is None or "error" in result:
        reason = _reason(log, process.returncode) if result is None else result["error"]
        raise InputError(
            f"COLMAP cannot do the stage {job['stage']!r} ({reason}); {log} has all it says; the same "
            "command tries again"
        )
    return result["result"]


def _listen(process: subprocess.Popen, progress: Callable, count: Callable | None) -> dict[str, Any] | None:
    """The last message of the process, None where it ends without."""
    lines: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        for line in process.stdout:
            lines.put(json.loads(line))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    last = None
    while True:
        try:
            message = lines.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            done = count() if count else None
            if done is not None:
                progress(done)
            continue
        if message is None:
            reader.join()
            return last
        if "done" in message:
            progress(message["done"])
        else:
            last = message


def _reason(log: Path, code: int) -> str:
    """Why a process ended that has not said it."""
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith(("E", "F", "terminate"))), "")
    return f"{how}{': ' if said else ''}{' '.join(said.split())[:200]}"


def rows(database: Path, table: str) -> Callable[[], int | None]:
    """A function that counts the rows of a table that another process writes; None: not to be seen now."""

    def count() -> int | None:
        try:
            connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        except sqlite3.OperationalError:  # not made yet
            return None
        try:
            return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        except sqlite3.OperationalError:  # no tables yet, or locked
            return None
        finally:
            connection.close()

    return count
