"""No file makes a reader crash, hang or ask for absurd amounts of memory: an InputError names the file.

Two ways: damaged copies of real files in a process of its own (see `fuzzing`), and structures that hypothesis
makes up. The long form, `pytest -m slow tests/test_fuzz.py`, reads 10,000 damaged files.
"""

import json
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsopt.config import TrainConfig
from gsopt.datasets import load_points, read_splat
from gsopt.datasets.transforms import find_points, read_transforms
from gsopt.errors import InputError

SHORT, LONG = 60, 10_000 // len(fuzzing.CASES) + 1  # damaged copies of each kind of file
MINUTES = 10


def read_damaged(folder: Path, seed: int, end: int) -> list[dict]:
    """What is not well in the copies 0..end of every case; after a crash, it goes on with the next number."""
    found, first = [], 0
    while first < end:
        command = [sys.executable, fuzzing.__file__, folder, seed, first, end]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=60 * MINUTES, check=False
        )
        found += map(json.loads, done.stdout.splitlines())
        if done.returncode == 0:
            return found
        assert (folder / "now").is_file(), done.stderr
        at = json.loads((folder / "now").read_text())
        found.append({**at, "trouble": f"died with {done.returncode}: {done.stderr[-500:]}"})
        first = at["number"] + 1
    return found


def test_damaged_files(tmp_path):
    assert read_damaged(tmp_path, seed=0, end=SHORT) == []


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    assert read_damaged(tmp_path, seed=1, end=LONG) == []


def test_damage_follows_from_its_number_and_changes_something():
    content = bytes(range(256)) * 3
    copies = [fuzzing.damage(content, fuzzing.random.Random(i)) for i in range(50)]
    assert copies == [fuzzing.damage(content, fuzzing.random.Random(i)) for i in range(50)]
    assert sum(copy != content for copy in copies) > 45


def bad_memory() -> None:
    raise InputError("f.ply: not complete") from MemoryError("1 TiB")


def no_name() -> None:
    raise InputError("something is wrong")


def mistake() -> None:
    {}["key"]


@pytest.mark.parametrize(
    ("read", "trouble"),
    [(bad_memory, "too much memory"), (no_name, "names no file"), (mistake, "KeyError"), (list, None)],
)
def test_the_fuzzer_sees_what_is_not_well(read, trouble):
    found = fuzzing.trouble_with(fuzzing.Case(None, lambda path: read()), Path("a/f.ply"))
    assert trouble in found if trouble else found is None


# ----------------------------------------------------------------------------------------------- hypothesis

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
TYPES = st.sampled_from(["float", "double", "uchar", "int", "list uchar int", "list int float", "what"])
NAMES = st.sampled_from(["x", "y", "z", "red", "green", "blue", "f_dc_0", "opacity", "vertex_index", ""])


@st.composite
def headers(draw) -> bytes:
    kind = draw(st.sampled_from(["ascii", "binary_little_endian", "binary_big_endian", "morse"]))
    lines = ["ply", f"format {kind} 1.0"]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(["vertex", "face", "vertex 3"]))
        lines.append(f"element {name} {draw(st.integers(-1, 3) | st.integers(0, 2**64))}")
        lines += [f"property {draw(TYPES)} {draw(NAMES)}" for _ in range(draw(st.integers(0, 5)))]
    return "\n".join([*lines, "end_header", ""]).encode() + draw(st.binary(max_size=80))


def well(read, path: Path) -> None:
    """A value comes back, or an InputError of one line."""
    trouble = fuzzing.trouble_with(fuzzing.Case(None, read), path)
    assert trouble is None, trouble


@pytest.mark.parametrize("read", [load_points, read_splat])
@QUICK
@given(content=headers() | st.binary(max_size=60))
@pytest.mark.filterwarnings("ignore")
def test_ply_of_any_header(tmp_path, read, content):
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    well(read, path)


FRAME_KEYS = (
    "file_path",
    "transform_matrix",
    "fl_x",
    "camera_angle_x",
    "w",
    "camera_model",
    "k1",
    "is_fisheye",
)


@QUICK
@given(
    key=st.sampled_from(FRAME_KEYS),
    value=JSON,
    top=st.booleans(),
    ply=st.none() | JSON.filter(lambda value: not str(value).startswith("/")),
)
def test_transforms_with_any_value(tmp_path, key, value, top, ply):
    matrix = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    frame = {"file_path": "a.png", "transform_matrix": matrix}
    content = {"w": 8, "h": 8, "fl_x": 8.0, "frames": [frame]}
    (content if top else frame)[key] = value
    if ply is not None:
        content["ply_file_path"] = ply
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(content))
    well(read_transforms, path)
    well(lambda path: (points := find_points(path)) and points(None), path)


SETTINGS = tuple(TrainConfig().to_json())


@QUICK
@given(key=st.sampled_from(SETTINGS) | st.text(max_size=5), value=JSON)
def test_a_run_with_any_setting(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps({"scene": "scene"} | {key: value}))
    well(lambda path: TrainConfig.of_run(path).check(), tmp_path)
