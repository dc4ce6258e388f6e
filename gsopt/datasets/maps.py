"""What lies over a photo pixel by pixel, masks and depth maps: its file, and the way of the photo's pixels.

The photo itself is not read: it may come from a cache.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from gsopt.datasets.images import (
    Photo,
    decode,
    fitted,
    is_distorted,
    open_image,
    quarter_turn,
    same_ratio,
    shrink_in_decoder,
    undecodable,
)
from gsopt.datasets.scene import View
from gsopt.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Transpose


def find_map(folder: Path, name: str, endings: Sequence[str]) -> Path | None:
    """The file in `folder` for the photo `name`, "a/b.jpg": a/b.jpg.png (COLMAP's way), or a/b.png."""
    path = folder / name
    names = [stem + ending for ending in endings for stem in (path.name, path.stem)]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def load_maps(
    load: Callable[["Way", View], Tensor | None],
    pairs: Sequence[tuple[Photo, View]],
    resolution: int | None,
    threads: int | None,
) -> Iterator[tuple[View, Tensor | None]]:
    """Each view with what `load` makes of it, in parallel; photos were read at `resolution`."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        maps = pool.map(lambda pair: load(Way.of(pair[0], resolution), pair[1]), pairs)
        yield from zip((view for _, view in pairs), maps, strict=True)


def read_pixels(path: Path) -> np.ndarray:
    """A picture as uint8 [h, w, 3], or with more than 8 bits a channel as it is, [h, w]."""
    with open_image(path) as image:
        if not image.mode.startswith(("I", "F")):
            return np.asarray(decode(path, image).convert("RGB"))
        try:
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise undecodable(path, error) from None


@dataclass(frozen=True)
class Way:
    """What happens to the pixels of a photo in `load_view`, up to where its lens is straightened.

    stored, size: (width, height) in the file, and then. turn: a transposition of Pillow, or None. shrunk:
    whether pixels were made of several on the way.
    """

    photo: Photo
    stored: tuple[int, int]
    size: tuple[int, int]
    turn: "Transpose | None"
    shrunk: bool

    @classmethod
    def of(cls, photo: Photo, resolution: int | None) -> "Way":
        """Of a photo that is read at `resolution`; only the header of its file is looked at."""
        with open_image(photo.path) as image:
            stored, turn = image.size, quarter_turn(photo, image)
            shrink_in_decoder(image, resolution)
            size = decoded = image.size if turn is None else image.size[::-1]
        if is_distorted(photo.known_lens):
            size = fitted(*decoded, 2 * resolution if resolution else None)
        return cls(photo, stored, size, turn, size != decoded)

    def upright(self, pixels: np.ndarray, path: Path, what: str) -> np.ndarray:
        """A map [h, w], uint8 or float32, turned as its photo is; one that fits the turned photo as it is.

        Raises InputError, naming `path`, where its sides have another ratio than the photo's.
        """
        from PIL import Image

        size = pixels.shape[::-1]
        if self.turn is not None and same_ratio(size, self.stored):
            return np.asarray(Image.fromarray(pixels).transpose(self.turn))
        if not same_ratio(size, self.size):
            width, height = self.stored
            raise InputError(
                f"{path}: {what} of {size[0]}x{size[1]} pixels, expected the aspect ratio of its photo, "
                f"{width}x{height} ({self.photo.path}); make it from that photo, uncropped"
            )
        return pixels
