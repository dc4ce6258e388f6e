"""Regions: which Gaussians a text such as `box:0,0,0,1,1,1` means.

    box:x0,y0,z0,x1,y1,z1   centres inside a box or on its border; inf and -inf leave a side open
    sphere:x,y,z,r          centres at most r from a point
    FILE.npy                a mask, bool [N], or the numbers of rows, integers [K]
    FILE.ply                centres that are points of this PLY, such as a crop of the model's own
    outside:REGION          all that REGION is not

Lengths are world units. The complement is a word, because shells read most signs before we do.
"""

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsopt.datasets.point_files import load_positions
from gsopt.errors import InputError

OUTSIDE = "outside:"
NUMBERS = {"box": "x0,y0,z0,x1,y1,z1", "sphere": "x,y,z,r"}
FILES = (".npy", ".ply")
FORMS = f"box:{NUMBERS['box']}, sphere:{NUMBERS['sphere']}, FILE.npy, FILE.ply or {OUTSIDE}REGION"


@dataclass(frozen=True)
class Region:
    """One region, from :func:`parse_region`. `str()` of it is a text that means the same."""

    kind: str  # "box", "sphere" or "file"
    numbers: tuple[float, ...] = ()  # of the shape
    path: Path | None = None  # of the file
    outside: bool = False
    flag: str = field(default="--lock", compare=False, repr=False)  # that it was given with, for messages

    @property
    def file(self) -> Path:
        """The path of a region that is a file."""
        assert self.path is not None
        return self.path

    def __str__(self) -> str:
        numbers = ",".join(repr(value).removesuffix(".0") for value in self.numbers)
        inside = str(self.path) if self.path else f"{self.kind}:{numbers}"
        return f"{OUTSIDE if self.outside else ''}{inside}"

    def absolute(self) -> "Region":
        """The same with the path of its file from the root."""
        return replace(self, path=self.path and self.path.absolute())

    def rows(self, xyz: Tensor) -> Tensor:
        """Mask of the Gaussians that are in the region. [N] bool, on the CPU

        A box compares float32 with float32, a sphere measures in double. A centre is a point of a PLY where
        its three float32 are the same to the bit (0 and -0 are one number). Row numbers are those of `xyz`.

        Args:
            xyz: centres, world units. [N, 3]

        Raises:
            InputError: the file cannot be used, or nothing is in the region.
        """
        centres = xyz.detach().to("cpu", torch.float32)
        if self.kind == "box":
            low, high = torch.tensor(self.numbers, dtype=torch.float32, device="cpu").view(2, 3)
            mask = ((centres >= low) & (centres <= high)).all(dim=1)
        elif self.kind == "sphere":
            *centre, radius = self.numbers
            apart = centres.double() - torch.tensor(centre, dtype=torch.float64, device="cpu")
            mask = apart.square().sum(dim=1) <= radius * radius
        elif self.file.suffix.lower() == ".npy":
            mask = _array_rows(self, len(centres))
        else:
            mask = _ply_rows(self, centres.numpy())
        mask = mask != self.outside
        if not mask.any():
            raise InputError(
                f"{self.flag} {self}: no Gaussian is there; {_extent(centres)}; check the region"
            )
        return mask


def parse_region(text: str, flag: str = "--lock") -> Region:
    """The region that a text means; its file, if it has one, is not read yet.

    `flag` is where the text is from, for messages.

    Raises:
        InputError: not a region, numbers too few or too many, no numbers, or a shape that nothing can be in;
            the message quotes the text.
    """
    outside = text.startswith(OUTSIDE)
    inside = text.removeprefix(OUTSIDE)
    kind, colon, values = inside.partition(":")
    if colon and kind in NUMBERS:
        numbers = _checked(flag, text, kind, _numbers(flag, text, kind, values))
        return Region(kind, numbers, outside=outside, flag=flag)
    path = Path(inside)
    if path.suffix.lower() not in FILES:
        raise InputError(f"{flag} {text}: not a region; expected {FORMS}")
    return Region("file", path=path, outside=outside, flag=flag)


def _numbers(flag: str, text: str, kind: str, values: str) -> tuple[float, ...]:
    names = NUMBERS[kind].split(",")
    words = values.split(",")
    if len(words) != len(names):
        raise InputError(
            f"{flag} {text}: expected {len(names)} numbers {kind}:{NUMBERS[kind]}, found {len(words)}"
        )
    numbers = []
    for name, word in zip(names, words, strict=True):
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
        if math.isnan(numbers[-1]):
            raise InputError(f"{flag} {text}: {name}: expected a number, found {word!r}")
    return tuple(numbers)


def _checked(flag: str, text: str, kind: str, numbers: tuple[float, ...]) -> tuple[float, ...]:
    if kind == "box":
        for axis, low, high in zip("xyz", numbers[:3], numbers[3:], strict=True):
            if high < low:
                raise InputError(
                    f"{flag} {text}: {axis}1: expected at least {axis}0 = {low:g}, found {high:g}; swap them"
                )
    elif not all(map(math.isfinite, numbers)) or numbers[-1] <= 0:
        raise InputError(f"{flag} {text}: expected a finite centre and a radius above 0, in world units")
    return numbers


def _array_rows(region: Region, count: int) -> Tensor:
    """Mask of the rows that a .npy file names. [count]"""
    array = _load_array(region)
    if array.dtype == bool:
        if array.shape != (count,):
            raise InputError(
                f"{region.flag} {region}: expected a mask [{count}], one entry a Gaussian, "
                f"found {list(array.shape)}; make it from the model that training starts with"
            )
        return torch.from_numpy(array)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{region.flag} {region}: expected a mask (bool [N]) or row numbers (integers [K]), "
            f"found {array.dtype} {list(array.shape)}; save it with that type"
        )
    if array.size and (array.min() < 0 or array.max() >= count):
        raise InputError(
            f"{region.flag} {region}: expected rows 0 to {count - 1}, found {array.min()} to {array.max()}; "
            "take them from the model that training starts with"
        )
    if len(np.unique(array)) != len(array):
        raise InputError(f"{region.flag} {region}: found a row number twice; a mask must be saved as bool")
    mask = torch.zeros(count, dtype=torch.bool, device="cpu")
    mask[torch.from_numpy(array.astype(np.int64))] = True
    return mask


def _load_array(region: Region) -> np.ndarray:
    try:
        with region.file.open("rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{region.flag} {region}: no such file; give the path of a .npy file") from None
    except OSError as error:
        raise InputError(
            f"{region.flag} {region}: cannot be read ({error.strerror or error}); check it"
        ) from None
    except (ValueError, EOFError, MemoryError) as error:
        raise InputError(
            f"{region.flag} {region}: not an array of numpy ({error}); write it with np.save"
        ) from None


def _ply_rows(region: Region, centres: np.ndarray) -> Tensor:
    """Mask of the centres that are points of a PLY. [N]"""
    points = load_positions(region.file)
    both = np.concatenate([centres, points]) + np.float32(0)  # -0 + 0 is 0
    _, place = np.unique(both.view(np.int32), axis=0, return_inverse=True)
    place = place.reshape(-1)
    of_model, of_file = place[: len(centres)], place[len(centres) :]
    lost = int((~np.isin(of_file, of_model)).sum())
    if 0 < lost < len(points):
        warnings.warn(
            f"{region.flag} {region}: {lost:,} of its {len(points):,} points are no Gaussian's centre",
            stacklevel=2,
        )
    return torch.from_numpy(np.isin(of_model, of_file))


def _extent(centres: Tensor) -> str:
    if not len(centres):
        return "the model is empty"
    low, high = centres.amin(dim=0).tolist(), centres.amax(dim=0).tolist()
    spans = (f"{axis} {a:g} to {b:g}" for axis, a, b in zip("xyz", low, high, strict=True))
    return f"the {len(centres):,} centres are in {', '.join(spans)}"
