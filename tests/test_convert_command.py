"""`gsopt convert`: the command line, what it prints, what it refuses."""

import pytest
import torch
from splats import assert_same, gsplat_checkpoint, original_checkpoint, random_splat, random_tensors

from gsopt.commands import main
from gsopt.formats import read, write
from gsopt.model import GaussianModel


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.ply", random_splat(50, seed=1))
    write(tmp_path / "b.ply", random_splat(20, degree=1, seed=2))
    torch.save(original_checkpoint(random_tensors()), tmp_path / "chkpnt700.pth")
    for rank in range(2):
        torch.save(gsplat_checkpoint(random_tensors(seed=rank)), tmp_path / f"ckpt_9_rank{rank}.pt")
    return tmp_path


def test_the_example_of_the_documents(folder, capsys):
    words = "a.ply --crop box:0,-inf,-inf,inf,inf,inf --transform scale:2 --transform translate:0,0,1"
    assert main(["convert", *words.split(), "--merge", "b.ply", "out.ply"]) == 0
    inside = read(folder / "a.ply").tensors["xyz"]
    inside = inside[inside[:, 0] >= 0]
    found = read(folder / "out.ply").tensors["xyz"]
    torch.testing.assert_close(found[:-20], 2 * inside + torch.tensor([0, 0, 1.0]))
    assert torch.equal(found[-20:], read(folder / "b.ply").tensors["xyz"])  # joined after the move, as it is
    out = capsys.readouterr().out
    assert "read      a.ply: PLY, 50 Gaussians, SH degree 3" in out
    assert f"wrote     out.ply: {len(found)} Gaussians, SH degree 3, " in out


@pytest.mark.parametrize(
    "words", ["a.ply b.ply out.ply", "--merge b.ply a.ply out.ply", "a.ply out.ply --merge=b.ply"]
)
def test_files_are_joined_wherever_flags_stand(folder, words):
    assert main(["convert", *words.split()]) == 0
    assert read(folder / "out.ply").count == 70


def test_several_crops_are_done_in_turn(folder):
    first, second = "box:0,-inf,-inf,inf,inf,inf", "outside:sphere:0,0,0,3"
    assert main(["convert", "a.ply", "--crop", first, "--crop", second, "out.ply"]) == 0
    centres = read(folder / "a.ply").tensors["xyz"]
    kept = centres[(centres[:, 0] >= 0) & (centres.norm(dim=1) > 3)]
    assert 0 < len(kept) < 50
    assert torch.equal(read(folder / "out.ply").tensors["xyz"], kept)


def test_all_ranks_are_read_once_however_many_are_named(folder, capsys):
    assert main(["convert", "ckpt_9_rank0.pt", "ckpt_9_rank1.pt", "out.ply"]) == 0
    assert read(folder / "out.ply").count == 14
    assert "note      joined from 2 ranks" in capsys.readouterr().out


def test_moments_go_along_where_there_is_room(folder, capsys):
    assert main(["convert", "chkpnt700.pth", "out.pth"]) == 0
    source, found = read(folder / "chkpnt700.pth"), read(folder / "out.pth")
    for name, entries in source.moments.items():
        assert_same(found.moments[name], entries)
    assert "left out" not in capsys.readouterr().out
    assert main(["convert", "chkpnt700.pth", "out.spz"]) == 0
    out = capsys.readouterr().out
    assert "700 steps, moments of 6 attributes" in out
    assert "note      the optimizer's moments are left out" in out
    assert "note      quantised, at most: centres by " in out


def test_harmonics_are_cut_and_it_is_said(folder, capsys):
    assert main(["convert", "a.ply", "out.ply", "--sh-degree", "1"]) == 0
    assert GaussianModel.load_ply(folder / "out.ply").max_sh_degree == 1
    assert "note      harmonics of degree 3 cut to 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "degree"), [("out.ply", 4), ("out.compressed.ply", 3), ("out.spz", 3), ("out.splat", 0)]
)
def test_the_degree_that_is_told_is_that_of_the_file(folder, capsys, name, degree):
    write(folder / "four.ply", random_splat(5, degree=4))
    assert main(["convert", "four.ply", name]) == 0
    assert f"wrote     {name}: 5 Gaussians, SH degree {degree}, " in capsys.readouterr().out
    assert read(folder / name).sh_degree == degree


def test_nothing_is_overwritten_unless_asked(folder, capsys):
    before = (folder / "b.ply").read_bytes()
    assert main(["convert", "a.ply", "b.ply"]) == 2
    assert (
        "b.ply: there is something here already; give another name, or --overwrite" in capsys.readouterr().err
    )
    assert (folder / "b.ply").read_bytes() == before
    assert main(["convert", "a.ply", "b.ply", "--overwrite"]) == 0
    assert (folder / "b.ply").read_bytes() == (folder / "a.ply").read_bytes()
    assert main(["convert", "b.ply", "b.ply", "--sh-degree", "0", "--overwrite"]) == 0  # onto itself
    assert read(folder / "b.ply").sh_degree == 0


@pytest.mark.parametrize(
    "name", ["out.ply", "out.compressed.ply", "out.splat", "out.spz", "out.pth", "out.pt"]
)
def test_a_full_disk_leaves_what_was_there(folder, name, monkeypatch, capsys):
    (folder / name).write_bytes(b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr("gsopt.datasets.ply.os.fsync", fail)
    assert main(["convert", "chkpnt700.pth", name, "--overwrite"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (folder / name).read_bytes() == b"old"
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected IN... OUT, found 0 file names"),
        ("a.ply", "expected IN... OUT, found 1 file names"),
        ("none.ply out.ply", "none.ply: no such file"),
        ("a.ply out.ckpt", "out.ckpt: .ckpt is not written; expected one of .ply"),
        ("a.ply out.obj", "out.obj: no format has this ending"),
        ("a.obj out.ply", "a.obj: no format has this ending; expected one of .ply"),
        ("a.ply out.ply --sh-degree 4", "--sh-degree 4: expected 0, 1, 2 or 3"),
        ("a.ply out.ply --extent -1", "--extent -1: expected a length above 0"),
        ("a.ply out.ply --crop box:1", "--crop box:1: expected 6 numbers"),
        ("a.ply out.ply --transform turn:1", "--transform turn:1: expected one of scale"),
        ("a.ply out.ply --merge none.ply", "none.ply: no such file"),
        ("a.ply out.pth", "out.pth: a checkpoint of 3DGS holds the scene's extent"),
        ("a.ply out.ply --krop box:1", "--krop"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, words, message, capsys):
    assert main(["convert", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gsopt: error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(folder.glob("out.*"))
