"""`gsopt prepare`: a scene from photos alone."""

from collections.abc import Sequence
from typing import Any

from gsopt.commands.flags import parse
from gsopt.prepare import PrepareConfig, next_command, prepare
from gsopt.prepare.report import lines

ABOUT = (
    "Make a scene of photos, or of a video: where each was taken, the lens, points, by COLMAP on the CPU; "
    "undistorted photos and smaller copies. Interrupted, it goes on where it was."
)


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(PrepareConfig, argv, "gsopt prepare", ABOUT))


def run(config: PrepareConfig) -> dict[str, Any]:
    """Make it, print the report, and return it."""
    report = prepare(config, print)
    print("\n".join(lines(report, config.output)))
    print(f"next      {next_command(config.output)}")
    return report
