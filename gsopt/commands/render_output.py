"""Where `gsopt render` puts its pictures: a folder of PNGs, or videos."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from gsopt.evaluation import Maps
from gsopt.pictures import depth_picture, grey, save_png
from gsopt.rundir import picture_name
from gsopt.video import Video, is_video

if TYPE_CHECKING:
    from gsopt.commands.render import RenderConfig

Limits = tuple[float, float]  # depths drawn brightest and darkest


class Output(Protocol):
    """Takes one picture after another."""

    files: list[Path]

    def add(self, name: str, maps: Maps) -> None:
        """The next picture; `maps.image` is [H, W, 4] where transparency is asked for."""

    def summary(self) -> str:
        """What there is now, for the terminal."""


@contextlib.contextmanager
def open_output(
    config: "RenderConfig", folder: Path, size: tuple[int, int], limits: Limits | None
) -> Iterator[Output]:
    """The output that `config` asks for; a video is complete at the end of the context.

    folder: for PNGs, where there is no --output. size: width, height. limits: None for no pictures of depth.
    """
    path = config.output
    if path is None or not is_video(path):
        yield Folder(path or folder, limits, alpha=config.opacity)
        return
    fps = config.fps or (2.0 if config.path in ("test", "train") else 30.0)
    names = ["", *(["_depth"] if limits else []), *(["_alpha"] if config.opacity else [])]
    with contextlib.ExitStack() as stack:
        videos = {
            name: stack.enter_context(Video(path.with_stem(path.stem + name), *size, fps).writing())
            for name in names
        }
        yield Videos(videos, limits)


class Folder:
    """NAME.png, and as asked for depth/NAME.png with depth/NAME.npy, and alpha/NAME.png."""

    def __init__(self, path: Path, limits: Limits | None, *, alpha: bool) -> None:
        self.path, self.limits, self.alpha = path, limits, alpha
        self.files: list[Path] = []

    def add(self, name: str, maps: Maps) -> None:
        """Write one picture."""
        inside = picture_name(name)
        self._save(maps.image, self.path / inside)
        if self.limits is not None:
            file = self.path / "depth" / inside
            self._save(depth_picture(maps.depth, maps.alpha, *self.limits), file)
            np.save(file.with_suffix(".npy"), maps.depth.cpu().numpy())
        if self.alpha:
            self._save(grey(maps.alpha), self.path / "alpha" / inside)

    def _save(self, image: Tensor, file: Path) -> None:
        save_png(image, file)
        self.files.append(file)

    def summary(self) -> str:
        """How many files are where."""
        return f"wrote     {len(self.files)} pictures in {self.path}"


class Videos:
    """Pictures, and as asked for depth and alpha, each in a file of its own."""

    def __init__(self, videos: dict[str, Video], limits: Limits | None) -> None:
        self.videos, self.limits = videos, limits
        self.files = [video.path for video in videos.values()]
        self.count = 0

    def add(self, _name: str, maps: Maps) -> None:
        """One more frame in each."""
        self.count += 1
        self.videos[""].add(maps.image)
        if self.limits is not None:
            self.videos["_depth"].add(depth_picture(maps.depth, maps.alpha, *self.limits))
        if "_alpha" in self.videos:
            self.videos["_alpha"].add(grey(maps.alpha))

    def summary(self) -> str:
        """Length and size of each."""
        seconds = self.count / self.videos[""].fps
        return "\n".join(
            f"wrote     {file}: {self.count} frames, {seconds:.1f} s, {file.stat().st_size:,} bytes"
            for file in self.files
        )
