"""Photos as they are trained on (decoded, undistorted, reduced), kept in files for this run and later ones.

One file for each photo and all that decides its pixels; it appears whole or not at all, and its checksum is
compared whenever it is opened. So any number of processes may read and make the same files at once.

    <8s magic> <3I height, width, channels> <9f K> <I crc32 of all else> <4 bytes> pixels
"""

import hashlib
import os
import random
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gsopt.cameras import Camera
from gsopt.datasets import images
from gsopt.datasets.images import Photo, is_distorted, load_view
from gsopt.datasets.mapped import map_file
from gsopt.datasets.scene import View
from gsopt.errors import InputError
from gsopt.native.build import cache_folder

CacheKind = Literal["memory", "disk"]
MAGIC = b"gsoptpx1"
HEADER = struct.Struct("<8s3I9fI4x")
ENDING, DRAFT = ".photo", ".draft"
STALE = 3600  # seconds after which nobody works on a draft any more


def photo_folder() -> Path:
    """Where the files are: `photos` in `gsopt.native.build.cache_folder`."""
    return cache_folder() / "photos"


def cached_photos() -> tuple[Path, int, int]:
    """The folder, how many files are in it, drafts included, and their bytes."""
    folder = photo_folder()
    sizes = [path.stat().st_size for path in folder.iterdir()] if folder.is_dir() else []
    return folder, len(sizes), sum(sizes)


def load_views(
    photos: Sequence[Photo],
    *,
    resolution: int | None = None,
    threads: int | None = None,
    progress: bool = False,
    cache: CacheKind = "memory",
) -> list[View]:
    """The views of photos, in their order, loaded in parallel; see `load_view`. Same pixels with any `cache`.

    Args:
        photos: of a scene.
        resolution: longest side in pixels, never enlarged.
        threads: default one per core.
        progress: show a bar on stderr.
        cache: "disk": pixels stay in the files of the cache and are mapped into memory. "memory": they are
            in memory, and only photos that have to be undistorted are read from the cache and put there.

    Raises:
        InputError: a photo cannot be read; with "disk" also that the cache cannot be written.
    """
    from tqdm import tqdm

    store = _Store(photo_folder(), mapped=cache == "disk", count=len(photos), resolution=resolution)
    order = list(range(len(photos)))
    if cache == "disk":
        random.Random(os.getpid()).shuffle(order)  # processes that make the same files share the work
    views: dict[int, View] = {}
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        jobs = [(index, pool.submit(store.view, photos[index])) for index in order]
        for index, job in tqdm(jobs, "photos", unit="photo", disable=not progress, leave=False):
            views[index] = job.result()
    finally:
        pool.shutdown(cancel_futures=True)
    store.warn()
    return [views[index] for index in range(len(photos))]


@dataclass
class _Store:
    """The files of one call of `load_views`.

    mapped: views are of mapped files. count: photos in all. damaged: files that had to be made anew.
    trouble: why the folder cannot be written, where that is no error.
    """

    folder: Path
    mapped: bool
    count: int
    resolution: int | None
    damaged: list[Path] = field(default_factory=list)
    trouble: str | None = None

    def __post_init__(self) -> None:
        for draft in self.folder.glob(f"*{DRAFT}"):  # of processes that were killed
            _remove_stale(draft)

    def view(self, photo: Photo) -> View:
        """Of the cache, which is filled where the photo is not there."""
        if not (self.mapped or is_distorted(photo.known_lens)):
            return load_view(photo, resolution=self.resolution)
        path = self.folder / (key(photo, self.resolution) + ENDING)
        try:
            found = self._read(path, photo)
        except OSError as error:
            self._fail(error)
            found = None
        if found is not None:
            return found
        view = load_view(photo, resolution=self.resolution)
        try:
            if self.trouble is None:
                write(path, view)
            return self._written(path, photo) if self.mapped else view
        except OSError as error:
            self._fail(error)
        return view

    def _read(self, path: Path, photo: Photo) -> View | None:
        """None where there is no such file, or a damaged one."""
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        found = read(path, size)
        if found is None:
            self.damaged.append(path)
            return None
        pixels, K = found
        if not self.mapped:
            pixels = pixels.clone()
        viewmat = torch.tensor(photo.viewmat, dtype=torch.float32)
        height, width = pixels.shape[:2]
        view = View(Camera(photo.name, width, height, K, viewmat), pixels, photo.path, mapped=self.mapped)
        view.release()
        return view

    def _written(self, path: Path, photo: Photo) -> View:
        """Of a file that has just been written."""
        view = self._read(path, photo)
        if view is None:
            raise OSError(None, f"{path.name} was written and is gone or damaged", str(path))
        return view

    def _fail(self, error: OSError) -> None:
        """Raise InputError where nothing goes without the cache; else there is no more of it in this call."""
        text = (
            f"{self.folder}: the {self.count} photos of the scene cannot be kept here "
            f"({error.strerror or error}); free space, or set GSOPT_CACHE to a folder that can be written"
        )
        if self.mapped:
            raise InputError(f"{text}, or leave --cache disk away") from None
        self.trouble = text

    def warn(self) -> None:
        """Say what was not as it should be, and cost time."""
        if self.damaged:
            warnings.warn(
                f"{self.folder}: {len(self.damaged)} files were damaged and have been made anew "
                f"(the first is {self.damaged[0].name}); check the disk",
                stacklevel=4,  # the caller of load_scene
            )
        if self.trouble:
            warnings.warn(f"{self.trouble}; until then each run undistorts them anew", stacklevel=4)


def key(photo: Photo, resolution: int | None) -> str:
    """A file's name: a hash over all that decides the pixels and intrinsics of a view, 32 hex digits."""
    stat, lens = photo.path.stat(), photo.known_lens
    decided = (
        *(_makers(), str(photo.path.resolve()), stat.st_size, stat.st_mtime_ns),
        *(lens.model, lens.width, lens.height, lens.params, resolution, photo.alpha),
    )
    return hashlib.sha256(repr(decided).encode()).hexdigest()[:32]


@cache
def _makers() -> tuple[str, ...]:
    """What makes the pixels: our code, and the libraries it calls."""
    code = hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest()
    return (code, *(f"{name} {version(name)}" for name in ("pillow", "pycolmap", "numpy")))


def write(path: Path, view: View) -> None:
    """Write the file of a view, whole or not at all. Raises OSError."""
    pixels = np.ascontiguousarray(view.image.numpy())  # [H, W, 3 or 4]
    header = _header(pixels.shape, view.camera.K.flatten().tolist(), pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{DRAFT}")
    try:
        with draft.open("xb", buffering=0) as file:
            for part in (header, pixels.data.cast("B")):
                while part:  # an unbuffered write may stop anywhere
                    part = part[file.write(part) :]
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path, size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Pixels of a file of `size` bytes, uint8 [H, W, 3 or 4], mapped, and K, float32 [3, 3].

    None for a damaged one. Raises OSError.
    """
    if size < HEADER.size:
        return None
    whole = map_file(path, size)
    data = whole.numpy().data
    magic, *shape = HEADER.unpack(data[: HEADER.size])[:4]
    K = HEADER.unpack(data[: HEADER.size])[4:13]
    pixels = whole[HEADER.size :]
    if magic != MAGIC or shape[2] not in (3, 4) or pixels.numel() != np.prod(shape, dtype=object):
        return None
    if _header(shape, K, pixels.numpy()) != bytes(data[: HEADER.size]):
        return None
    return pixels.view(*shape), torch.tensor(K, dtype=torch.float32).view(3, 3)


def _header(shape: Sequence[int], K: Sequence[float], pixels: np.ndarray) -> bytes:
    checksum = zlib.crc32(HEADER.pack(MAGIC, *shape, *K, 0))
    return HEADER.pack(MAGIC, *shape, *K, zlib.crc32(pixels.data, checksum))


def _remove_stale(draft: Path) -> None:
    import time

    try:
        if time.time() - draft.stat().st_mtime > STALE:
            draft.unlink()
    except OSError:  # another process has removed it, or it is another user's
        return
