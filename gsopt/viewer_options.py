"""Settings of the live viewer: a part of `TrainConfig`. They change nothing of what is trained."""

from dataclasses import dataclass

from gsopt.errors import InputError

PORT = 8080
RESOLUTION = 1024  # pixels of a picture's longest side
LARGEST = 4096


@dataclass(kw_only=True)
class ViewerOptions:
    """Where a run can be watched, and how. None of it is kept in the run's config.json."""

    viewer: bool = False
    """Watch the run in a browser, and pause, freeze, lock there; docs/viewer.md."""
    viewer_host: str = "127.0.0.1"
    """Address that it listens at. Whoever reaches it may do all that the panel can: there is no password."""
    viewer_port: int = PORT
    """Port that it listens at; 0 for one that is free."""
    viewer_resolution: int = RESOLUTION
    """Longest side of its pictures in pixels, at most that of the window."""
    viewer_splats: bool = False
    """Let the browser draw the Gaussians, without their harmonics, instead of showing pictures from here."""
    viewer_stay: bool = False
    """Let the viewer go on when the run is finished, until Ctrl-C."""
    forget_by_hand: bool = False
    """With --resume: undo the freezes, rates and locks that were set in the viewer."""

    def check_viewer(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        check_port("--viewer-port", self.viewer_port)
        check_resolution("--viewer-resolution", self.viewer_resolution)


VIEWER_FLAGS = frozenset(ViewerOptions.__dataclass_fields__)


def check_port(flag: str, port: int) -> None:
    """Raise InputError, naming the flag, for what is no number of a port."""
    if not 0 <= port <= 65535:
        raise InputError(f"{flag} {port}: expected 1 to 65535, or 0 for one that is free")


def check_resolution(flag: str, resolution: int) -> None:
    """Raise InputError, naming the flag, for pictures too small or too large."""
    if not 64 <= resolution <= LARGEST:
        raise InputError(f"{flag} {resolution}: expected 64 to {LARGEST} pixels")
