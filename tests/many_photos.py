"""A scene of any number of photos, large and different, in seconds: a COLMAP model in text, photos of noise.

python tests/many_photos.py FOLDER [COUNT [WIDTH HEIGHT [MODEL]]]
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

LENSES = {"PINHOLE": "", "OPENCV": " -0.05 0.01 0.001 -0.001"}  # with what follows fx fy cx cy


def write_many(folder: Path, count: int, width: int, height: int, lens: str = "PINHOLE") -> Path:
    """Cameras on a ring around 2,000 points, each with another cut of one picture."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    focal = 0.9 * width
    (model / "cameras.txt").write_text(
        f"1 {lens} {width} {height} {focal} {focal} {width / 2} {height / 2}{LENSES[lens]}\n"
    )
    lines = []
    for index in range(count):
        half = np.pi * index / count
        lines += [f"{index + 1} {np.cos(half)} 0 {np.sin(half)} 0 0 0 4 1 {index:05d}.jpg", ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    random = np.random.default_rng(0)
    rows = zip(random.normal(size=(2000, 3)), random.integers(0, 256, (2000, 3)), strict=True)
    (model / "points3D.txt").write_text(
        "".join(f"{i + 1} {' '.join(map(str, [*xyz, *rgb]))} 0\n" for i, (xyz, rgb) in enumerate(rows))
    )
    picture = noise(2 * width, 2 * height)

    def save(index: int) -> None:
        x, y = index * 37 % width, index * 23 % height
        picture.crop((x, y, x + width, y + height)).save(folder / "images" / f"{index:05d}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(save, range(count)))
    return folder


def noise(width: int, height: int) -> Image.Image:
    """Noise of every scale, falling with frequency as in photos."""
    random, total = np.random.default_rng(1), np.zeros((height, width, 3), np.float32)
    for level in range(12):
        small = random.normal(size=(max(2, height >> level), max(2, width >> level), 3)).astype(np.float32)
        bands = [
            Image.fromarray(small[..., band]).resize((width, height), Image.BICUBIC) for band in range(3)
        ]
        total += 2.0 ** (0.2 * (level - 11)) * np.stack(bands, axis=-1)
    total = 127 + 50 * total / total.std()
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    count, width, height = (int(number) for number in (rest + ["1000", "1600", "1066"][len(rest) :])[:3])
    write_many(Path(folder), count, width, height, *rest[3:])
