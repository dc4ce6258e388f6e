"""The kernel's variants against each other. A process chooses one when it loads, so each runs in its own:
`python -m gsopt.bench.variants SIZE ROUNDS STEPS THREADS`, with GSOPT_ISA set, prints one line of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsopt import native
from gsopt.bench.measure import measure_case
from gsopt.bench.scenes import parse_size, trainer_of
from gsopt.errors import InputError

ROOT = Path(__file__).resolve().parents[2]  # for a checkout that is not installed


def variants(size: str, threads: int, rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """For each instruction set that this processor runs what `main` prints, best first.

    Raises:
        InputError: a process failed; the message has its last line.
    """
    return {isa: _run(isa, [size, str(rounds), str(steps), str(threads)]) for isa in native.available_isas()}


def _run(isa: str, words: Sequence[str]) -> dict[str, Any]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "gsopt.bench.variants", *words],
        env=os.environ | {"GSOPT_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"--isas: the variant {isa} failed with exit code {done.returncode} ({last})")
    return json.loads(done.stdout.splitlines()[-1])


def main(words: Sequence[str]) -> None:
    """Bench this process's variant and print `Case.to_json` with "isa" and "fma_flops_per_second"."""
    size, (rounds, steps, threads) = parse_size(words[0]), map(int, words[1:])
    case = measure_case(size.name, trainer_of(size, device="cpu", threads=threads), None, rounds, steps)
    isa = native.library().gsopt_isa().decode()
    print(json.dumps({"isa": isa, "fma_flops_per_second": native.fma_peak(), **case.to_json()}))


if __name__ == "__main__":
    main(sys.argv[1:])
