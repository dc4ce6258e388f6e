"""A scene from photos alone: COLMAP's structure from motion by pycolmap, on the CPU, stage by stage.

frames -> photos -> features -> matches -> models -> scene -> published

Each stage fills a folder of its own (see `work`) from those before; one that is done is not done again.
COLMAP works in a process of its own (see `worker`).
"""

import importlib.metadata
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gsopt.device import cpu_count
from gsopt.prepare import frames, photos, report
from gsopt.prepare.copies import make_copies
from gsopt.prepare.pairs import choose_matching, pair_count
from gsopt.prepare.process import rows, run_colmap
from gsopt.prepare.settings import FEWEST, PrepareConfig
from gsopt.prepare.work import VERSION, Work, compare, finished, opened

__all__ = ["PrepareConfig", "prepare"]

DATABASE = "database.db"


def prepare(config: PrepareConfig, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Make the scene, or what is left to be made of it; the report, as in prepare.json.

    `tell`: is called with a line for each stage.

    Raises:
        InputError: settings, photos or a folder that cannot be used, or photos that make no model.
        KeyboardInterrupt: with what is done by then.
    """
    config.check()
    source = photos.fingerprint(config.images) if config.images else frames.video_fingerprint(config.video)
    with opened(config.output) as work:
        done = finished(config.output)
        if done is not None:
            compare(config.output, done["settings"], _settings(config, source))
            work.clear()
            tell(f"finished  {config.output}, by an earlier call")
            return done
        try:
            return _Run(config, source, work, tell).all()
        except KeyboardInterrupt:
            stages = ", ".join(work.stages) or "none"
            raise KeyboardInterrupt(f"done: {stages}; the same command goes on from here") from None


def _settings(config: PrepareConfig, source: dict[str, Any]) -> dict[str, Any]:
    """All that a scene depends on; paths are absolute."""
    return {
        name: value for stage in _stage_settings(config, source).values() for name, value in stage.items()
    }


def _stage_settings(config: PrepareConfig, source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that each stage is the first to depend on."""
    given = config.images or config.video
    origin = {"images" if config.images else "video": str(given.resolve()), "photos": source}
    names = {
        "features": ("camera_model", "single_camera", "feature_size", "max_features", "seed"),
        "matches": ("matching",),
        "models": (),
        "scene": ("max_size",),
    }
    rest = {stage: {name: getattr(config, name) for name in of} for stage, of in names.items()}
    if config.video:
        return {"frames": origin | {"frames": config.frames}, "photos": {}, **rest}
    return {"photos": origin, **rest}


class _Run:
    """One call: its stages in their order, each with what it takes from those before."""

    def __init__(self, config: PrepareConfig, source: dict[str, Any], work: Work, tell: Callable) -> None:
        self.config = config
        self.work = work
        self.tell = tell
        self.threads = config.threads or cpu_count()
        self.settings = _stage_settings(config, source)
        self.names: list[str] = []  # of readable photos

    def all(self) -> dict[str, Any]:
        """Everything that is left to do."""
        for stage, settings in self.settings.items():  # before anything is done
            if stage in self.work.stages:
                compare(self.config.output, self.work.stages[stage]["settings"], settings)
        if self.config.video:
            self._stage("frames", self._frames)
        read = self._stage("photos", self._photos)
        self.names = [photo["name"] for photo in read["photos"]]
        self._stage("features", self._features)
        self._stage("matches", self._matches)
        found = self._stage("models", self._models)
        self._stage("scene", self._scene)
        made = {"version": VERSION} | report.make_report(
            _versions(), self.work.stages, report.dropped(found, read["unreadable"])
        )
        self.work.publish("scene", made)
        return made

    def _stage(self, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        earlier = name in self.work.stages
        result = self.work.run(name, self.settings[name], make)
        how = "by an earlier call" if earlier else f"{self.work.stages[name]['seconds']:.1f} s"
        self.tell(f"{name:<10}done, {how}")
        return result

    def _frames(self, part: Path) -> dict[str, Any]:
        with _bar("frames", None, "frame") as bar:
            return frames.take_frames(self.config.video, self.config.frames, part, bar)

    def _photos(self, part: Path) -> dict[str, Any]:
        folder = self.config.images or self.work.path("frames")
        with _bar("photos", None, "photo") as bar:
            read = photos.read_photos(folder, part, self.threads, bar)
        photos.check_enough(read, self.config.images or self.config.video)
        return read

    def _features(self, part: Path) -> dict[str, Any]:
        read = photos.as_photos(self.work.stages["photos"]["result"]["photos"])
        groups = photos.camera_groups(read, self.config.single_camera)
        names = ("camera_model", "feature_size", "max_features")
        job = {"groups": groups, "names": self.names, **{name: getattr(self.config, name) for name in names}}
        with _bar("features", len(read), "photo") as bar:
            return self._colmap("features", part, bar, job, table="keypoints")

    def _matches(self, part: Path) -> dict[str, Any]:
        shutil.copyfile(self.work.path("features") / DATABASE, part / DATABASE)
        matching = choose_matching(self.config.matching, len(self.names), self.config.video is not None)
        with _bar("matches", pair_count(matching, len(self.names)), "pair") as bar:
            job = {"matching": matching}
            return self._colmap("matches", part, bar, job, table="two_view_geometries") | job

    def _models(self, part: Path) -> dict[str, Any]:
        database = self.work.path("matches") / DATABASE
        job = {"database": str(database), "output": str(part), "fewest": FEWEST}
        with _bar("models", len(self.names), "photo") as bar:
            found = self._colmap("models", part, bar, job)
        report.check_models(found, str(self.config.images or self.config.video))
        return found

    def _scene(self, part: Path) -> dict[str, Any]:
        best = report.best_model(self.work.stages["models"]["result"]["models"])
        model = self.work.path("models") / best["folder"]
        job = {"model": str(model), "output": str(part / "made"), "max_size": self.config.max_size or -1}
        (part / "made").mkdir()

        def count() -> int:
            return sum(path.is_file() for path in (part / "made" / "images").rglob("*"))

        with _bar("undistort", len(best["photos"]), "photo") as bar:
            result = self._colmap("scene", part, bar, job, count=count)
        for name in ("images", "sparse"):
            (part / "made" / name).replace(part / name)
        shutil.rmtree(part / "made")
        with _bar("copies", len(best["photos"]), "photo") as bar:
            make_copies(part, best["photos"], self.threads, bar)
        return result

    def _colmap(
        self,
        stage: str,
        part: Path,
        bar: tqdm,
        job: dict[str, Any],
        table: str | None = None,
        count: Callable[[], int | None] | None = None,
    ) -> dict[str, Any]:
        """A stage in COLMAP's process; `table`: the rows to count in its database."""
        common = {
            **{"stage": stage, "seed": self.config.seed, "threads": self.threads},
            **{"photos": str(self.work.path("photos")), "database": str(part / DATABASE)},
        }
        count = rows(part / DATABASE, table) if table else count

        def progress(done: int) -> None:
            bar.update(min(done, bar.total) - bar.n)

        result = run_colmap(common | job, self.work.log, keep=self.work.lock, progress=progress, count=count)
        progress(bar.total)
        return result


@contextmanager
def _bar(text: str, total: int | None, unit: str) -> Iterator[tqdm]:
    with tqdm(desc=f"{text:<10}", total=total, unit=unit, disable=not sys.stderr.isatty()) as bar:
        yield bar


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("gsopt", "pycolmap")}


def next_command(scene: Path) -> str:
    """What to type when the scene is made."""
    return f"gsopt train --scene {shlex.quote(str(scene))}"
