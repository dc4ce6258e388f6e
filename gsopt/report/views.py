"""The views of a report: photo, render and error of the worst ones, as JPEGs inside the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gsopt import pictures
from gsopt.metrics import image_metrics

LARGEST = 400  # pixels of a picture's longest side
QUALITY = 82  # of the JPEGs


@dataclass(frozen=True)
class Seen:
    """A view as one run renders it; pictures are "data:" URLs."""

    photo: str
    render: str
    error: str
    psnr: float  # dB, of all pixels before they were reduced
    ssim: float


@dataclass(frozen=True)
class Row:
    """A view, and what each run makes of it: None for one that has no such view."""

    name: str
    seen: list[Seen | None]

    @property
    def psnr(self) -> float:
        """Mean over the runs, dB."""
        found = [each.psnr for each in self.seen if each is not None]
        return sum(found) / len(found)


def seen(image: Tensor, photo: Tensor, mask: Tensor | None = None) -> Seen:
    """A render and its photo, [H, W, 3] in 0..1 on the CPU; what `mask` [H, W] ignores does not count."""
    numbers = image_metrics(image, photo, mask)
    error = pictures.error_map(image, photo)
    return Seen(jpeg(photo), jpeg(image), jpeg(error), numbers["psnr"], numbers["ssim"])


def worst(runs: Sequence[Mapping[str, Seen]], count: int) -> list[Row]:
    """The `count` views with the lowest PSNR over the runs, lowest first; of equal ones by name."""
    names = dict.fromkeys(name for views in runs for name in views)
    rows = [Row(name, [views.get(name) for views in runs]) for name in names]
    return sorted(rows, key=lambda row: (row.psnr, row.name))[:count]


def jpeg(image: Tensor) -> str:
    """A picture [H, W, 3] as the URL of a JPEG, reduced to at most LARGEST pixels."""
    from PIL import Image

    picture = Image.fromarray(pictures.to_uint8(image).numpy(), "RGB")
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
