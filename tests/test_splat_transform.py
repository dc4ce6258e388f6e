"""PlayCanvas' converter as referee: it reads what we write as we do, and we read what it writes as it does.

Its releases differ: 3 keeps the axes of a PLY in an .spz, where 2, as the format's own tools, turns them.
"""

import shutil
import subprocess

import pytest
import torch
from splats import angles, in_range, random_splat
from torch import nn

from gsopt.editing import parse_transform, transform
from gsopt.formats import Splat, read, write

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*opacities are infinite")]


@pytest.fixture(scope="module", params=["2.7.1", "3.7.0"])
def convert(request, tmp_path_factory):
    """A function that converts a file, by that release of the program; it has `.release`."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path_factory.mktemp("npm")
    package = f"@playcanvas/splat-transform@{request.param}"
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    program = folder / "node_modules" / ".bin" / "splat-transform"
    if not program.is_file():
        pytest.skip(f"npm cannot install {package}: {done.stderr[-200:]}")

    def run(source, target):
        subprocess.run([program, "-q", "-w", source, target], check=True, timeout=100)

    run.release = int(request.param[0])
    return run


@pytest.fixture
def splat() -> Splat:
    """Quaternions of length 1: into a .splat, release 3 writes others as if they were."""
    splat = in_range(random_splat(1000))
    splat.tensors["rotation"] = nn.functional.normalize(splat.tensors["rotation"], dim=1)
    return splat


def axes_of(splat: Splat, name: str, release: int) -> Splat:
    """What release 3 says of an .spz, with the axes that the format's own tools mean."""
    if not name.endswith(".spz") or release < 3:
        return splat
    turned = transform(splat, parse_transform(["euler:180,0,0"]))
    # A Gaussian turned by half about an axis of its own is the same; by that the format's axes differ, too.
    w, x, y, z = turned.tensors["rotation"].unbind(dim=1)
    turned.tensors["rotation"] = torch.stack([-x, w, z, -y], dim=1)
    return turned


def assert_alike(found: Splat, expected: Splat, off: dict[str, float]) -> None:
    """Alike but for the last bits, or by what `off` says of an attribute; rotations in degrees."""
    ours, theirs = found.tensors, expected.tensors
    assert angles(ours["rotation"], theirs["rotation"]).max() < off.get("rotation", 1e-3)
    opacities = [each["opacity"].sigmoid() for each in (ours, theirs)]  # 0 and 1 have no logarithm there
    torch.testing.assert_close(*opacities, atol=off.get("opacity", 1e-3), rtol=0)
    for key in ("xyz", "feature_dc", "feature_rest", "scaling"):
        torch.testing.assert_close(ours[key], theirs[key], atol=off.get(key, 1e-5), rtol=1e-5, msg=key)


# Of bytes b of a quaternion in a .splat it takes b / 127.5 - 1; we, as the inventor, (b - 128) / 128.
READ = {"a.ply": {}, "a.compressed.ply": {}, "a.splat": {"rotation": 1.0}, "a.spz": {}}


@pytest.mark.parametrize("name", READ)
def test_it_reads_what_is_written_as_we_do(tmp_path, convert, splat, name):
    write(tmp_path / name, splat)
    convert(tmp_path / name, tmp_path / "theirs.ply")
    theirs = axes_of(read(tmp_path / "theirs.ply"), name, convert.release)
    assert_alike(read(tmp_path / name), theirs, READ[name])


@pytest.mark.parametrize("name", READ)
def test_we_read_what_it_writes_as_it_does(tmp_path, convert, splat, name):
    if name == "a.splat" and convert.release < 3:
        pytest.skip("release 2 does not write .splat")
    write(tmp_path / "ours.ply", splat)
    convert(tmp_path / "ours.ply", tmp_path / name)
    convert(tmp_path / name, tmp_path / "theirs.ply")
    theirs = axes_of(read(tmp_path / "theirs.ply"), name, convert.release)
    assert_alike(read(tmp_path / name), theirs, READ[name])


# The formats' steps: 11 bits of a chunk's bounds, bytes, 12 bits after the point.
KEPT = {
    "a.ply": {},
    "a.compressed.ply": {"xyz": 0.01, "scaling": 0.005, "feature_dc": 0.03, "feature_rest": 1 / 32},
    "a.splat": {"feature_dc": 0.015, "rotation": 2.0},
    "a.spz": {"xyz": 1 / 4095, "scaling": 1 / 31, "feature_dc": 0.014, "feature_rest": 1 / 14},
}


@pytest.mark.parametrize("name", KEPT)
def test_what_it_writes_is_the_source_within_the_formats_steps(tmp_path, convert, splat, name):
    if name == "a.splat" and convert.release < 3:
        pytest.skip("release 2 does not write .splat")
    write(tmp_path / "ours.ply", splat)
    convert(tmp_path / "ours.ply", tmp_path / name)
    found = axes_of(read(tmp_path / name), name, convert.release)
    rows = torch.cdist(found.tensors["xyz"], splat.tensors["xyz"]).argmin(dim=1)
    assert len(set(rows.tolist())) == 1000  # its compressed PLY and .spz have another order
    source = Splat({key: value[rows] for key, value in splat.tensors.items()}, "")
    if name == "a.splat":
        source = source.with_degree(0)
    loose = {} if name == "a.ply" else {"rotation": 1.5, "opacity": 1 / 250}
    assert_alike(found, source, loose | KEPT[name])
