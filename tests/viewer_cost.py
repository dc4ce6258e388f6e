"""What a browser that looks at a run costs it: training with and without, in turns.

    python tests/viewer_cost.py SCENE FOLDER ROUNDS [ITERATIONS]

Headless Chromium shows the viewer's page, 1280x720, from the start to the end; nobody touches it. Printed are
the seconds in training steps, and those that the process had of the processors, loading and tests included.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from browsing import browser, open_page


def start(scene: str, run: Path, iterations: int, *flags: str) -> subprocess.Popen:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "gsopt", "train", "--scene", scene, "--output", str(run), *flags]
    command += ["--resolution", "480", "--iterations", str(iterations)]
    command += ["--test-iterations", str(iterations)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen, run: Path) -> tuple[float, float]:
    """Seconds in training steps, and of the processors, once it is done."""
    process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"{run}: exit status {status}"
    return json.loads((run / "metrics.json").read_text())["seconds"]["train"], used.ru_utime + used.ru_stime


def main(scene: str, folder: Path, rounds: int, iterations: int) -> None:
    """Print a line for each round."""
    for number in range(rounds):
        run = folder / f"alone{number}"
        alone, alone_cpu = finish(start(scene, run, iterations), run)
        run = folder / f"watched{number}"
        with browser() as chromium:
            process = start(scene, run, iterations, "--viewer", "--viewer-port", "0")
            address = next(line.split()[1] for line in process.stdout if line.startswith("viewer"))
            open_page(chromium, address, 1280, 720)
            watched, watched_cpu = finish(process, run)
        print(
            f"training {alone:.1f} s alone, {watched:.1f} s watched, {100 * (watched / alone - 1):+.1f} %; "
            f"processor {alone_cpu:.1f} s, {watched_cpu:.1f} s, {100 * (watched_cpu / alone_cpu - 1):+.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1000)
