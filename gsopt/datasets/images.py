"""Photos from disk: which folder, orientation, size, lens distortion; kept as uint8."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from gsopt.cameras import Camera
from gsopt.datasets.scene import View
from gsopt.errors import InputError
from gsopt.text import listed

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

_PINHOLE = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2),
    "PINHOLE": (0, 1, 2, 3),
}  # where fx, fy, cx, cy are in the parameters
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Lens:
    """Intrinsics as a file gives them: a COLMAP camera model, for photos of width x height pixels.

    source: where they are written, for error messages.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        focal = self.params[:1] if self.model.startswith(("SIMPLE", "RADIAL")) else self.params[:2]
        finite = all(np.isfinite(self.params))
        if self.width < 1 or self.height < 1 or not finite or min(focal) <= 0:
            raise InputError(
                f"{self.source}: {self.model} camera of {self.width}x{self.height} pixels with parameters "
                f"{list(self.params)}, expected a positive size and focal length; correct it"
            )


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo named by a scene's files, not read yet.

    name: unique, relative to the images folder. lens: None where only the missing file could tell its size.
    viewmat: [4, 4] float64 world-to-camera, OpenCV axes. split: "train", "test" or None (to be decided).
    mask, depth: files of what lies over it: `datasets.masks`, `datasets.depths`.
    alpha: "background" keeps it, "mask" leaves it out of the pixels, for the mask.
    """

    name: str
    path: Path
    lens: Lens | None
    viewmat: np.ndarray  # [4, 4]
    split: str | None = None
    mask: Path | None = None
    depth: "DepthFile | None" = None
    alpha: Literal["background", "mask"] = "background"

    @property
    def known_lens(self) -> Lens:
        """The lens, of a photo whose file is there."""
        assert self.lens is not None
        return self.lens


@dataclass(frozen=True)
class DepthFile:
    """A depth map: `scale` x value + `offset` is the depth in world units, or where `inverse`, 1 / depth."""

    path: Path
    scale: float = 1.0
    offset: float = 0.0
    inverse: bool = False


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as stored, from the file's header; InputError if it is not an image."""
    with open_image(path) as image:
        return image.size


def is_distorted(lens: Lens) -> bool:
    """Whether photos by this lens have to be undistorted."""
    return lens.model not in _PINHOLE


def folder_beside(folder: Path, source: Path) -> Path:
    """Where copies of the photos' folder, masks and depth maps are looked for: where that folder is.

    Where the photos stand with the file that names them it is their own: what is beside is another scene.
    """
    return folder if folder == source.parent else folder.parent


def locate(
    photos: Sequence[Photo], folder: Path, source: Path, resolution: int | None, images: str | None
) -> list[Photo]:
    """The photos that are there, with paths in the folder chosen by `resolution` and `images`.

    folder: the photos' names are relative to it. source: the file that names them, for messages.

    Raises InputError: no folder `images`, or none of the photos is there. One warning lists those that are
    not.
    """
    beside = folder_beside(folder, source)
    if beside == folder:
        resolution = None
    chosen = _choose_folder(folder, beside, photos, resolution, images)
    return _drop_missing([replace(photo, path=chosen / photo.name) for photo in photos], chosen, source)


def _choose_folder(
    folder: Path, beside: Path, photos: Sequence[Photo], resolution: int | None, images: str | None
) -> Path:
    """The folder to read photos from: `images` in `beside`, or the smallest copy that is large enough.

    Copies are `folder`_2, _4, _8. A copy is taken if it has all the photos that `folder` has, none of them
    with a longest side below `resolution` pixels.
    """
    if images is not None:
        chosen = beside / images
        if not chosen.is_dir():
            there = sorted(path.name for path in beside.iterdir() if path.is_dir())
            raise InputError(
                f"{chosen}: no such folder, named by --images; choose one of: {', '.join(there) or 'none'}"
            )
        return chosen
    if resolution is None:
        return folder
    names = [photo.name for photo in photos if (folder / photo.name).is_file()]
    for factor in (8, 4, 2):
        copy = folder.with_name(f"{folder.name}_{factor}")
        complete = names and all((copy / name).is_file() for name in names)
        if complete and min(max(image_size(copy / name)) for name in names) >= resolution:
            return copy
    return folder


def _drop_missing(photos: Sequence[Photo], folder: Path, source: Path) -> list[Photo]:
    found = [photo for photo in photos if photo.lens is not None and photo.path.is_file()]
    missing = [photo.name for photo in photos if photo.lens is None or not photo.path.is_file()]
    if not found:
        raise InputError(
            f"{folder}: none of the {len(photos)} photos named in {source} is there "
            f"(the first is {missing[0]}); put them there, or name their folder with --images"
        )
    if missing:
        warnings.warn(
            f"{source}: {len(missing)} of {len(photos)} photos are not in {folder} and are left out: "
            f"{listed(missing)}",
            stacklevel=4,  # the caller of load_scene
        )
    return found


def load_view(photo: Photo, *, resolution: int | None = None) -> View:
    """Decode one photo, undistort it, and reduce it to at most `resolution` pixels on its longest side.

    The photo may have another size than its lens if the ratio of the sides is the same: the intrinsics are
    scaled. It is turned by its EXIF orientation only if it fits its lens just so: COLMAP and instant-ngp
    ignore that tag. Straight alpha is kept unless all of it is opaque. A photo much larger than needed is
    undistorted at twice its final size, then reduced to it.

    Raises InputError: the file cannot be read or does not decode, or its aspect ratio is not the lens's.
    """
    with open_image(photo.path) as image:
        turn = quarter_turn(photo, image)
        shrink_in_decoder(image, resolution)
        image = decode(photo.path, image)
    if photo.alpha == "mask":
        image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    if is_distorted(photo.known_lens):
        image = _reduce(image, fitted(*image.size, 2 * resolution if resolution else None))
    pixels, K = undistort(photo.known_lens, image)
    return _view(photo, pixels, K, resolution)


def _view(photo: Photo, image: "Image", K: np.ndarray, resolution: int | None) -> View:
    camera = Camera(
        name=photo.name,
        width=image.width,
        height=image.height,
        K=torch.tensor(K, dtype=torch.float32),
        viewmat=torch.tensor(photo.viewmat, dtype=torch.float32),
    )
    size = fitted(*image.size, resolution)
    pixels = np.array(_reduce(image, size))  # [H, W, 3 or 4]
    if pixels.shape[-1] == 4 and pixels[..., 3].min() == 255:
        pixels = pixels[..., :3].copy()
    return View(camera.resized(*size), torch.from_numpy(pixels), photo.path)


def open_image(path: Path) -> "Image":
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise undecodable(path, error) from None


def shrink_in_decoder(image: "Image", resolution: int | None) -> None:
    """Let the JPEG decoder divide the size by 8, 4 or 2 exactly, to no less than twice the final one."""
    width, height = image.size
    target = min(fitted(width, height, resolution))
    for factor in (8, 4, 2):
        small = (width // factor, height // factor)
        if width % factor == height % factor == 0 and min(small) >= 2 * target:
            image.draft(None, small)
            return


def decode(path: Path, image: "Image") -> "Image":
    """Pixels as mode RGB or RGBA."""
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{path}: pixels of mode {image.mode}, expected 8 bits per channel; convert the photo"
        )
    has_alpha = "A" in image.mode or "transparency" in image.info
    mode = "RGBA" if has_alpha else "RGB"
    try:
        image.load()
        return image if image.mode == mode else image.convert(mode)  # which would copy it
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise undecodable(path, error) from None


def undecodable(path: Path, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"{path}: cannot be read ({error.strerror}); check its permissions and its disk")
    reason = " ".join(str(error).split()).replace(str(path), "it").replace(repr(str(path)), "it")
    return InputError(
        f"{path}: does not decode as an image ({reason}); replace it, or take it out of the scene"
    )


def quarter_turn(photo: Photo, image: "Image") -> "Transpose | None":
    """The transposition that makes the photo fit its lens: None or the EXIF tag's, else InputError."""
    from PIL.Image import Transpose

    lens = (photo.known_lens.width, photo.known_lens.height)
    if same_ratio(image.size, lens):
        return None
    turns = {5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    turn = turns.get(image.getexif().get(_EXIF_ORIENTATION, 0))
    if turn is not None and same_ratio(image.size[::-1], lens):
        return turn
    raise InputError(
        f"{photo.path}: photo of {image.width}x{image.height} pixels, expected the aspect ratio of its "
        f"camera, {lens[0]}x{lens[1]} ({photo.known_lens.source}); "
        "use the photos that the camera was calibrated with, uncropped"
    )


def same_ratio(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other times one factor, both sides rounded up, or down, or to the nearest."""
    (w, h), (W, H) = sorted((size, other))
    return abs(w / W - h / H) < 1 / min(W, H)


def fitted(width: int, height: int, longest: int | None) -> tuple[int, int]:
    """The size with that longest side and the same ratio; never larger than the given one."""
    if longest is None or longest >= max(width, height):
        return width, height
    factor = longest / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _reduce(image: "Image", size: tuple[int, int]) -> "Image":
    from PIL.Image import Resampling

    if image.size == size:
        return image
    return image.resize(
        size, Resampling.LANCZOS, reducing_gap=3.0
    )  # Pillow premultiplies alpha while it resizes


def undistort(lens: Lens, image: "Image") -> tuple["Image", np.ndarray]:
    """The photo as a pinhole camera takes it, cropped to what the lens saw, and that camera's K [3, 3].

    Of mode RGB, RGBA or L.
    """
    if not is_distorted(lens):
        fx, fy, cx, cy = (lens.params[i] for i in _PINHOLE[lens.model])
        x, y = image.width / lens.width, image.height / lens.height
        return image, np.array([[fx * x, 0.0, cx * x], [0.0, fy * y, cy * y], [0.0, 0.0, 1.0]])

    import pycolmap
    from PIL import Image

    camera = pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=lens.params)
    camera.rescale(*image.size)
    try:
        straighten = partial(pycolmap.undistort_image, pycolmap.UndistortCameraOptions())
        if image.mode in ("RGB", "L"):
            bitmap, pinhole = straighten(pycolmap.Bitmap.from_array(np.asarray(image)), camera)
            return Image.fromarray(bitmap.to_array()), pinhole.calibration_matrix()
        premultiplied = np.asarray(image.convert("RGBa"))  # [H, W, 4]
        color, pinhole = straighten(pycolmap.Bitmap.from_array(premultiplied[..., :3].copy()), camera)
        alpha, _ = straighten(pycolmap.Bitmap.from_array(premultiplied[..., 3].copy()), camera)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{lens.source}: {lens.model} camera cannot be undistorted ({error}); undistort with COLMAP"
        ) from None
    pixels = np.concatenate([color.to_array(), alpha.to_array()[..., None]], axis=2)
    return Image.frombytes("RGBa", pixels.shape[1::-1], pixels.tobytes()).convert(
        "RGBA"
    ), pinhole.calibration_matrix()
