"""The folder in which a scene is being prepared: stages one after another, each there whole or not at all.

SCENE/.prepare/state.json       which stages are done, with their settings and results
SCENE/.prepare/STAGE/           what a stage has made; STAGE.part while it is being made
SCENE/.prepare/colmap.log       what COLMAP said
SCENE/prepare.json              the report: the scene is finished; .prepare is gone

Until the last stage SCENE has nothing else in it, so that it never looks like a scene before it is one.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gsopt.datasets.photo_files import UNFINISHED as WORK
from gsopt.errors import InputError
from gsopt.rundir import owned, read_json, write_json

REPORT = "prepare.json"
VERSION = 1  # of state.json and prepare.json


class Work:
    """The work folder of one scene, held by this process."""

    def __init__(self, scene: Path, lock: int) -> None:
        """`lock`: a file descriptor; a process that inherits it keeps others out until it ends."""
        self.scene = scene
        self.folder = scene / WORK
        self.lock = lock
        self.log = self.folder / "colmap.log"
        self._file = self.folder / "state.json"
        self.folder.mkdir(exist_ok=True)
        self.stages: dict[str, Any] = {}
        if self._file.is_file():
            self.stages = _checked(self._file)["stages"]

    def path(self, stage: str) -> Path:
        """What a stage has made."""
        return self.folder / stage

    def run(
        self, stage: str, settings: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result of a stage: of an earlier call that finished it, or of `make`, given a folder to fill.

        Raises InputError where an earlier call had other settings.
        """
        if stage in self.stages:
            compare(self.scene, self.stages[stage]["settings"], settings)
            return self.stages[stage]["result"]
        part = self.folder / f"{stage}.part"
        for path in (part, self.path(stage)):
            shutil.rmtree(path, ignore_errors=True)
        part.mkdir()
        start = time.monotonic()
        result = make(part)
        seconds = round(time.monotonic() - start, 2)
        part.replace(self.path(stage))
        self.stages[stage] = {"settings": dict(settings), "seconds": seconds, "result": result}
        write_json(self._file, {"version": VERSION, "stages": self.stages})
        return result

    def publish(self, stage: str, report: Mapping[str, Any]) -> None:
        """Move what a stage has made into the scene, the model last, write the report, and clear up.

        What an earlier call has moved is there already.
        """
        made = self.path(stage)
        if made.is_dir():
            for path in sorted(made.iterdir(), key=lambda path: (path.name == "sparse", path.name)):
                path.replace(self.scene / path.name)
        write_json(self.scene / REPORT, report)
        self.clear()

    def clear(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def opened(scene: Path) -> Iterator[Work]:
    """The work folder of a scene, begun or gone on with; nobody else gets at it meanwhile.

    Raises InputError where something else is in the folder, or another process is at work in it.
    """
    with owned(scene, f"--output {scene}", "another gsopt prepare is") as lock:
        others = sorted(path.name for path in scene.iterdir() if path.name not in (WORK, REPORT))
        begun = (scene / WORK).is_dir() or (scene / REPORT).is_file()
        if others and not begun:
            raise InputError(
                f"--output {scene}: there is something here already ({others[0]}), and it is not "
                "overwritten; give another --output"
            )
        yield Work(scene, lock)


def finished(scene: Path) -> dict[str, Any] | None:
    """The report of a scene that is prepared; None where it is not."""
    file = scene / REPORT
    return _checked(file) if file.is_file() else None


def compare(scene: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError, naming the flag, where settings are not those that a scene was begun with."""
    for name, value in now.items():
        old = before.get(name)
        if old == value:
            continue
        remedy = f"give another --output, or delete {scene}"
        if name == "photos":
            raise InputError(
                f"{scene}: begun with other photos: then {_files(old)}, now {_files(value)}; put them back, "
                f"{remedy}"
            )
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"{flag} {value}: {scene} was begun with {flag} {old}; give that again, {remedy}")


def _files(found: Mapping[str, Any] | None) -> str:
    return "none" if found is None else f"{found['count']:,} files of {found['bytes']:,} bytes"


def _checked(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else content
        raise InputError(
            f"{file}: version {found!r} of gsopt prepare, expected {VERSION}; delete {file.parent}, or give "
            "another --output"
        )
    return content
