"""How soon training begins on a scene of many photos, and how much memory it takes.

python tests/many_photos.py DIR 1000 1600 1066
python tests/large_scene.py DIR                 # floor, then a process for each of the three ways

The floor is one decode of all photos by Pillow, on all cores: into nothing, and into arrays that are kept. A
way is told by its seconds from the start of the process to the end of the first step, those that loading
took, and the peak of its memory after all views were taken at each resolution of a run, and the test views
were measured.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BEGUN = time.perf_counter()


def floor(scene: Path, keep: bool) -> float:
    """Seconds that Pillow takes to decode all photos of a scene, a thread for each core."""
    import numpy as np
    from PIL import Image

    def decode(path: Path) -> np.ndarray | None:
        with Image.open(path) as image:
            image.load()
            return np.array(image) if keep else None

    paths = sorted((scene / "images").iterdir())
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, paths))
    return time.perf_counter() - begin


def measure(scene: Path, cache: str, tests: bool = True) -> dict[str, float]:
    """In this process: seconds to the first step and of loading, bytes of photos and of the peak."""
    from gsopt.config import TrainConfig
    from gsopt.device import peak_memory
    from gsopt.trainer import Trainer

    config = TrainConfig(scene=scene, resolution=1600, iterations=30_000, cache=cache, device="cpu")
    trainer = Trainer(config)
    trainer.train_step()
    seconds = time.perf_counter() - BEGUN
    for factor in (4, 2, 1):
        for number in range(len(trainer.scene.train)):
            trainer.feed.take(number, factor, trainer.background)
    if tests:
        trainer.evaluate()
    views = [*trainer.scene.train, *trainer.scene.test]
    return {
        "first_step": seconds,
        "load": trainer.clock.read()["load"],
        "photos_bytes": sum(view.image.numel() for view in views),
        "peak_bytes": peak_memory(trainer.device),
    }


def in_a_process(scene: Path, cache: str, **environment: str) -> dict[str, float]:
    """`measure`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(scene), cache],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main(scene: Path) -> None:
    """Print the table."""
    for keep, what in ((False, "into nothing"), (True, "into arrays that are kept")):
        print(f"decode of all photos by Pillow, {what}: {floor(scene, keep):.1f} s", flush=True)
    print("| | load | to the first step | photos | peak memory |\n|---|---|---|---|---|")
    for name, cache in (("memory", "memory"), ("disk, first run", "disk"), ("disk, later", "disk")):
        row = in_a_process(scene, cache)
        sizes = " | ".join(f"{row[key] / 2**30:.2f} GiB" for key in ("photos_bytes", "peak_bytes"))
        print(f"| {name} | {row['load']:.1f} s | {row['first_step']:.1f} s | {sizes} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
