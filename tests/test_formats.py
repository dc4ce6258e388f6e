"""Files of Gaussians: what each format keeps, its bytes, files of other programs, and what is refused."""

import gzip
import itertools
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData
from scipy.spatial import cKDTree
from splats import angles, assert_same, in_range, original_checkpoint, random_splat, random_tensors

from gsopt.errors import InputError
from gsopt.formats import Splat, read, write
from gsopt.formats.compressed_ply import morton_order
from gsopt.geometry import SH_C0

# attribute -> how far off the format's own steps let it be, for the values of `random_splat`
KEPT = {
    "a.ply": dict.fromkeys(random_tensors(), 0.0),
    "a.compressed.ply": {"feature_rest": 1 / 64, "feature_dc": 0.03, "xyz": 0.01, "scaling": 0.005},
    "a.splat": {"xyz": 0.0, "scaling": 1e-6, "feature_dc": 0.5 / 255 / SH_C0 + 1e-6},
    "a.spz": {
        "xyz": 1 / 8191,
        "scaling": 1 / 31,
        "feature_dc": 0.5 / 255 / 0.15 + 1e-6,
        "feature_rest": 1 / 255,
    },
}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 255, 257])
@pytest.mark.parametrize("name", KEPT)
def test_what_is_written_is_read_back_within_the_formats_steps(tmp_path, name, count, degree):
    splat = in_range(random_splat(count, degree))
    notes = write(tmp_path / name, splat)
    found = read(tmp_path / name).tensors
    order = morton_order(splat.tensors["xyz"].numpy()) if "compressed" in name else np.arange(count)
    before = {key: value[order] for key, value in splat.tensors.items()}
    if name == "a.splat":
        assert found["feature_rest"].shape == (count, 0, 3)
        assert ("harmonics above the constant are left out" in notes) == (degree > 0)
    for key, step in KEPT[name].items():
        torch.testing.assert_close(found[key], before[key], atol=step, rtol=0, msg=key)
    assert angles(found["rotation"], before["rotation"]).max() < 1.3
    apart = (found["opacity"].sigmoid() - before["opacity"].sigmoid()).abs()
    assert apart.max() <= 0.5 / 255 + 1e-6
    assert any("quantised" in note for note in notes) == (name != "a.ply")


def test_a_quantised_file_written_again_is_the_same(tmp_path):
    write(tmp_path / "a.spz", random_splat(300))
    write(tmp_path / "b.spz", read(tmp_path / "a.spz"))
    assert (tmp_path / "b.spz").read_bytes() == (tmp_path / "a.spz").read_bytes()


def test_what_is_lost_is_measured(tmp_path):
    splat = random_splat(20)
    splat.tensors["feature_dc"][:] = 9.0  # a colour of 3
    splat.moments = {"xyz": {"exp_avg": torch.zeros(20, 3)}}
    notes = write(tmp_path / "a.splat", splat)
    assert notes[0] == "the optimizer's moments are left out"
    assert "colours by 2 (mean 2)" in notes[1]
    assert "centres by 0 (mean 0)" in notes[1]


def test_degree_4_is_cut_but_in_a_ply(tmp_path):
    splat = random_splat(5, degree=4)
    assert write(tmp_path / "a.ply", splat) == []
    assert_same(read(tmp_path / "a.ply").tensors, splat.tensors)
    assert "harmonics of degree 4 cut to 3" in write(tmp_path / "a.spz", splat)
    assert read(tmp_path / "a.spz").sh_degree == 3


def test_opacities_at_the_ends_stay_finite(tmp_path):
    splat = random_splat(2)
    splat.tensors["opacity"] = torch.tensor([[-50.0], [50.0]])
    for name in ("a.splat", "a.spz", "a.compressed.ply"):
        write(tmp_path / name, splat)
        assert (
            read(tmp_path / name).tensors["opacity"].abs().tolist() == [[pytest.approx(6.926, abs=1e-3)]] * 2
        )


# bytes by hand


def test_bytes_of_a_splat_file(tmp_path):
    row = struct.pack("<6f8B", 1, 2, 3, 1, 2, 0, 255, 0, 51, 255, 255, 128, 128, 128)
    (tmp_path / "a.splat").write_bytes(row)
    found = read(tmp_path / "a.splat").tensors
    assert found["xyz"].tolist() == [[1, 2, 3]]
    assert found["scaling"][0, :2].exp().tolist() == pytest.approx([1, 2])
    assert found["scaling"][0, 2].isfinite()
    rgb = 0.5 + SH_C0 * found["feature_dc"][0, 0]
    assert rgb.tolist() == pytest.approx([1, 0, 0.2], abs=1e-6)
    assert found["rotation"].tolist() == [[1, 0, 0, 0]]


def spz_bytes(version: int, rotation: bytes, degree: int = 1) -> bytes:
    """One Gaussian at (1, -2, 0.5) right up back: (1, 2, -0.5) in a PLY."""
    header = struct.pack("<4sIIBBBB", b"NGSP", version, 1, degree, 8, 0, 0)
    xyz = b"".join((value & 0xFFFFFF).to_bytes(3, "little") for value in (256, -512, 128))
    harmonics = bytes([192, 128, 128, 128, 192, 128, 128, 128, 192])
    return gzip.compress(header + xyz + bytes([51, 255, 0, 128, 160, 144, 128]) + rotation + harmonics)


def spz4_bytes() -> bytes:
    """The same as version 4: a header in clear, a table, and columns each of its own."""
    zstandard = pytest.importorskip("zstandard")
    whole = gzip.decompress(spz_bytes(3, struct.pack("<I", 3 << 30 | 511 << 10)))
    sizes = (9, 1, 3, 3, 4, 9)
    ends = np.cumsum([16, *sizes])
    columns = [zstandard.compress(whole[a:b]) for a, b in itertools.pairwise(ends)]
    header = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 1, 8, 0, 6, 32)
    table = b"".join(struct.pack("<QQ", len(c), size) for c, size in zip(columns, sizes, strict=True))
    return header + table + b"".join(columns)


QUARTER = 2**-0.5  # a turn by 90 degrees about y in the file is one about -y in a PLY


@pytest.mark.parametrize(
    ("version", "rotation"),
    [
        (2, bytes([128, 218, 128])),  # x y z
        (3, struct.pack("<I", 3 << 30 | 0 << 20 | 511 << 10 | 0)),  # w is the largest; y = sqrt(1/2)
    ],
)
def test_bytes_of_an_spz_file(tmp_path, version, rotation):
    (tmp_path / "a.spz").write_bytes(spz_bytes(version, rotation))
    found = read(tmp_path / "a.spz").tensors
    assert found["xyz"].tolist() == [[1, 2, -0.5]]
    assert found["scaling"].tolist() == [[0, -1, -2]]
    assert found["opacity"].sigmoid().item() == pytest.approx(0.2)
    assert found["feature_dc"][0, 0].tolist() == pytest.approx([0.5 / 0.15, -0.5 / 0.15, 0.013], abs=1e-3)
    assert angles(found["rotation"], torch.tensor([[QUARTER, 0, -QUARTER, 0]])).item() < 0.8
    # bands y, z, x of channels r, g, b; y and z change their sign
    assert found["feature_rest"][0].tolist() == [[-0.5, 0, 0], [0, -0.5, 0], [0, 0, 0.5]]


def test_version_4_of_an_spz_file_says_the_same(tmp_path):
    (tmp_path / "a.spz").write_bytes(spz_bytes(3, struct.pack("<I", 3 << 30 | 511 << 10)))
    (tmp_path / "b.spz").write_bytes(spz4_bytes())
    assert_same(read(tmp_path / "b.spz").tensors, read(tmp_path / "a.spz").tensors)


@pytest.mark.parametrize("where", [14, 33, 40, 60, 130])
def test_a_damaged_version_4_is_refused(tmp_path, where):
    content = bytearray(spz4_bytes())
    content[where] ^= 0x5A
    (tmp_path / "a.spz").write_bytes(content[: len(content) // 2] if where == 14 else content)
    with pytest.raises(InputError, match=r"a\.spz: not a complete \.spz file"):
        read(tmp_path / "a.spz")


def test_without_its_package_version_4_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.spz").write_bytes(spz4_bytes())
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        InputError, match=r'version 4 needs the package zstandard: pip install "gsopt\[spz\]"'
    ):
        read(tmp_path / "a.spz")


def test_bytes_of_a_compressed_ply(tmp_path):
    names = [f"{side}_{axis}" for side in ("min", "max") for axis in "xyz"]
    scales = [f"{side}_scale_{axis}" for side in ("min", "max") for axis in "xyz"]
    colours = [f"{side}_{axis}" for side in ("min", "max") for axis in "rgb"]
    lines = ["ply", "format binary_little_endian 1.0", "element chunk 1"]
    lines += [f"property float {name}" for name in (*names, *scales, *colours)]
    lines += ["element vertex 1"]
    lines += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    lines += ["element sh 1", *(f"property uchar f_rest_{i}" for i in range(9)), "end_header", ""]
    chunk = [0, 0, 0, 10, 20, 30, -8, -8, -8, 0, 0, 0, 0, 0, 0, 1, 1, 2]
    vertex = [2047 << 21 | 0 << 11 | 2047, 0 << 30 | 1023 << 20 | 512 << 10 | 512, 2047, 255 << 8 | 51]
    content = struct.pack("<18f4I9B", *chunk, *vertex, 0, 255, 128, *[127] * 6)
    (tmp_path / "a.ply").write_bytes("\n".join(lines).encode() + content)
    splat = read(tmp_path / "a.ply")
    found = splat.tensors
    assert splat.kind == "compressed PLY"
    assert found["xyz"].tolist() == [[10, 0, 30]]
    assert found["scaling"].tolist() == [[-8, -8, 0]]
    assert found["opacity"].sigmoid().item() == pytest.approx(0.2)
    assert (0.5 + SH_C0 * found["feature_dc"])[0, 0].tolist() == pytest.approx([0, 0, 2], abs=1e-6)
    assert angles(found["rotation"], torch.tensor([[QUARTER, QUARTER, 0, 0]])).item() < 0.2
    # f_rest_i are channel-major: the first three are of red
    assert found["feature_rest"][0].T.tolist() == [[-4, 4, 1 / 64], [-1 / 64] * 3, [-1 / 64] * 3]


def test_the_compressed_ply_that_is_written_has_the_layout_of_its_inventor(tmp_path, shared):
    write(tmp_path / "a.compressed.ply", random_splat(300))
    ours = PlyData.read(tmp_path / "a.compressed.ply")
    theirs = PlyData.read(shared / "splats" / "conv_inria_by_splattransform.compressed.ply")
    assert [element.name for element in ours] == [element.name for element in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.data.dtype == other.data.dtype


# files of other programs


def matched(source: Splat, found: Splat) -> dict[str, torch.Tensor]:
    """The source's rows in the order of `found`, by nearest centre."""
    distance, rows = cKDTree(source.tensors["xyz"].numpy()).query(found.tensors["xyz"].numpy())
    assert np.quantile(distance, 0.99) < 1  # of a scene of hundreds of units
    return {name: value[rows] for name, value in source.tensors.items()}


@pytest.mark.parametrize(
    "name", ["conv_inria_by_splattransform.compressed.ply", "conv_inria_by_splattransform.spz"]
)
def test_what_another_program_made_of_a_ply_is_that_ply(shared, name):
    if name.endswith(".spz"):
        pytest.importorskip("zstandard")
    source = read(shared / "splats" / "inria_iter7000_sh3.ply")
    found = read(shared / "splats" / name)
    assert found.count == source.count
    expected = matched(source, found)
    # Where centres coincide almost, the nearest is another Gaussian: most must agree, not all.
    for key, step in (("scaling", 0.04), ("feature_rest", 0.07), ("feature_dc", 0.03)):
        near = (found.tensors[key] - expected[key]).abs().flatten(1).amax(dim=1) < step
        assert near.float().mean() > 0.97, key
    assert (angles(found.tensors["rotation"], expected["rotation"]) < 0.5).float().mean() > 0.97


@pytest.mark.parametrize(
    ("name", "count", "degree"),
    [("supersplat_guitar.compressed.ply", 90854, 0), ("supersplat_sh3_64.compressed.ply", 64, 3)],
)
def test_files_of_supersplat(shared, name, count, degree):
    splat = read(shared / "splats" / name)
    assert (splat.count, splat.sh_degree) == (count, degree)
    assert all(value.isfinite().all() for value in splat.tensors.values())


# refusals


def _spz(**header) -> bytes:
    values = {"magic": b"NGSP", "version": 3, "count": 1, "degree": 0, "fraction": 12, "flags": 0} | header
    return gzip.compress(struct.pack("<4sIIBBBB", *values.values(), 0) + bytes(20))


REFUSED = {
    "splat, 31 bytes": ("a.splat", bytes(31), "expected 32 bytes a Gaussian, found 31 bytes"),
    "splat, empty": ("a.splat", b"", "expected 32 bytes a Gaussian, found 0 bytes"),
    "splat, nan": (
        "a.splat",
        bytes(32) + b"\xff" * 32,
        "row 1: expected finite centre and sizes, found .*nan",
    ),
    "splat, negative": (
        "a.splat",
        struct.pack("<6f8B", *[0] * 3, -1, 1, 1, *[0] * 8),
        "row 0: expected finite",
    ),
    "spz, text": ("a.spz", b"hello", r"not a complete \.spz file"),
    "spz, cut": ("a.spz", _spz()[:20], r"not a complete \.spz file"),
    "spz, magic": ("a.spz", _spz(magic=b"NOPE"), "magic b'NOPE'"),
    "spz, version": ("a.spz", _spz(version=1), "version 1"),
    "spz, degree": ("a.spz", _spz(degree=9), "degree 9"),
    "spz, none": ("a.spz", _spz(count=0), "no Gaussians"),
    "spz, fewer rows": ("a.spz", _spz(count=2), "36 bytes or more for 56"),
    "spz, a billion": ("a.spz", _spz(count=1_000_000_000), "bytes for 1,000,000,000 Gaussians"),
    "no ending": ("a", b"", "no format has this ending; expected one of .ply"),
    "another ending": ("a.obj", b"", "no format has this ending"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_one_line_naming_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*{message}") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bounds_of_a_compressed_ply_that_are_too_large_are_refused(tmp_path):
    path = tmp_path / "a.compressed.ply"
    write(path, random_splat())
    content = path.read_bytes()
    at = content.index(b"end_header\n") + len(b"end_header\n") + 4 * 15  # max_r of the first chunk
    path.write_bytes(content[:at] + struct.pack("<3f", 3e38, 3e38, 3e38) + content[at + 12 :])
    with pytest.raises(InputError, match=r"a\.compressed\.ply: not all numbers are finite"):
        read(path)


@pytest.mark.parametrize("name", ["a.ply", "a.splat", "a.spz", "a.pth", "ckpt_1_rank0.pt", "a.ckpt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: no such file"):
        read(tmp_path / name)


def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(tmp_path):
    splat = random_splat(2)
    splat.tensors["xyz"][0, 0] = 1e9
    with pytest.raises(InputError, match="centres up to 1e\\+09 away, expected less than 8,388,608"):
        write(tmp_path / "a.spz", splat)
    with pytest.raises(InputError, match=r"\.sog is not written; expected one of"):
        write(tmp_path / "a.sog", splat)
    with pytest.raises(InputError, match="no Gaussians are left to write"):
        write(tmp_path / "a.ply", Splat({name: value[:0] for name, value in splat.tensors.items()}, ""))
    assert list(tmp_path.iterdir()) == []


def test_far_centres_of_an_spz_have_fewer_fraction_bits(tmp_path):
    splat = random_splat(2)
    splat.tensors["xyz"][0] = torch.tensor([0.0, 100_000.0, 7.0])
    write(tmp_path / "a.spz", splat)
    assert gzip.decompress((tmp_path / "a.spz").read_bytes())[13] == 6
    torch.testing.assert_close(
        read(tmp_path / "a.spz").tensors["xyz"], splat.tensors["xyz"], atol=1 / 127, rtol=0
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything_but_an_input_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    name = data.draw(st.sampled_from(["a.splat", "a.spz", "a.compressed.ply", "a.pth", "a.pt", "raw.spz"]))
    splat = random_splat(3, degree=1)
    if name == "a.pth":
        torch.save(original_checkpoint(splat.tensors), folder / name)
    else:
        write(folder / name, splat)
    content = bytearray((folder / name).read_bytes())
    if name == "raw.spz":  # damage what is compressed, not the compression, which has a checksum
        content = bytearray(gzip.decompress(content))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, max(len(content) - 1, 0)))
        kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
        if kind == "cut":
            del content[where:]
        elif kind == "flip" and content:
            content[where] ^= data.draw(st.integers(1, 255))
        else:
            content[where:where] = data.draw(st.binary(min_size=1, max_size=20))
    (folder / name).write_bytes(gzip.compress(content) if name == "raw.spz" else content)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*opacities are infinite")
            found = read(folder / name)
        assert all(value.isfinite().all() for value in found.tensors.values())
    except InputError as error:
        assert f"{name}: " in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
