"""Masks: which pixels of a photo are used. The others count in no loss and no metric.

A pixel of a view is used only where all pixels of photo and mask that it was made from are. Undistortion
makes it from four, and reducing a photo (Lanczos) from all within three pixels of the result, so there the
ignored regions grow by three pixels. Photos have the same pixels with a mask and without.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsopt.datasets.images import Photo, decode, is_distorted, open_image, undistort
from gsopt.datasets.maps import Way, find_map, load_maps, read_pixels
from gsopt.datasets.scene import View
from gsopt.errors import InputError
from gsopt.text import listed

FOLDER = "masks"  # beside the photos' folder
ENDINGS = (".png", ".PNG")
REACH = 3  # pixels of a reduced photo: Lanczos's, the blocks averaged before it included

Alpha = Literal["background", "mask"]


def find_masks(photos: Sequence[Photo], root: Path, folder: str | None = None) -> list[Photo]:
    """The photos with their masks: those that the scene names (`mask_path`), else of `masks` in `root`.

    Args:
        photos: of a scene.
        root: where the folder of the photos is.
        folder: name of another folder, whose masks are taken before those that the scene names.

    Raises InputError: no such folder, none of the photos has a mask there, a mask that is named is missing.
    """
    place = root / (folder or FOLDER)
    if folder is not None and not place.is_dir():
        raise InputError(f"{place}: no such folder, named by --masks; give the name of one beside the photos")
    found = [find_map(place, photo.name, ENDINGS) for photo in photos]
    if place.is_dir() and not any(found) and (folder or not any(photo.mask for photo in photos)):
        name = Path(min(photo.name for photo in photos))
        raise InputError(
            f"{place}: no mask of the {len(photos)} photos is there, expected {name.with_suffix('.png')} or "
            f"{name}.png for {name} and so on; rename them, or give --no-masks"
        )
    masked = []
    for photo, path in zip(photos, found, strict=True):
        mask = (path or photo.mask) if folder else (photo.mask or path)
        if mask is not None and not mask.is_file():
            raise InputError(
                f"{mask}: no such file, expected the mask of {photo.name}, whose frame names it as "
                "mask_path; put it there, or give --no-masks"
            )
        masked.append(replace(photo, mask=mask))
    return masked


def without_masks(photos: Sequence[Photo]) -> list[Photo]:
    """The photos with all their pixels, whatever the scene names."""
    return [replace(photo, mask=None) for photo in photos]


def add_masks(
    photos: Sequence[Photo], views: Sequence[View], resolution: int | None, threads: int | None
) -> None:
    """Give views their masks, read in parallel; `resolution` is that which the photos were read at.

    Raises InputError: a mask cannot be read, or has another aspect ratio than its photo.
    """
    pairs = [(p, v) for p, v in zip(photos, views, strict=True) if p.mask or p.alpha == "mask"]
    for view, mask in load_maps(load_mask, pairs, resolution, threads):
        view.mask = mask


def load_mask(way: Way, view: View) -> Tensor | None:
    """Where a view of a photo is used, bool [H, W]; None where it is everywhere."""
    maps = [ignored for ignored in (_of_file(way), _of_alpha(way)) if ignored is not None]
    used = [_on_view(way, ignored, (view.camera.width, view.camera.height)) for ignored in maps]
    mask = torch.stack(used).all(0) if used else None
    return None if mask is None or mask.all() else mask


def without_ignored(views: Sequence[View], source: Path, required: bool = False) -> list[View]:
    """The views of which any pixel is used. A warning names the others.

    Raises InputError where none is left and one is `required`.
    """
    ignored = [view for view in views if view.mask is not None and not view.mask.any()]
    if not ignored:
        return list(views)
    names = listed([view.camera.name for view in ignored])
    if required and len(ignored) == len(views):
        raise InputError(
            f"{source}: masks ignore every pixel of all training photos ({names}), expected some above 0: "
            "those are used; turn the masks around, or give --no-masks"
        )
    warnings.warn(
        f"{source}: {len(ignored)} of {len(views)} photos are left out, as their masks ignore every pixel: "
        f"{names}",
        stacklevel=3,  # the caller of load_scene
    )
    left_out = set(map(id, ignored))
    return [view for view in views if id(view) not in left_out]


def _of_file(way: Way) -> np.ndarray | None:
    """1 where the photo's mask is 0 in all channels, as the photo is turned. uint8 [h, w]"""
    path = way.photo.mask
    if path is None:
        return None
    pixels = read_pixels(path)
    used: np.ndarray = np.any(pixels.reshape(*pixels.shape[:2], -1), axis=2)
    return way.upright((~used).astype(np.uint8), path, "mask")


def _of_alpha(way: Way) -> np.ndarray | None:
    """1 where the photo's alpha is 0 and that is its mask; None where nothing of it is transparent."""
    path = way.photo.path
    if way.photo.alpha != "mask":
        return None
    with open_image(path) as image:
        image = decode(path, image)
    if image.mode != "RGBA":
        return None
    return way.upright((np.asarray(image)[..., 3] == 0).astype(np.uint8), path, "photo")


def _on_view(way: Way, ignored: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Where a view of `size` (width, height) is used. bool [H, W]"""
    from PIL import Image

    before = way.size
    if is_distorted(way.photo.known_lens):
        used = ~_spread(ignored, way.size, way.shrunk)
        picture, _ = undistort(way.photo.known_lens, Image.fromarray(used.numpy().astype(np.uint8) * 255))
        ignored, before = (np.asarray(picture) < 255).astype(np.uint8), picture.size
    return ~_spread(ignored, size, before != size)


def _spread(ignored: np.ndarray, size: tuple[int, int], reduced: bool) -> Tensor:
    """Which pixels of a picture of `size` are made from any that is ignored. bool [H, W]"""
    field = torch.from_numpy(np.array(ignored, np.float32))[None]
    if ignored.shape != size[::-1]:
        field = F.adaptive_max_pool2d(field, size[::-1])
    if reduced:
        field = F.max_pool2d(field, 2 * REACH + 1, stride=1, padding=REACH)
    return field[0] > 0
