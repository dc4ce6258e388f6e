"""Pictures a person looks at: renders as PNG, photo | render | error, a sheet of several views.

Images are float tensors [H, W, 3] with values in 0..1.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

GAP = 4  # pixels of white between the pictures of a sheet
ERROR_AT_WHITE = 0.5  # mean absolute difference over the channels that is drawn white
# matplotlib's viridis at 0, 1/8, ... 1: van der Walt and Smith 2015
_VIRIDIS = [
    [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
    [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
]  # fmt: skip


def to_uint8(image: Tensor) -> Tensor:
    """[H, W, 3] uint8 on the CPU, rounded."""
    return (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def png(image: Tensor) -> bytes:
    """One image as an 8-bit PNG, written fast rather than small."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(to_uint8(image).numpy(), "RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def save_png(image: Tensor, path: Path) -> None:
    """One image [H, W, 3], or [H, W, 4] with straight alpha, as an 8-bit PNG; its folder is made."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "RGBA" if image.shape[-1] == 4 else "RGB"
    Image.fromarray(to_uint8(image).numpy(), mode).save(path, compress_level=3)


def grey(values: Tensor) -> Tensor:
    """[H, W, 3] of one value 0..1 for each pixel: 0 is black, 1 white."""
    return values[..., None].expand(-1, -1, 3)


def depth_picture(depth: Tensor, alpha: Tensor, near: float, far: float) -> Tensor:
    """[H, W, 3] of depths [H, W]: yellow at `near` through green and blue to violet at `far`, fading to black
    where `alpha` [H, W] does. The colours are those of viridis, whose brightness falls evenly."""
    colors = torch.tensor(_VIRIDIS, device=depth.device) / 255  # [9, 3]
    place = ((far - depth) / max(far - near, 1e-12)).clamp(0, 1) * (len(colors) - 1)
    below = place.floor().clamp(max=len(colors) - 2)
    color = torch.lerp(colors[below.long()], colors[below.long() + 1], (place - below)[..., None])
    return color * alpha[..., None]


def error_map(image: Tensor, target: Tensor) -> Tensor:
    """[H, W, 3] of differences: black for none, through red and yellow to white for 0.5."""
    heat = (image - target).abs().mean(dim=-1) / ERROR_AT_WHITE * 3  # [H, W], 0..3
    return torch.stack([heat, heat - 1, heat - 2], dim=-1).clamp(0, 1)


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Images of one height next to each other, with a white gap: [H, sum of W + gaps, 3]."""
    gap = torch.ones(images[0].shape[0], GAP, 3, device=images[0].device)
    row = [part for image in images for part in (gap, image)]
    return torch.cat(row[1:], dim=1)


def compare(render: Tensor, photo: Tensor) -> Tensor:
    """photo | render | error, side by side."""
    return side_by_side([photo, render, error_map(render, photo)])


def sheet(rows: Sequence[Tensor]) -> Tensor:
    """Pictures below each other, white between and beside them: [sum of H + gaps, largest W, 3]."""
    width = max(row.shape[1] for row in rows)
    lines: list[Tensor] = []
    for row in rows:
        height, missing = row.shape[0], width - row.shape[1]
        lines.append(torch.ones(GAP, width, 3, device=row.device))
        lines.append(torch.cat([row, torch.ones(height, missing, 3, device=row.device)], dim=1))
    return torch.cat(lines[1:], dim=0)
