"""A run on disk: where each file of it is. The layout is the original 3DGS's, which other tools read.

config.json                                      the settings, as the numbers used
cameras.json                                     every camera, for viewers
cameras_refined.json                             the same after --optimize-poses
events.out.tfevents.*                            TensorBoard
checkpoints/step_00001000.pt                     all that is needed to continue
point_cloud/iteration_1000/point_cloud.ply       the model
history.json                                     the tests on the way so far
by_hand.json                                     what was done by hand so far, such as in the viewer
point_cloud/iteration_1000/background.ply        the second model, if it is trained
point_cloud/iteration_1000/views.json            pose and exposure of each training view, if they are trained
metrics.json                                     PSNR, SSIM, L1 at the end
metrics_1000.json, metrics_changed.json          of an older model, or seen with other settings
renders/comparison.png                           a few test views: photo | render | error
renders/sheet.png                                the worst views of `gsopt evaluate`
renders/KIND/VIEW.png                            what `gsopt evaluate` and `gsopt render` write
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gsopt.errors import InputError

CLAIMING = ".claim"  # ends the name of a run's config.json until it is complete


class RunFolder:
    """Paths of one run, and small JSON files in and out."""

    def __init__(self, path: Path | str, others: Iterable[Path] = ()) -> None:
        """`others`: where `claim` goes instead if another run has taken `path` by then."""
        self.path = Path(path)
        self._others = others
        self.config = self.path / "config.json"
        self.cameras = self.path / "cameras.json"
        self.refined_cameras = self.path / "cameras_refined.json"
        self.metrics = self.path / "metrics.json"
        self.history = self.path / "history.json"
        self.by_hand = self.path / "by_hand.json"
        self.checkpoints = self.path / "checkpoints"
        self.renders = self.path / "renders"
        self.picture = self.renders / "comparison.png"

    @classmethod
    def new(cls, path: Path | None, name: str = "") -> "RunFolder":
        """A folder for a new run at `path`, by default `output/NAME-DATE`; nothing is made before `claim`.

        Raises InputError where there is something at `path` already: nothing is ever overwritten.
        """
        if path is None:
            stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
            names = itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2)))
            folders = (Path("output") / name for name in names)
            return cls(next(folder for folder in folders if not folder.exists()), folders)
        if path.exists() and (not path.is_dir() or _in_use(path)):
            raise cls(path)._taken()
        return cls(path)

    def claim(self, settings: Mapping[str, Any] | None = None) -> "RunFolder":
        """Make the folder of a new run and return it; of several runs that try at once, one gets it.

        Who creates config.json, with `settings` and "output" in it, owns the folder. A run under a default
        name that comes too late gets the next free one, NAME_2 and so on.

        Raises InputError where the folder cannot be made, or has something in it by now.
        """
        for path in itertools.chain([self.path], self._others):
            run = RunFolder(path)
            try:
                path.mkdir(parents=True, exist_ok=True)
                if not _in_use(path):
                    _create_json(run.config, {**(settings or {}), "output": str(path)})
                    return run
            except FileExistsError:
                continue
            except OSError as error:
                raise run._not_made(error) from error
        raise self._taken()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other session trains in this run: two would write each other's files.

        The system lets go of it when the process ends, however it ends. Where the file system has no locks, a
        warning says so. Raises InputError where another session is at it.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            self._lock(folder)
            yield
        finally:
            os.close(folder)

    def _lock(self, folder: int) -> None:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another session trains in this run; wait until it ends, or stop it"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{self.path}: cannot be locked ({error.strerror}); let no other session train in it",
                stacklevel=2,
            )

    def make(self) -> None:
        """The folder itself, which may be there. Raises InputError where it cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_made(error) from error

    def _not_made(self, error: OSError) -> InputError:
        return InputError(f"--output {self.path}: cannot make this folder ({error.strerror}); give another")

    def _taken(self) -> InputError:
        is_run = self.config.is_file()
        remedy = f", or go on with this run by --resume {self.path}" if is_run else ""
        return InputError(
            f"--output {self.path}: there is {'a run' if is_run else 'something'} here already, and it is "
            f"not overwritten; give another --output{remedy}"
        )

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an existing run. Raises InputError where there is none."""
        run = cls(path)
        if not run.config.is_file():
            if path.name == "config.json" and path.is_file():
                raise InputError(f"{path}: not the folder of a run but a file in it; give {path.parent}")
            raise InputError(f"{path}: not the folder of a run (no config.json in it); check the path")
        return run

    def ply(self, iteration: int) -> Path:
        """The model's file after so many iterations."""
        return self.path / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply"

    def saved_iterations(self) -> list[int]:
        """Iterations of which there is a PLY, ascending."""
        folders = (self.path / "point_cloud").glob("iteration_*/point_cloud.ply")
        found = (re.fullmatch(r"iteration_(\d+)", file.parent.name) for file in folders)
        return sorted(int(match[1]) for match in found if match)

    def saved_ply(self, iteration: int | None = None) -> tuple[Path, int]:
        """The PLY saved after `iteration`, by default the newest, and its iteration. Raises InputError."""
        there = self.saved_iterations()
        if not there:
            raise InputError(
                f"{self.path}: no point_cloud/iteration_N/point_cloud.ply in this run yet; "
                f"let it get further with: gsopt train --resume {self.path}"
            )
        iteration = there[-1] if iteration is None else iteration
        if iteration not in there:
            raise InputError(
                f"--iteration {iteration}: not saved in {self.path}; there are {', '.join(map(str, there))}"
            )
        return self.ply(iteration), iteration

    def picture_of(self, kind: str, view: str) -> Path:
        """A PNG of one view: renders/KIND/ and its :func:`picture_name`."""
        return self.renders / kind / picture_name(view)


@contextlib.contextmanager
def owned(folder: Path, flag: str, who: str) -> Iterator[int]:
    """Make `folder`, and keep others out of it: who does the same, and what processes they left behind.

    `flag`: names the folder in messages; `who`: is at work where another has it, "a sweep is".

    Yields:
        A file descriptor; who inherits it keeps the folder until it ends.

    Raises:
        InputError: another is at work in it; or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{flag}: cannot make this folder ({error.strerror}); give another") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{flag}: {who} at work in here; wait for its end, or end it") from None
    else:
        yield descriptor
    finally:
        os.close(descriptor)


def picture_name(view: str) -> Path:
    """Where in a folder the PNG of a view is, named as its photo: a.png for a.png, a.jpg.png for a.jpg.

    It is always inside that folder: of absolute names and such with ".." the rest is used.
    """
    name = Path(view)
    inside = Path(*(part for part in name.parts if part not in (name.anchor, "..")))
    return inside if inside.suffix == ".png" else inside.with_name(f"{inside.name}.png")


def write_json(path: Path, value: Any) -> None:
    """One JSON file, whole or not at all: written beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        _write_synced(temporary, value)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _create_json(path: Path, value: Any) -> None:
    """A JSON file that was not there, whole or not at all. Raises FileExistsError where it is there.

    Renaming would replace a file, so its whole content is linked to its name instead: a run that is killed
    here leaves nothing that looks like a run, and of two that try at once one succeeds.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{CLAIMING}")
    try:
        _write_synced(temporary, value)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: a kill between these two lines leaves it empty
            path.touch(exist_ok=False)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _in_use(folder: Path) -> bool:
    """Whether there is anything in a folder but what a run left that was killed while it claimed it."""
    return any(not path.name.endswith(CLAIMING) for path in folder.iterdir())


def read_json(path: Path) -> Any:
    """What is in a JSON file. Raises InputError that names the file and the place in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
