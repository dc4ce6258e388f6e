"""The command line: `gsopt train ...` and so on. One file per command, loaded when it is asked for.

Exit codes: 0 done, 2 bad input or a file or memory that cannot be had (one line on stderr, no
traceback), 130 interrupted.
"""

import gc
import importlib
import sys
import warnings
from collections.abc import Sequence

from gsopt.errors import InputError

COMMANDS = {
    "prepare": "photos or a video in, a scene out: cameras, lens and points by COLMAP",
    "train": "photos and points in, a trained splat out",
    "evaluate": "PSNR, SSIM, L1 and LPIPS of a run or a PLY, with pictures",
    "render": "pictures or a video of a run or a PLY: photographed views, an orbit, a path",
    "report": "one HTML file about a run, or several side by side: curves, worst views, settings",
    "freeze_sweep": "a grid of runs: what freezing costs and brings, as table and picture",
    "partition": "a large COLMAP scene in overlapping blocks, each a scene of its own",
    "train_blocks": "the blocks of a partition trained, one run each",
    "merge": "trained blocks joined into one splat",
    "inspect": "what a checkpoint, an optimizer or a splat holds, and what differs in two",
    "convert": "files of Gaussians of every program into each other, cropped, moved, joined",
    "view": "a run or a file of Gaussians in the browser: look, cut by a box, save",
    "bench": "how long a training step takes, stage by stage",
    "doctor": "what there is to train with on this machine, and what a run uses",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument; the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not gc.get_freeze_count():
        gc.freeze()  # torch's modules are here to stay: no collection has to look through them again
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    try:
        name = argv[0].replace("-", "_")
        if name not in COMMANDS:
            raise InputError(f"no command {argv[0]!r}; there are: {', '.join(COMMANDS)}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            importlib.import_module(f"gsopt.commands.{name}").main(argv[1:])
    except InputError as error:
        print(f"gsopt: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"gsopt: error: {reason}; check the path, its permissions and the free space", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from gsopt.guards import is_out_of_memory  # at call time: it imports torch

        if not is_out_of_memory(error):
            raise
        print("gsopt: error: out of memory; lower --resolution or the number of Gaussians", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"gsopt: interrupted{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"gsopt: warning: {' '.join(str(message).split())}", file=sys.stderr)


def usage() -> str:
    """What `gsopt --help` prints."""
    lines = (f"  {name.replace('_', '-'):<14}{about}" for name, about in COMMANDS.items())
    return "\n".join(
        ["usage: gsopt COMMAND [FLAGS]", "", *lines, "", "gsopt COMMAND --help shows the flags of a command."]
    )
