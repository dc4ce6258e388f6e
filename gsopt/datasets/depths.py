"""Depth maps beside photos, as 1 / z in 1 / world units, where z is along the camera's axis.

Two formats: that of the original 3DGS's depth regularisation (Kerbl et al. 2024, its `dataset_readers.py`),
16-bit PNGs of an inverse depth of unknown scale with a scale and an offset for each photo in the model's
`depth_params.json`; and metric depths in .npy, or where transforms.json names them, in 16-bit PNGs as well.
Values of 0, below 0, and those that are not finite are unknown.
"""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsopt.datasets.images import DepthFile, Photo, is_distorted
from gsopt.datasets.maps import Way, find_map, load_maps, read_pixels
from gsopt.datasets.scene import View
from gsopt.errors import InputError
from gsopt.text import shortened

FOLDER = "depths"  # beside the photos' folder
ENDINGS = (".npy", ".png", ".PNG")
PARAMETERS = "depth_params.json"
UNRELIABLE = (0.2, 5.0)  # scales below and above these multiples of their median, as in the original 3DGS


def find_depths(photos: Sequence[Photo], root: Path, source: Path) -> list[Photo]:
    """The photos with their depth maps: those that the scene names (`depth_file_path`), else of `depths`.

    Args:
        photos: of a scene.
        root: where the folder of the photos is.
        source: the scene's own file, or its model's folder; `depth_params.json` is there.

    Raises InputError: there is no depth map at all, one that is named is missing, a PNG has no parameters.
    """
    paths = [None if photo.depth else find_map(root / FOLDER, photo.name, ENDINGS) for photo in photos]
    files = [photo.depth for photo in photos]
    if any(path and path.suffix != ".npy" for path in paths):
        parameters = _read_parameters((source if source.is_dir() else source.parent) / PARAMETERS)
    for index, (photo, path) in enumerate(zip(photos, paths, strict=True)):
        if path is not None:
            files[index] = DepthFile(path) if path.suffix == ".npy" else parameters.file(photo, path)
        elif photo.depth is not None and not photo.depth.path.is_file():
            raise InputError(
                f"{photo.depth.path}: no such file, expected the depth map of {photo.name}, whose frame "
                "names it as depth_file_path; put it there, or leave --depth-loss away"
            )
    if not any(files):
        raise InputError(
            f"--depth-loss: no depth map of the {len(photos)} photos, expected {root / FOLDER} with .npy or "
            ".png files named as the photos are, or depth_file_path in transforms.json; add them, or leave "
            "--depth-loss away"
        )
    return [replace(photo, depth=file) for photo, file in zip(photos, files, strict=True)]


class _Parameters:
    """Scale and offset of each photo: inverse depth = value / 65536 x scale + offset."""

    def __init__(self, path: Path, scales: dict[str, tuple[float, float]]) -> None:
        self.path, self.scales = path, scales
        positive = [scale for scale, _ in scales.values() if scale > 0]
        median = float(np.median(positive)) if positive else 0.0
        self.least, self.most = (factor * median for factor in UNRELIABLE)

    def file(self, photo: Photo, path: Path) -> DepthFile | None:
        """The photo's depth map; None, with a warning, where its scale is too far from the others'."""
        name = Path(photo.name).with_suffix("").as_posix()
        if name not in self.scales:
            raise InputError(
                f"{self.path}: no {name!r}, expected scale and offset of {path}; run 3DGS's "
                "utils/make_depth_scale.py again, or remove the depth map"
            )
        scale, offset = self.scales[name]
        if scale <= 0 or not self.least <= scale <= self.most:
            warnings.warn(
                f"{path}: left out, its scale {scale:g} is not within {self.least:g} to {self.most:g} "
                f"({self.path}, {UNRELIABLE[0]:g} to {UNRELIABLE[1]:g} times the median)",
                stacklevel=4,  # the caller of load_scene
            )
            return None
        return DepthFile(path, scale / 2**16, offset, inverse=True)


def _read_parameters(path: Path) -> _Parameters:
    remedy = "write it with 3DGS's utils/make_depth_scale.py, or give metric depths as .npy"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}), expected scale and offset of each PNG in "
            f"{FOLDER}; {remedy}"
        ) from None
    scales = {}
    for name, row in content.items() if isinstance(content, dict) else [("", content)]:
        values: list[Any] = [row.get(key) for key in ("scale", "offset")] if isinstance(row, dict) else [None]
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            found = shortened(repr(row), 80)
            raise InputError(f"{path}: {name!r} is {found}, expected numbers 'scale' and 'offset'; {remedy}")
        scales[name] = float(values[0]), float(values[1])
    return _Parameters(path, scales)


def add_depths(
    photos: Sequence[Photo],
    views: Sequence[View],
    resolution: int | None,
    threads: int | None,
    unit: float = 1.0,
) -> None:
    """Give views their depth maps, read in parallel; `resolution` is that which the photos were read at.

    `unit` is what 1 in the scene's files is in the world of the views: the scale of a normalised one.

    Raises InputError: a map cannot be read, is of another type, or has another aspect ratio than its photo.
    """
    pairs = [(photo, view) for photo, view in zip(photos, views, strict=True) if photo.depth is not None]
    for view, inverse in load_maps(load_inverse_depth, pairs, resolution, threads):
        assert inverse is not None
        view.inverse_depth = inverse / unit


def load_inverse_depth(way: Way, view: View) -> Tensor:
    """1 / z of a view of a photo, float32 [H, W], NaN where unknown.

    Each pixel has the mean of what it covers of the map, and is unknown where any of that is; under a lens
    that has to be undistorted it has the nearest value.
    """
    photo, file, camera = way.photo, way.photo.depth, view.camera
    assert file is not None
    values = way.upright(_read(file.path), file.path, "depth map").astype(np.float64)
    known = np.isfinite(values) & (values > 0)
    values = np.where(known, values, np.nan) * file.scale + file.offset
    inverse = values.clip(min=0) if file.inverse else 1 / values
    if is_distorted(photo.known_lens):
        inverse = _seen(inverse, photo, view)
    found = torch.from_numpy(inverse.astype(np.float32))
    if found.shape == (camera.height, camera.width):
        return found
    return F.adaptive_avg_pool2d(found[None], (camera.height, camera.width))[0]


def _read(path: Path) -> np.ndarray:
    """The values in a file. float32 [h, w]"""
    if path.suffix != ".npy":
        values = read_pixels(path)
        if values.ndim == 3:
            raise InputError(f"{path}: pixels of 8 bits, expected 16; write the depth map as a 16-bit PNG")
        return values.astype(np.float32)
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read as an array ({error}); write it with numpy.save") from None
    if values.dtype.kind not in "fiu" or values.squeeze().ndim != 2:
        found = f"{values.dtype} {list(values.shape)}"
        raise InputError(f"{path}: {found}, expected numbers [height, width]; write z in world units")
    return values.squeeze().astype(np.float32)


def _seen(values: np.ndarray, photo: Photo, view: View) -> np.ndarray:
    """Of values over a distorted photo, those nearest to what each pixel of its view sees. [H, W]"""
    import pycolmap

    lens, camera = photo.known_lens, view.camera
    distorted = pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=lens.params)
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    (fx, _, cx), (_, fy, cy), _ = camera.K.tolist()
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], axis=-1).reshape(-1, 3)
    height, width = values.shape
    pixels = distorted.img_from_cam(rays) * [width / lens.width, height / lens.height]
    column, row = np.floor(np.nan_to_num(pixels, nan=-1.0)).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = values[np.where(inside, row, 0), np.where(inside, column, 0)]
    return np.where(inside, found, np.nan).reshape(camera.height, camera.width)
