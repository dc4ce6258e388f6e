"""Starts a command of gsopt that is killed at a chosen moment, as `kill -9` would.

    python tests/killing.py anywhere|saving COUNT train --scene ...

It dies at the COUNT-th call of a function: anywhere in the command, or inside the writing of checkpoints. A
call is one of Python or C: rendering, `write`, `fsync`, `rename`, ... With COUNT 0 it lives; its last line
says how many calls there were outside saving and inside it, and how many checkpoints.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

CALLS: Counter[str] = Counter()


def counting(kind: str, last: int) -> Callable[..., None]:
    """For `sys.setprofile`: notes calls, and dies at the last."""

    def note(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            CALLS[kind] += 1
            if CALLS[kind] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    return note


def main(where: str, count: int, argv: list[str]) -> int:
    from gsopt import checkpoint
    from gsopt.commands import main

    save, saves = checkpoint.save, []
    anywhere = counting("anywhere", count if where == "anywhere" else 0)
    saving = counting("saving", count if where == "saving" else 0)

    def watched(*args: Any) -> None:
        saves.append(args[0])
        sys.setprofile(saving)
        try:
            save(*args)
        finally:
            sys.setprofile(anywhere)

    checkpoint.save = watched
    sys.setprofile(anywhere)
    try:
        code = main(argv)
    finally:
        sys.setprofile(None)
    print(CALLS["anywhere"], CALLS["saving"], len(saves))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
