"""Which files are photos."""

import os
from pathlib import Path

ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".heic", ".heif", ".avif", ".dng")
)  # also of formats that cannot be read here: a photo is told, not passed over
UNFINISHED = ".prepare"  # in the folder of a scene that `gsopt prepare` has not finished


def is_photo(path: Path) -> bool:
    """Whether the name is that of a photo, in capitals too; hidden files are none."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def find_photos(folder: Path) -> list[str]:
    """Names of the photos in a folder and its subfolders (hidden ones not), relative to it, sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place, name) for name in files)
        found += [path.relative_to(folder).as_posix() for path in paths if is_photo(path)]
    return sorted(found)
