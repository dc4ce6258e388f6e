"""Photos as they are given: which there are, which can be read, which way is up, which are by one camera."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gsopt.datasets.images import decode, open_image
from gsopt.datasets.photo_files import find_photos
from gsopt.errors import InputError
from gsopt.prepare.settings import FEWEST

if TYPE_CHECKING:
    from PIL.Image import Image

_AS_IT_IS = (".jpg", ".jpeg", ".png")  # files COLMAP reads; others are written anew as PNG
_ORIENTATION, _MAKE, _MODEL, _EXIF, _FOCAL, _FOCAL_35MM = 0x0112, 0x010F, 0x0110, 0x8769, 0x920A, 0xA405
_QUALITY = 97  # of turned photos, which are saved once more


@dataclass(frozen=True)
class ReadPhoto:
    """A photo that decodes: its name in the work folder, and what one camera's photos have in common.

    camera: width, height, make, model, focal length in mm and as that of 35 mm film.
    """

    name: str
    camera: tuple[Any, ...]
    turned: bool


def fingerprint(folder: Path) -> dict[str, Any]:
    """What tells a folder of photos from another: names and sizes of its files. Raises InputError: none."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise InputError(
            f"--images {folder}: no such directory (found {found}); give the folder of the photos"
        )
    sizes = [(name, (folder / name).stat().st_size) for name in find_photos(folder)]
    if not sizes:
        raise InputError(
            f"--images {folder}: no photos in it (JPEG, PNG, TIFF, WebP, BMP); give their folder"
        )
    digest = hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]
    return {"count": len(sizes), "bytes": sum(size for _, size in sizes), "digest": digest}


def read_photos(folder: Path, output: Path, threads: int, bar: tqdm) -> dict[str, Any]:
    """Decode every photo of `folder` and put it into `output`: a link, or anew where COLMAP needs it so.

    Anew: photos that their EXIF orientation turns, with transparency (now over black), of other formats.

    Returns:
        "photos": a :class:`ReadPhoto` as dict each, by name; "unreadable": reason by name.
    """

    def read(name: str) -> ReadPhoto | str:
        try:
            return _read(folder / name, output, name)
        except InputError as error:
            return str(error)
        finally:
            bar.update()

    names = find_photos(folder)
    with ThreadPoolExecutor(threads) as pool:
        results = dict(zip(names, pool.map(read, names), strict=True))
    return {
        "photos": [asdict(photo) for photo in results.values() if isinstance(photo, ReadPhoto)],
        "unreadable": {name: reason for name, reason in results.items() if isinstance(reason, str)},
    }


def check_enough(read: Mapping[str, Any], source: Path) -> None:
    """Raise InputError where fewer photos can be read than a model takes."""
    found, unreadable = len(read["photos"]), read["unreadable"]
    if found >= FEWEST:
        return
    lost = f" ({len(unreadable)} cannot be read: {next(iter(unreadable.values()))})" if unreadable else ""
    raise InputError(
        f"{source}: {found} photo{'s' * (found != 1)}{lost}, expected {FEWEST} or more; take more, "
        "around the scene"
    )


def _read(path: Path, output: Path, name: str) -> ReadPhoto:
    from PIL import ImageOps

    with open_image(path) as image:
        exif = image.getexif()
        optics = _optics(exif)
        turned = exif.get(_ORIENTATION, 1) != 1
        readable = path.suffix.lower() in _AS_IT_IS
        plain = readable and image.mode in ("RGB", "L") and not turned
        pixels = decode(path, image)
        if turned:
            pixels.info["exif"] = exif.tobytes()  # decoding may have left it out
            pixels = ImageOps.exif_transpose(pixels)
        if not readable:
            name = f"{name}.png"
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if plain:
            target.symlink_to(path.absolute())
        else:
            exif.pop(_ORIENTATION, None)
            save_photo(target, _opaque(pixels), quality=_QUALITY, exif=exif)
    return ReadPhoto(name, (*pixels.size, *optics), turned)


def _opaque(pixels: "Image") -> "Image":
    from PIL import Image

    if pixels.mode == "RGB":
        return pixels
    black = Image.new("RGBA", pixels.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, pixels).convert("RGB")


def _optics(exif: Any) -> tuple[Any, ...]:
    """Make, model and focal lengths as text and numbers; None for what the photo does not say."""
    more = exif.get_ifd(_EXIF)
    lengths = [more.get(tag) for tag in (_FOCAL, _FOCAL_35MM)]
    lengths = [None if value is None else round(float(value), 3) for value in lengths]
    return (*(str(exif[tag]).strip("\0 ") if tag in exif else None for tag in (_MAKE, _MODEL)), *lengths)


def save_photo(path: Path, image: "Image", quality: int = 95, **more: Any) -> None:
    """As JPEG without loss of resolution in colour, or in the format of the ending."""
    options = {"quality": quality, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    image.save(path, **options, **more)


def camera_groups(photos: Sequence[ReadPhoto], how: str) -> list[list[str]]:
    """Names of the photos by one camera, for each camera.

    Raises InputError where all are to be by one and are of several sizes.
    """
    if how == "yes" and len(sizes := sorted({photo.camera[:2] for photo in photos})) > 1:
        found = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
        raise InputError(
            f"--single-camera yes: photos of {len(sizes)} sizes ({found}), expected one size of them all; "
            "give --single-camera auto"
        )
    key = {
        "yes": lambda photo: (),
        "no": lambda photo: photo.name,
        "folder": lambda photo: (Path(photo.name).parent, photo.camera[:2]),
        "auto": lambda photo: photo.camera,
    }[how]
    groups: dict[Any, list[str]] = {}
    for photo in photos:
        groups.setdefault(key(photo), []).append(photo.name)
    return list(groups.values())


def as_photos(listed: Iterable[dict[str, Any]]) -> list[ReadPhoto]:
    """The reverse of `asdict`, also through JSON."""
    return [ReadPhoto(photo["name"], tuple(photo["camera"]), photo["turned"]) for photo in listed]
