"""Damaged copies of real files, given to the readers in a process of its own.

    python tests/fuzzing.py FOLDER SEED FIRST END [CASE ...]

For each number in FIRST..END and each case one copy of the case's file is damaged and read. The damage
follows from seed, case and number alone. What is not well is printed, one JSON object a line. Well is: a
value comes back, or an InputError of one line that names the file. Not well is any other exception, and an
error that came from asking for too much memory: the process may use HEADROOM bytes more than it had at the
start. If it crashes, or a file takes over SECONDS, it dies, and the file `FOLDER/now` says where.
"""

import json
import random
import re
import resource
import shutil
import signal
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzzing_splats

HEADROOM = 1 << 30  # bytes
SECONDS = 10  # of the processor, for one file of a few kilobytes
EXTREME = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")
NUMBERS = (b"-1", b"0", b"1e999", b"nan", b"-inf", b"99999999999", b"18446744073709551615", b"4e9", b"", b"x")


@dataclass(frozen=True)
class Case:
    """One kind of file.

    build: makes whole files in a folder and returns the one to damage.
    read: reads that; its path is given.
    """

    build: Callable[[Path], Path]
    read: Callable[[Path], Any]


def ply(kind: str, byte_order: str = "<", text: bool = False) -> Callable[[Path], Path]:
    """A point cloud or a splat of 20 rows."""

    def build(folder: Path) -> Path:
        import numpy as np
        from plyfile import PlyData, PlyElement

        rest = [f"f_rest_{i}" for i in range(9)]
        splat = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
        splat += [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]
        dtype = [(name, "f4") for name in splat]
        if kind == "points":
            dtype = [*((name, "f4") for name in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
        rows = np.zeros(20, dtype)
        for i, (name, _) in enumerate(dtype):
            rows[name] = np.arange(20) + i
        file = folder / f"{kind}.ply"
        PlyData(
            [PlyElement.describe(rows, "vertex")], text=text, byte_order="=" if text else byte_order
        ).write(file)
        return file

    return build


def numpy_points(name: str) -> Callable[[Path], Path]:
    """20 coloured points in a file of numpy: .npy with columns or with fields, .npz plain or compressed."""

    def build(folder: Path) -> Path:
        import numpy as np

        xyz = np.arange(60, dtype=np.float64).reshape(20, 3)
        rgb = np.arange(60, dtype=np.uint8).reshape(20, 3)
        file = folder / name
        if name == "fields.npy":
            np.save(file, np.zeros(20, [*((axis, "f4") for axis in "xyz"), *((c, "u1") for c in "rgb")]))
        elif name.endswith(".npy"):
            np.save(file, np.concatenate([xyz, rgb / 255], axis=1))
        else:
            (np.savez_compressed if name.startswith("small") else np.savez)(file, xyz=xyz, rgb=rgb)
        return file

    return build


def colmap(name: str, *, text: bool) -> Callable[[Path], Path]:
    """One of the files of a model of 3 images with 2D points and 5 points with tracks."""

    def build(folder: Path) -> Path:
        import scenes

        scenes.write_colmap(folder / "scene", views=3, points=5, text=text)
        return folder / "scene" / "sparse" / "0" / name

    return build


def read_colmap(path: Path) -> None:
    from gsopt.datasets.colmap import read_model

    _, points = read_model(path.parent, path.parents[2] / "images")
    points()


def transforms(folder: Path) -> Path:
    import scenes

    return scenes.write_transforms(folder / "scene") / "transforms.json"


def read_transforms(path: Path) -> None:
    from gsopt.datasets.transforms import find_points, read_transforms

    read_transforms(path)
    if points := find_points(path):
        points(None)


def a_checkpoint(folder: Path) -> Path:
    import torch

    from gsopt import checkpoint

    state = {
        "step": 3,
        "model": {"xyz": torch.rand(20, 3)},
        "order": [1, 2],
        "config": {"seed": 0, "a": None},
    }
    path = checkpoint.path_of(folder, 3)
    checkpoint.save(path, state)
    return path


def read_checkpoint(path: Path) -> None:
    from gsopt import checkpoint

    checkpoint.load(path)


def run_config(folder: Path) -> Path:
    from gsopt.config import TrainConfig
    from gsopt.rundir import write_json

    write_json(
        folder / "config.json", TrainConfig(scene=Path("scene"), output=folder).resolved("cpu").to_json()
    )
    return folder / "config.json"


def read_config(path: Path) -> None:
    from gsopt.config import TrainConfig

    TrainConfig.of_run(path.parent).check()


def read_points(path: Path) -> None:
    from gsopt.datasets.point_files import load_points

    load_points(path)


def read_splat(path: Path) -> None:
    from gsopt.datasets.ply import read_splat

    read_splat(path)


CASES = {
    "points.ply": Case(ply("points"), read_points),
    "points.ply big": Case(ply("points", ">"), read_points),
    "points.ply text": Case(ply("points", text=True), read_points),
    **{
        name: Case(numpy_points(name), read_points)
        for name in ("points.npy", "fields.npy", "points.npz", "small.npz")
    },
    "splat.ply": Case(ply("splat"), read_splat),
    "splat.ply text": Case(ply("splat", text=True), read_splat),
    "splat.ply as points": Case(ply("splat"), read_points),
    **{
        f"{name}{suffix}": Case(colmap(f"{name}{suffix}", text=suffix == ".txt"), read_colmap)
        for name, suffix in (
            *((name, ".bin") for name in ("cameras", "images", "points3D", "rigs", "frames")),
            *((name, ".txt") for name in ("cameras", "images", "points3D")),
        )
    },
    "transforms.json": Case(transforms, read_transforms),
    "checkpoint": Case(a_checkpoint, read_checkpoint),
    "config.json": Case(run_config, read_config),
    **{name: Case(*kind) for name, kind in fuzzing_splats.KINDS.items()},
}


def damage(content: bytes, draw: random.Random) -> bytes:
    """A copy with one kind of damage or two."""
    for _ in range(draw.choice((1, 1, 1, 2))):
        content = draw.choice(DAMAGES)(content, draw)
    return content


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """A few bits the other way round."""
    out = bytearray(content)
    for _ in range(draw.randint(1, 8) if out else 0):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def extreme(content: bytes, draw: random.Random) -> bytes:
    """Some bytes, often where a header is, all ones, all zeros or a large number."""
    size, reach = draw.choice((1, 2, 4, 8)), draw.choice((24, 512, len(content)))
    at = draw.randrange(max(1, min(len(content), reach)))
    number = draw.choice(EXTREME) * size
    return content[:at] + number + content[at + size :]


def moved(content: bytes, draw: random.Random) -> bytes:
    """A slice left out, or put in twice."""
    first, last = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + (content[first:last] * 2 if draw.random() < 0.5 else b"") + content[last:]


def renumbered(content: bytes, draw: random.Random) -> bytes:
    """A number that is written in digits is another one."""
    found = list(re.finditer(rb"-?\d+(\.\d*)?(e-?\d+)?", content))
    if not found:
        return flipped(content, draw)
    match = draw.choice(found[: draw.choice((4, len(found)))])
    return content[: match.start()] + draw.choice(NUMBERS) + content[match.end() :]


DAMAGES = (truncated, flipped, extreme, moved, renumbered)


def trouble_with(case: Case, path: Path) -> str | None:
    """What is not well about how `path` is read."""
    from gsopt.errors import InputError

    try:
        case.read(path)
    except InputError as error:
        text = str(error)
        if isinstance(error.__cause__ or error.__context__, MemoryError):
            return f"asked for too much memory: {text}"
        if "\n" in text or len(text) > 1000:
            return f"not one line of at most 1000 letters: {text!r}"
        named = (path.name, path.parent.name, str(path.parent))
        return None if any(name in text for name in named) or "--" in text else f"names no file: {text}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(folder: Path, seed: int, first: int, end: int, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    built = {}
    for name in names:
        home = folder / str(zlib.crc32(name.encode()))
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        path = CASES[name].build(home)
        assert (trouble := trouble_with(CASES[name], path)) is None, f"{name}, undamaged: {trouble}"
        built[name] = path, path.read_bytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))
    for number in range(first, end):
        for name, (path, whole) in built.items():
            content = damage(whole, random.Random(f"{seed} {name} {number}"))
            path.write_bytes(content)
            (folder / "now").write_text(json.dumps({"case": name, "number": number}))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            trouble = trouble_with(CASES[name], path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if trouble:
                print(json.dumps({"case": name, "number": number, "trouble": trouble}), flush=True)
            path.write_bytes(whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:] or list(CASES))
