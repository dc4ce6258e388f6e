"""A sheet of the worst views: photo | render | error map in a row, with the name and numbers of each."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gsopt import pictures

_LARGEST = 480  # pixels of a picture's longest side; larger ones are reduced
_NARROWEST = 480  # pixels of the sheet, for its text
_TEXT = 22  # pixels of a line
_LABELS = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "l1": "L1 {:.4f}", "lpips": "LPIPS {:.4f}"}


def worst_first(views: Mapping[str, Mapping[str, float]], count: int) -> list[str]:
    """Names of the `count` views with the lowest PSNR, the lowest first; of equal ones by name."""
    return sorted(views, key=lambda name: (views[name]["psnr"], name))[:count]


def label(name: str, numbers: Mapping[str, float]) -> str:
    """One line of text about a view."""
    return "   ".join([name, *(text.format(numbers[key]) for key, text in _LABELS.items() if key in numbers)])


def save_sheet(rows: Iterable[tuple[str, Tensor, Tensor]], path: Path) -> None:
    """Write a PNG of rows of (label, photo, render), images [H, W, 3] 0..1, under the error's scale.

    Pictures of more than 480 pixels are reduced, the error map after it was computed.
    """
    strips = []
    for text, photo, render in rows:
        parts = (photo, render, pictures.error_map(render, photo))
        strips.append((text, pictures.side_by_side([_reduced(part) for part in parts])))
    width = max(_NARROWEST, *(strip.shape[1] for _, strip in strips))
    lines = [_scale(width)]
    for text, strip in strips:
        lines += [_line(text, width), strip]
    pictures.save_png(pictures.sheet(lines), path)


def _reduced(image: Tensor) -> Tensor:
    height, width = image.shape[:2]
    scale = min(1.0, _LARGEST / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    return F.interpolate(image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)


def _line(text: str, width: int, left: int = 4) -> Tensor:
    """[_TEXT, width, 3] black on white; what does not fit loses its beginning."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=14)
    while font.getlength(text) > width - left - 4 and len(text) > 4:
        text = "..." + text[4:]
    picture = Image.new("RGB", (width, _TEXT), "white")
    ImageDraw.Draw(picture).text((left, 2), text, fill="black", font=font)
    return torch.from_numpy(np.asarray(picture).copy()).float() / 255


def _scale(width: int) -> Tensor:
    """What the columns are, and the colours of the errors from 0 to where they are white."""
    bar = torch.linspace(0, pictures.ERROR_AT_WHITE, 120)[None, :, None].expand(_TEXT - 6, -1, 3)
    left = 224
    line = _line("photo | render | error, from 0", width)
    line[3 : 3 + bar.shape[0], left : left + 120] = pictures.error_map(bar, torch.zeros_like(bar))
    end = _line(f"to {pictures.ERROR_AT_WHITE:g} (mean of |R|, |G|, |B|)", width - left - 120)
    line[:, left + 120 :] = end
    return line
