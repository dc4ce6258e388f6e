"""Smaller copies of a scene's photos beside them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from gsopt.prepare.photos import save_photo

FACTORS = (2, 4, 8)


def make_copies(scene: Path, names: Sequence[str], threads: int, bar: tqdm) -> None:
    """images_2, images_4 and images_8 of scene/images, the sides divided and rounded."""

    def reduce(name: str) -> None:
        from PIL import Image
        from PIL.Image import Resampling

        with Image.open(scene / "images" / name) as image:
            image.load()
        for factor in FACTORS:
            path = scene / f"images_{factor}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            size = tuple(max(1, round(side / factor)) for side in image.size)
            save_photo(path, image.resize(size, Resampling.LANCZOS, reducing_gap=3.0))
        bar.update()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(reduce, names))
