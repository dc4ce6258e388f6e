"""Scenes from disk: COLMAP models, NeRF-synthetic folders, transforms.json."""

import os
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gsopt.cameras import cameras_extent
from gsopt.datasets.colmap import find_model, read_model
from gsopt.datasets.depths import add_depths, find_depths
from gsopt.datasets.images import Photo, folder_beside, load_views, locate
from gsopt.datasets.initial_points import random_points
from gsopt.datasets.masks import Alpha, add_masks, find_masks, without_ignored, without_masks
from gsopt.datasets.normalization import Normalization, move_photos, normalization
from gsopt.datasets.photo_files import UNFINISHED, find_photos
from gsopt.datasets.ply import read_splat, write_splat
from gsopt.datasets.point_files import load_points, read_points
from gsopt.datasets.scene import PointCloud, Scene, View
from gsopt.datasets.thinning import thinned
from gsopt.datasets.transforms import find_points, read_nerf_synthetic, read_transforms
from gsopt.errors import InputError
from gsopt.similarity import Similarity

__all__ = [
    "PointCloud",
    "Scene",
    "View",
    "load_points",
    "load_scene",
    "moved_points",
    "read_points",
    "read_splat",
    "write_splat",
]


def load_scene(
    path: str | os.PathLike,
    *,
    resolution: int | None = None,
    images: str | None = None,
    test_every: int = 8,
    seed: int = 0,
    init: str | os.PathLike | None = None,
    init_points: int | None = None,
    init_max: int | None = None,
    normalize: Normalization | Similarity = "none",
    masks: str | Literal[False] | None = None,
    alpha: Alpha = "background",
    depths: bool = False,
    threads: int | None = None,
    progress: bool = False,
) -> Scene:
    """Read a scene: cameras, photos (decoded in parallel, undistorted, uint8) and points.

    The format is detected: `sparse/0` or `sparse` is COLMAP, `transforms_train.json` NeRF-synthetic, and
    `transforms.json` (or `path` itself, if it is a JSON file) nerfstudio or instant-ngp. Photos that are
    listed but not there are left out with one warning. Without points in the scene, they are random: see
    `random_points`. docs/data.md shows the folders.

    Args:
        path: folder of the scene, or a transforms JSON file.
        resolution: longest side of the images in pixels, never enlarged; None keeps the photos' size. Smaller
            copies beside the photos (`images_2`, `_4`, `_8`) are read where they are large enough.
        images: name of the folder to read photos from, beside the one that the scene names (not
            NeRF-synthetic).
        test_every: each so many-th of the sorted names is a test view, beginning with the first; 0 for none.
            Some scenes say it themselves: NeRF-synthetic by `transforms_test.json`, else
            `transforms_val.json`, nerfstudio by `test_filenames`, else `val_filenames`.
        seed: of random points.
        init: file whose points replace those of the scene: `read_points` says which. A splat gives centres.
        init_points: so many random points instead, in the volume that `random_points` describes.
        init_max: more points than so many, of the scene or of `init`, are thinned to at most as many.
        normalize: "scale" or "up": the scene is moved as `normalization` says, which is its `world` then. Or
            the move itself.
        masks: name of the masks' folder, beside that of the photos; by default `masks`, if it is there, and
            those that the scene names. False for none. See `gsopt.datasets.masks`.
        alpha: "mask" takes transparent photos as colours with a mask, used where alpha is above 0.
        depths: read depth maps for the train views; see `gsopt.datasets.depths`.
        threads: for decoding; None for one per core.
        progress: show a bar on stderr.

    Raises:
        InputError: anything unusable in the scene, as one line that names the file and the remedy.
    """
    root = Path(path)
    if resolution is not None and resolution < 1:
        raise InputError(f"--resolution {resolution}: expected the images' longest side, at least 1 pixel")
    listing = _read(root)
    if images is not None and listing.format == "nerf-synthetic":
        raise InputError(f"--images {images}: {listing.source} names each photo itself; leave --images away")
    photos = locate(listing.photos, listing.folder, listing.source, resolution, images)
    beside = folder_beside(listing.folder, listing.source)
    photos = without_masks(photos) if masks is False else find_masks(photos, beside, masks)
    photos = [replace(photo, alpha=alpha) for photo in photos]
    if isinstance(normalize, Similarity):
        world = normalize
    else:
        world = normalization(np.stack([photo.viewmat for photo in photos]), normalize)
    train, test = _split(listing.source, move_photos(photos, world), test_every)
    if depths:
        train = find_depths(train, beside, listing.source)
    photos = [*train, *test]
    views = load_views(photos, resolution=resolution, threads=threads, progress=progress)
    add_masks(photos, views, resolution, threads)
    if depths:
        add_depths(train, views[: len(train)], resolution, threads, unit=world.scale if world else 1.0)
    test = without_ignored(views[len(train) :], listing.source)
    train = without_ignored(views[: len(train)], listing.source, required=True)
    if init_points is not None or (init is None and listing.points is None):
        volume = "box" if listing.format == "nerf-synthetic" else "frustums"
        points = random_points(train, seed=seed, volume=volume, count=init_points)
    else:
        cloud = listing.points(init_max) if init is None else read_points(init, most=init_max)
        points = moved_points(cloud, world)
    return Scene(root, listing.format, train, test, points, _extent(root, train, points), world)


def moved_points(cloud: PointCloud, world: Similarity | None) -> PointCloud:
    """A cloud of `read_points` in the units of a scene that was normalised by `world`, as float32."""
    xyz = cloud.xyz if world is None else world.points(cloud.xyz)
    return replace(cloud, xyz=xyz.float())


@dataclass(frozen=True)
class _Listing:
    """What a scene's files say before any photo is read.

    source: the file to name in errors about photos. folder: the photos' names are relative to it.
    points: gives the points, thinned to at most a number if that is not None.
    """

    format: str
    source: Path
    photos: list[Photo]
    folder: Path
    points: Callable[[int | None], PointCloud] | None


def _read(root: Path) -> _Listing:
    if root.is_file() and root.suffix.lower() == ".json":
        return _Listing("transforms", root, *read_transforms(root), find_points(root))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise InputError(f"{root}: no such directory (found {found}); give the folder of a scene")
    model = find_model(root)
    if model is not None:
        photos, points = read_model(model, root / "images")
        return _Listing("colmap", model, photos, root / "images", lambda most: thinned(points(), most))
    train, single = root / "transforms_train.json", root / "transforms.json"
    if train.is_file():
        return _Listing("nerf-synthetic", train, *read_nerf_synthetic(root), find_points(train))
    if single.is_file():
        return _Listing("transforms", single, *read_transforms(single), find_points(single))
    raise _no_scene(root)


def _no_scene(root: Path) -> InputError:
    """What to do about a folder that is no scene."""
    if (root / UNFINISHED).is_dir():
        return InputError(f"{root}: no scene yet; let the same gsopt prepare --output {root} finish it")
    given = root / "images" if find_photos(root / "images") else root
    if photos := find_photos(given):
        named = root if root.name not in ("", "..") else root.resolve()
        words = [shlex.quote(str(path)) for path in (given, named.with_name(f"{named.name}_scene"))]
        return InputError(
            f"{root}: no scene, {len(photos)} photos without cameras; find these with: "
            f"gsopt prepare --images {words[0]} --output {words[1]}"
        )
    return InputError(
        f"{root}: no scene, expected sparse/0/cameras.bin or .txt (COLMAP), transforms_train.json "
        f"(NeRF-synthetic) or transforms.json (nerfstudio, instant-ngp), found {_contents(root)}; "
        "give the folder that has one of them"
    )


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    ) or "an empty directory"


def _split(source: Path, photos: list[Photo], test_every: int) -> tuple[list[Photo], list[Photo]]:
    """Train and test photos, each sorted by name."""
    photos = sorted(photos, key=lambda photo: photo.name)
    if all(photo.split is None for photo in photos):
        is_test = [test_every > 0 and index % test_every == 0 for index in range(len(photos))]
        remedy = (
            f"--test-every {test_every} takes the first of each {test_every} for testing: "
            "add photos or give --test-every 0"
        )
    else:
        is_test = [photo.split == "test" for photo in photos]
        remedy = "put the train photos where it names them"
    train = [photo for photo, test in zip(photos, is_test, strict=True) if not test]
    if not train:
        raise InputError(f"{source}: no view is left to train on, of {len(photos)} photos; {remedy}")
    return train, [photo for photo, test in zip(photos, is_test, strict=True) if test]


def _extent(root: Path, train: list[View], points: PointCloud) -> float:
    """`cameras_extent`, or, of cameras all at one place, the median distance of the points from it."""
    extent = cameras_extent([view.camera for view in train])
    if extent > 0:
        return extent
    distance = (points.xyz - train[0].camera.center).norm(dim=1).median().item()
    warnings.warn(
        f"{root}: all {len(train)} train cameras stand at one place; "
        f"the scene's extent is the points' median distance from it, {distance:.3g}",
        stacklevel=3,
    )
    return distance or 1.0
