"""Regions of --lock: what a text means, which Gaussians are in it, and what is refused."""

import math

import numpy as np
import pytest
import scenes
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsopt.datasets import load_points
from gsopt.errors import InputError
from gsopt.model import GaussianModel
from gsopt.regions import Region, parse_region

CORNERS = torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])  # [8, 3]


def chosen(text: str, xyz: torch.Tensor = CORNERS) -> list[int]:
    return torch.nonzero(parse_region(text).rows(xyz)).flatten().tolist()


SHAPES = {  # region: corners of the unit cube in it, numbered by the bits of x, y, z
    "box:0,0,0,1,1,1": [0, 1, 2, 3, 4, 5, 6, 7],
    "box:-0.5,-0.5,-0.5,0.5,0.5,0.5": [0],
    "box:0,0,0,0,0,0": [0],
    "box:0.5,-inf,-inf,inf,inf,inf": [4, 5, 6, 7],
    "box: 0 ,0,-1e9,1,.5,5e-1": [0, 4],
    "outside:box:-1,-1,-1,2,2,0.5": [1, 3, 5, 7],
    "sphere:0,0,0,1": [0, 1, 2, 4],
    "sphere:0,0,0,0.999": [0],
    "outside:sphere:1,1,1,1.5": [0],
}


@pytest.mark.parametrize("text", SHAPES)
def test_shapes(text):
    assert chosen(text) == SHAPES[text]


def test_a_border_given_in_decimals_is_in_the_box():
    """0.1 as float32 is more than 0.1 as a double."""
    assert chosen("box:0.1,0,0,0.1,0,0", torch.tensor([[0.1, 0, 0]])) == [0]


ARRAYS = {  # what is in the .npy: the rows it means, of 8
    "mask": (np.arange(8) % 3 == 0, [0, 3, 6]),
    "row numbers": (np.array([5, 1]), [1, 5]),
    "small unsigned row numbers": (np.array([7, 0], np.uint8), [0, 7]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(tmp_path, case):
    array, rows = ARRAYS[case]
    np.save(tmp_path / "rows.npy", array)
    assert chosen(str(tmp_path / "rows.npy")) == rows
    assert chosen(f"outside:{tmp_path / 'rows.npy'}") == [row for row in range(8) if row not in rows]


def test_a_crop_of_a_splat_selects_its_gaussians(tmp_path):
    """To the bit, wherever they are in the file, and all that are at one place."""
    model = GaussianModel(40, sh_degree=0)
    with torch.no_grad():
        model.xyz.copy_(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
        model.xyz[7] = model.xyz[3]
        model.xyz[9] = torch.tensor([0.0, -0.0, 1.0])
        model.xyz[10] = torch.tensor([0.0, 1e-45, 1.0])  # the next number there is
    crop = GaussianModel(3, sh_degree=0)
    with torch.no_grad():
        crop.xyz.copy_(model.xyz[[20, 3, 9]])
        crop.xyz[2, 1] = 0.0
    crop.save_ply(tmp_path / "crop.ply")
    assert chosen(str(tmp_path / "crop.ply"), model.xyz) == [3, 7, 9, 20]


def test_a_point_cloud_selects_the_gaussians_made_of_it(tmp_path):
    xyz, rgb = scenes.ball_points(30)
    scenes.write_points(tmp_path / "cloud.ply", xyz, rgb)
    scenes.write_points(tmp_path / "part.ply", xyz[10:20], rgb[10:20])
    points = load_points(tmp_path / "cloud.ply")
    assert chosen(str(tmp_path / "part.ply"), points.xyz) == list(range(10, 20))


def test_points_that_are_no_gaussians_are_told(tmp_path):
    scenes.write_points(tmp_path / "two.ply", np.float32([[0, 0, 1], [0, 0, 0.5]]), np.zeros((2, 3)))
    with pytest.warns(UserWarning, match=r"two\.ply: 1 of its 2 points are no Gaussian's centre"):
        assert chosen(str(tmp_path / "two.ply")) == [1]


# ---------------------------------------- refusals

TEXTS = {  # text: what the line must say
    "box:1,2,3": "expected 6 numbers box:x0,y0,z0,x1,y1,z1, found 3",
    "box:": "expected 6 numbers box:x0,y0,z0,x1,y1,z1, found 1",
    "box:0,0,0,1,1,1,": "expected 6 numbers box:x0,y0,z0,x1,y1,z1, found 7",
    "box:0,0,one,1,1,1": "z0: expected a number, found 'one'",
    "box:0,0,0,1,nan,1": "y1: expected a number, found 'nan'",
    "box:0,0,5,1,1,4": "z1: expected at least z0 = 5, found 4; swap them",
    "sphere:0,0,0": "expected 4 numbers sphere:x,y,z,r, found 3",
    "sphere:0,0,0,0": "a radius above 0",
    "sphere:0,0,0,-1": "a radius above 0",
    "sphere:0,0,inf,1": "a finite centre",
    "sphere:0,0,0,inf": "a radius above 0",
    "cube:0,0,0,1": "not a region; expected box:x0,y0,z0,x1,y1,z1, sphere:x,y,z,r, FILE.npy, FILE.ply or",
    "outside:": "not a region",
    "outside:outside:sphere:0,0,0,1": "not a region",
    "": "not a region",
    "rows.npz": "not a region",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_are_no_region(text):
    with pytest.raises(InputError) as refusal:
        parse_region(text)
    assert str(refusal.value).startswith(f"--lock {text}: ")
    assert TEXTS[text] in str(refusal.value)
    assert "\n" not in str(refusal.value)


BAD_ARRAYS = {
    "short mask": (np.ones(7, bool), r"expected a mask \[8\].*found \[7\]"),
    "matrix": (np.ones((8, 1), bool), r"expected a mask \[8\].*found \[8, 1\]"),
    "floats": (np.ones(8), r"expected a mask .* or row numbers .*found float64 \[8\]"),
    "rows of a table": (np.ones((2, 2), int), r"found int64 \[2, 2\]"),
    "too large": (np.array([0, 8]), "expected rows 0 to 7, found 0 to 8"),
    "from the end": (np.array([-1]), "expected rows 0 to 7, found -1 to -1"),
    "mask as numbers": (
        np.array([0, 1, 1, 0, 0, 0, 0, 1]),
        "a row number twice; a mask must be saved as bool",
    ),
    "objects": (np.array([None]), "not an array of numpy"),
    "empty mask": (np.zeros(8, bool), "no Gaussian is there"),
    "no rows": (np.zeros(0, int), "no Gaussian is there"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_used(tmp_path, case):
    array, message = BAD_ARRAYS[case]
    np.save(tmp_path / "rows.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=rf"--lock .*rows\.npy: .*{message}"):
        chosen(str(tmp_path / "rows.npy"))


FILES = {  # name, bytes (None: there is no such file): what the line must say
    "missing array": ("rows.npy", None, r"rows\.npy: no such file"),
    "missing PLY": ("crop.ply", None, r"crop\.ply: no such file"),
    "text": ("rows.npy", b"0 1 2\n", "not an array of numpy"),
    "nothing": ("rows.npy", b"", "not an array of numpy"),
    "no PLY": ("crop.ply", b"0 1 2\n", "not a complete PLY"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_used(tmp_path, case):
    name, content, message = FILES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        chosen(str(tmp_path / name))


def test_a_folder_is_no_array(tmp_path):
    (tmp_path / "rows.npy").mkdir()
    with pytest.raises(InputError, match=r"rows\.npy: cannot be read"):
        chosen(str(tmp_path / "rows.npy"))


@pytest.mark.parametrize("text", ["sphere:5,5,5,1", "outside:box:-9,-9,-9,9,9,9"])
def test_a_region_without_gaussians_names_where_they_are(text):
    with pytest.raises(
        InputError, match=f"--lock {text}: no Gaussian is there; .* x 0 to 1, y 0 to 1, z 0 to 1"
    ):
        chosen(text)


def test_an_empty_model_has_nothing_to_lock():
    with pytest.raises(InputError, match="no Gaussian is there; the model is empty"):
        chosen("sphere:0,0,0,1", torch.zeros(0, 3))


# ---------------------------------------- any text

NUMBERS = st.floats(allow_nan=False, width=32)
REGIONS = st.one_of(
    st.builds(
        lambda sides, outside: Region(
            "box", tuple(map(min, sides)) + tuple(map(max, sides)), outside=outside
        ),
        st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=3),
        st.booleans(),
    ),
    st.builds(
        lambda centre, radius, outside: Region("sphere", (*centre, radius), outside=outside),
        st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3),
        st.floats(min_value=0, exclude_min=True, max_value=1e30),
        st.booleans(),
    ),
)


@given(REGIONS)
def test_a_region_written_out_is_the_same_region(region):
    assert parse_region(str(region)) == region


@given(st.text(alphabet="boxsphereutd:,.-+0123456789infa e/\n", max_size=30) | st.text(max_size=12))
def test_any_text_is_a_region_or_is_refused(text):
    try:
        region = parse_region(text).absolute()
    except InputError:
        return
    assert parse_region(str(region)) == region
    assert not any(map(math.isnan, region.numbers))


@given(REGIONS, st.integers(0, 1000))
def test_outside_is_all_that_is_not_inside(region, seed):
    xyz = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
    halves = []
    for outside in (False, True):
        try:
            halves.append(Region(region.kind, region.numbers, outside=outside).rows(xyz))
        except InputError:  # nothing there
            halves.append(torch.zeros(20, dtype=torch.bool))
    assert torch.equal(halves[0], ~halves[1])
