"""PLY files of points and splats: what is read, what is written, what is refused."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from gsopt.datasets.ply import read_splat, write_splat
from gsopt.datasets.point_files import load_points
from gsopt.errors import InputError

SPLAT_NAMES = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
SPLAT_NAMES += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def write_ply(path, columns: dict, *, text=False, byte_order="<", element="vertex"):
    """A PLY with one element whose properties are the given columns (name -> array), in that order."""
    columns = {name: np.asarray(column) for name, column in columns.items()}
    count = len(next(iter(columns.values()))) if columns else 0
    data = np.empty(count, [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        data[name] = column
    PlyData([PlyElement.describe(data, element)], text=text, byte_order=byte_order).write(path)
    return path


def splat_columns(count=3, rest=0, seed=0) -> dict:
    random = np.random.default_rng(seed)
    names = [*SPLAT_NAMES, *(f"f_rest_{i}" for i in range(rest))]
    return {name: random.normal(size=count).astype(np.float32) for name in names}


def splat_dict(count=3, bases=16, seed=0) -> dict:
    random = np.random.default_rng(seed)
    shapes = {"xyz": (3,), "feature_dc": (1, 3), "feature_rest": (bases - 1, 3)}
    shapes |= {"opacity": (1,), "scaling": (3,), "rotation": (4,)}
    return {key: random.normal(size=(count, *shape)).astype(np.float32) for key, shape in shapes.items()}


# points


@pytest.mark.parametrize(
    ("columns", "rgb"),
    [
        ({"red": np.uint8([0, 255]), "green": np.uint8([51, 0]), "blue": np.uint8([0, 102])}, None),
        ({"red": np.float32([0, 1]), "green": np.float32([0.2, 0]), "blue": np.float32([0, 0.4])}, None),
        ({"red": np.uint16([0, 65535]), "green": np.uint16([13107, 0]), "blue": np.uint16([0, 26214])}, None),
        (
            {"r": np.uint8([0, 255]), "g": np.uint8([51, 0]), "b": np.uint8([0, 102]), "a": np.uint8([9, 9])},
            None,
        ),
        (
            {
                "diffuse_red": np.uint8([0, 255]),
                "diffuse_green": np.uint8([51, 0]),
                "diffuse_blue": np.uint8([0, 102]),
            },
            None,
        ),
        ({}, [[0.5] * 3] * 2),
        ({"red": np.uint8([0, 255])}, [[0.5] * 3] * 2),
    ],
    ids=["uchar", "float", "ushort", "rgba", "diffuse", "none", "only red"],
)
@pytest.mark.parametrize("text", [False, True], ids=["binary", "ascii"])
def test_points_with_each_kind_of_colour(tmp_path, columns, rgb, text):
    xyz = {"z": np.float64([3, 6]), "x": np.float64([1, 4]), "y": np.float64([2, 5])}
    path = write_ply(tmp_path / "p.ply", columns | xyz, text=text)
    if rgb is None:
        points = load_points(path)
    else:
        with pytest.warns(UserWarning, match="p.ply: no colours in it; all 2 points begin as grey"):
            points = load_points(path)
    assert points.xyz.dtype == points.rgb.dtype == torch.float32
    assert points.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    torch.testing.assert_close(points.rgb, torch.tensor(rgb or [[0.0, 0.2, 0.0], [1.0, 0.0, 0.4]]))


def test_points_of_a_splat_are_its_centres_and_constant_colours(tmp_path):
    columns = splat_columns(2) | {"f_dc_0": np.float32([0.0, 9.0]), "f_dc_1": np.float32([1.0, -9.0])}
    points = load_points(write_ply(tmp_path / "s.ply", columns))
    assert points.xyz[:, 0].tolist() == columns["x"].tolist()
    torch.testing.assert_close(points.rgb[:, :2], torch.tensor([[0.5, 0.5 + 0.28209479], [1.0, 0.0]]))


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(["x", "y", "z", "red", "green", "blue", "nx", "label"]),
    kinds=st.lists(st.sampled_from(["f4", "f8"]), min_size=8, max_size=8),
    text=st.booleans(),
    byte_order=st.sampled_from("<>"),
    count=st.integers(1, 5),
)
def test_points_are_found_by_name_whatever_the_order_type_and_encoding(
    tmp_path_factory, order, kinds, text, byte_order, count
):
    random = np.random.default_rng(count)
    columns = {
        name: random.random(count).astype(np.float32).astype(kind)
        for name, kind in zip(order, kinds, strict=True)
    }
    path = write_ply(tmp_path_factory.mktemp("ply") / "p.ply", columns, text=text, byte_order=byte_order)
    points = load_points(path)
    np.testing.assert_array_equal(
        points.xyz, np.stack([columns[n] for n in ("x", "y", "z")], axis=1).astype("f4")
    )
    np.testing.assert_array_equal(
        points.rgb, np.stack([columns[n] for n in ("red", "green", "blue")], axis=1).astype("f4")
    )


# splats


@pytest.mark.parametrize("bases", [1, 4, 9, 16, 25])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_written_splat_is_read_back_bit_for_bit(tmp_path, bases, count):
    splat = splat_dict(count, bases)
    write_splat(tmp_path / "new" / "s.ply", splat)
    back = read_splat(tmp_path / "new" / "s.ply")
    assert set(back) == set(splat)
    for key, value in splat.items():
        assert back[key].dtype == np.float32
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.ply"]


def test_layout_is_that_of_3dgs_and_f_rest_is_channel_major(tmp_path):
    splat = splat_dict(2, bases=4)
    write_splat(tmp_path / "s.ply", splat)
    ply = PlyData.read(tmp_path / "s.ply")
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 " + " ".join(f"f_rest_{i}" for i in range(9))
    names += " opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert ply["vertex"].data.dtype.names == tuple(names.split())
    assert ply.header.startswith("ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\n")
    # f_rest_(channel * (K-1) + coefficient)
    np.testing.assert_array_equal(ply["vertex"]["f_rest_5"], splat["feature_rest"][:, 2, 1])
    assert not np.any(ply["vertex"]["nx"])


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(SPLAT_NAMES),
    rest=st.sampled_from([0, 9, 24, 45]),
    where=st.integers(0, 14),
    kind=st.sampled_from(["f4", "f8"]),
    text=st.booleans(),
    byte_order=st.sampled_from("<>"),
)
def test_splats_are_read_by_name_whatever_the_order(
    tmp_path_factory, order, rest, where, kind, text, byte_order
):
    columns = splat_columns(4, rest)
    names = [*order[:where], *(f"f_rest_{i}" for i in reversed(range(rest))), *order[where:]]
    path = tmp_path_factory.mktemp("ply") / "s.ply"
    write_ply(path, {name: columns[name].astype(kind) for name in names}, text=text, byte_order=byte_order)
    splat = read_splat(path)
    np.testing.assert_array_equal(splat["rotation"][:, 2], columns["rot_2"])
    np.testing.assert_array_equal(splat["scaling"][:, 1], columns["scale_1"])
    np.testing.assert_array_equal(splat["feature_dc"][:, 0, 2], columns["f_dc_2"])
    assert splat["feature_rest"].shape == (4, rest // 3, 3)
    if rest:
        np.testing.assert_array_equal(
            splat["feature_rest"][:, 1, 2], columns[f"f_rest_{2 * (rest // 3) + 1}"]
        )


def test_infinite_opacities_become_finite_with_one_warning(tmp_path):
    columns = splat_columns(4) | {"opacity": np.float32([np.inf, 0.5, np.inf, -np.inf])}
    path = write_ply(tmp_path / "s.ply", columns)
    with pytest.warns(UserWarning, match="s.ply: 3 of 4 opacities are infinite") as caught:
        opacity = torch.from_numpy(read_splat(path)["opacity"]).double().sigmoid()[:, 0]
    assert len(caught) == 1
    torch.testing.assert_close(opacity[[0, 2, 3]], torch.tensor([1 - 1e-6, 1 - 1e-6, 1e-6]).double())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"xyz": np.zeros((3, 2))}, ValueError, r"xyz is \[3, 2\], expected \[3, 3\]"),
        ({"opacity": np.zeros(3)}, ValueError, r"opacity is \[3\], expected \[3, 1\]"),
        ({"rotation": np.zeros((2, 4))}, ValueError, r"rotation is \[2, 4\], expected \[3, 4\]"),
    ],
)
def test_write_splat_refuses_other_shapes_and_leaves_no_file(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        write_splat(tmp_path / "s.ply", splat_dict() | change)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_splat(tmp_path / "s.ply", splat_dict())
    before = (tmp_path / "s.ply").read_bytes()

    def fail(self, stream):
        stream.write(b"ply")
        raise OSError("disk full")

    monkeypatch.setattr(PlyData, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_splat(tmp_path / "s.ply", splat_dict(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["s.ply"]
    assert (tmp_path / "s.ply").read_bytes() == before


# refusals


def _nan(columns, name, row):
    columns[name] = columns[name].copy()
    columns[name][row] = np.nan
    return columns


XYZ = {"x": np.float32([1, 2, 3]), "y": np.float32([1, 2, 3]), "z": np.float32([1, 2, 3])}
WHITE = {name: np.float32([255] * 3) for name in ("red", "green", "blue")}
REFUSED = {
    "no y": (load_points, {"x": XYZ["x"], "z": XYZ["z"]}, "lacks y, expected a number"),
    "no points": (load_points, {name: column[:0] for name, column in XYZ.items()}, "no points"),
    "nan": (
        load_points,
        _nan(dict(XYZ), "y", 1),
        r"vertex 1: y is nan.*1 of 3 vertices.*remove these points",
    ),
    "too large for float32": (load_points, XYZ | {"x": np.float64([0, 0, 1e200])}, "vertex 2: x is inf"),
    "float colour above 1": (
        load_points,
        XYZ | WHITE,
        r"vertex 0: colour \[255.0, 255.0, 255.0\].*expected 0 to 1",
    ),
    "splat without scale_2": (
        read_splat,
        {k: v for k, v in splat_columns().items() if k != "scale_2"},
        "lacks scale_2",
    ),
    "points as splat": (read_splat, XYZ, "lacks f_dc_0, f_dc_1, f_dc_2"),
    "44 f_rest": (read_splat, splat_columns(rest=44), "44 properties f_rest_i, expected 0, 9, 24, 45, 72"),
    "f_rest gap": (
        read_splat,
        {k: v for k, v in splat_columns(rest=10).items() if k != "f_rest_3"},
        "lacks f_rest_3",
    ),
    "nan scale": (read_splat, _nan(splat_columns(), "scale_1", 2), "vertex 2: scale_1 is nan.*--filter-nan"),
    "nan opacity": (read_splat, _nan(splat_columns(), "opacity", 0), "vertex 0: opacity is nan"),
    "compressed": (read_splat, {"packed_position": np.uint32([1])}, "compressed splat PLY.*gsopt convert"),
}


@pytest.mark.parametrize(("read", "columns", "message"), REFUSED.values(), ids=REFUSED)
def test_unusable_content_is_one_line_naming_the_file(tmp_path, read, columns, message):
    path = write_ply(tmp_path / "bad.ply", columns)
    with pytest.raises(InputError, match=f"bad.ply: .*{message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


HEADER = b"ply\nformat ascii 1.0\nelement vertex %s\n"
HEADER += b"property float x\nproperty float y\nproperty float z\nend_header\n"
BROKEN = {
    "empty": (b"", "not a complete PLY file"),
    "other format": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a complete PLY file"),
    "header only": (HEADER % b"2", "not a complete PLY file"),
    "too few rows": (HEADER % b"2" + b"1 2 3\n", "not a complete PLY file"),
    "word": (HEADER % b"1" + b"1 two 3\n", "not a complete PLY file"),
    "absurd count": (HEADER % b"9999999999999999" + b"1 2 3\n", "not a complete PLY file"),
    "negative count": (HEADER % b"-1" + b"1 2 3\n", "not a complete PLY file"),
    "no property": (
        HEADER[: HEADER.index(b"property")] % b"1" + b"end_header\n\n",
        "element vertex has no property",
    ),
    "no property, binary": (
        b"ply\nformat binary_little_endian 1.0\nelement camera 2\nelement vertex 1\nproperty float x\n"
        b"end_header\n1234",
        "element camera has no property",
    ),
    "no property, no rows": (
        b"ply\nformat binary_big_endian 1.0\nelement vertex 0\nend_header\n",
        "element vertex has no property",
    ),
    "no vertex": (
        (HEADER % b"1").replace(b"vertex", b"face") + b"1 2 3\n",
        r"no element 'vertex' \(found: face\)",
    ),
    "list": (
        (HEADER % b"1").replace(b"float y", b"list uchar float y") + b"1 2 2 2 3\n",
        "has a list as y, expected a number",
    ),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [load_points, read_splat])
def test_broken_files_are_one_line_naming_the_file(tmp_path, read, content, message):
    (tmp_path / "bad.ply").write_bytes(content)
    message = message if read is load_points or "list" not in message else "lacks|list"
    with pytest.raises(InputError, match=f"bad.ply: .*({message})") as caught:
        read(tmp_path / "bad.ply")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"none\.ply: no such file"):
        load_points(tmp_path / "none.ply")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_splat(tmp_path)


def test_text_too_large_for_its_type(tmp_path):
    write_ply(tmp_path / "s.ply", splat_columns(5, rest=9), text=True)
    lines = (tmp_path / "s.ply").read_text().splitlines()
    lines[-1] = " ".join(["1e99", *lines[-1].split()[1:]])
    (tmp_path / "s.ply").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"s\.ply: vertex 4: x is inf, expected a finite number"):
        read_splat(tmp_path / "s.ply")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything_but_an_input_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("ply")
    text = data.draw(st.booleans())
    write_ply(folder / "s.ply", splat_columns(5, rest=9), text=text)
    content = bytearray((folder / "s.ply").read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
    where = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        del content[where:]
    elif kind == "flip":
        content[where] ^= data.draw(st.integers(1, 255))
    else:
        content[where:where] = data.draw(st.binary(min_size=1, max_size=20))
    (folder / "s.ply").write_bytes(content)
    for read in (load_points, read_splat):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*(opacities are infinite|no colours in it)")
                read(folder / "s.ply")
        except InputError as error:
            assert "s.ply: " in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


# files of other programs


def test_the_original_trainers_file_is_rewritten_byte_for_byte(shared, tmp_path):
    source = shared / "splats" / "inria_iter7000_sh3.ply"
    write_splat(tmp_path / "again.ply", read_splat(source))
    assert (tmp_path / "again.ply").read_bytes() == source.read_bytes()


@pytest.mark.filterwarnings("ignore:.*667 of 44297 opacities are infinite")
@pytest.mark.parametrize(
    ("name", "count", "bases"),
    [
        ("inria_iter7000_sh3.ply", 9080, 16),
        ("jsplat_unitcube_ascii_sh0.ply", 20, 1),
        ("conv_guitar_opaque_by_splattransform.ply", 44297, 1),
    ],
)
def test_splats_by_other_programs(shared, name, count, bases):
    splat = read_splat(shared / "splats" / name)
    assert splat["xyz"].shape == (count, 3)
    assert splat["feature_rest"].shape == (count, bases - 1, 3)
    assert all(np.isfinite(value).all() for value in splat.values())
    assert len(load_points(shared / "splats" / name).xyz) == count


def test_point_cloud_by_another_program(shared):
    points = load_points(shared / "splats" / "trimesh_points_rgba.ply")
    assert points.xyz.shape == (100, 3)


def test_compressed_splats_name_the_remedy(shared):
    for path in (shared / "splats").glob("*.compressed.ply"):
        with pytest.raises(InputError, match=r"convert it first: gsopt convert .* OUT\.ply"):
            read_splat(path)
