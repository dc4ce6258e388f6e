"""What `gsopt prepare` is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gsopt.errors import InputError

FEWEST = 3  # photos: a model of two has no redundancy that could show it wrong

CameraModel = Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"]


@dataclass
class PrepareConfig:
    """Settings of `gsopt prepare`."""

    images: Path | None = None
    """Folder of photos, with its subfolders."""
    video: Path | None = None
    """A video instead, of which frames are taken; pip install "gsopt[video]"."""
    output: Path | None = None
    """Folder to make the scene in; a second call with the same settings goes on where the first was ended."""
    frames: int = 150
    """Frames to take of a video: the sharpest of as many stretches of equal length."""
    matching: Literal["auto", "exhaustive", "sequential"] = "auto"
    """Which photos are compared: each with each, or with the next ones by name. auto: exhaustive for up to
    400 photos that are not of a video."""
    camera_model: CameraModel = "SIMPLE_RADIAL"
    """COLMAP's model of the lens."""
    single_camera: Literal["auto", "yes", "folder", "no"] = "auto"
    """Which photos are by one camera: auto, those of one size, camera and focal length (EXIF); yes, all;
    folder, those of a folder; no, each has its own."""
    feature_size: int = 1600
    """Longest side in pixels of the photos in which features are looked for."""
    max_features: int = 8192
    """Features of a photo, at most."""
    max_size: int | None = None
    """Longest side in pixels of the scene's photos, which are never enlarged; default: as they are."""
    seed: int = 0
    """Of everything random."""
    threads: int | None = None
    """Processors to use; default: all there are."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if (self.images is None) == (self.video is None):
            found = "neither" if self.images is None else "both"
            raise InputError(f"gsopt prepare: expected --images DIR or --video FILE, found {found}; give one")
        if self.output is None:
            raise InputError("--output: expected a folder to make the scene in, found none; give one")
        if self.images is not None and self.output.resolve().is_relative_to(self.images.resolve()):
            raise InputError(
                f"--output {self.output}: lies in the photos' folder {self.images}, where it would be taken "
                "for photos; give a folder outside"
            )
        for name, lowest in (("frames", FEWEST), ("feature_size", 64), ("max_features", 64), ("seed", 0)):
            if getattr(self, name) < lowest:
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise InputError(f"{flag}: expected {lowest} or more")
        for name in ("max_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
