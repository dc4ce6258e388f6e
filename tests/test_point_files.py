"""Clouds of points to begin with: what is read, how it is thinned, what a run makes of it."""

import re
import zipfile

import numpy as np
import pytest
import scenes
import torch
from plyfile import PlyData, PlyElement

from gsopt import TrainConfig, Trainer
from gsopt.commands import main
from gsopt.datasets import load_points, load_scene, read_points
from gsopt.errors import InputError

XYZ = np.arange(12, dtype=np.float64).reshape(4, 3) / 8
RGB = np.array([[0, 51, 102], [255, 0, 0], [0, 255, 51], [255, 255, 255]], np.uint8)
FIELDS = [("z", "f4"), ("y", "f8"), ("x", "i2"), ("blue", "u1"), ("red", "u1"), ("green", "u1"), ("nx", "f4")]


def rows(kind: list = FIELDS) -> np.ndarray:
    """A structured array with fields in an odd order and of odd types."""
    array = np.zeros(4, kind)
    for i, axis in enumerate("xyz"):
        array[axis] = 8 * XYZ[:, i]
    for i, color in enumerate(("red", "green", "blue")):
        if color in array.dtype.names:
            array[color] = RGB[:, i]
    return array


GOOD = {  # file name, what writes it; XYZ or 8 XYZ, and RGB
    "npy of positions and colours": ("a.npy", lambda f: np.save(f, np.hstack([XYZ, RGB / 255])), 1, True),
    "npy float32": ("a.npy", lambda f: np.save(f, np.hstack([XYZ, RGB / 255]).astype("f4")), 1, True),
    "npy big endian": ("a.npy", lambda f: np.save(f, np.hstack([XYZ, RGB / 255]).astype(">f8")), 1, True),
    "npy in columns": (
        "a.npy",
        lambda f: np.save(f, np.asfortranarray(np.hstack([XYZ, RGB / 255]))),
        1,
        True,
    ),
    "npy of positions": ("a.npy", lambda f: np.save(f, XYZ), 1, False),
    "npy of whole numbers": ("a.npy", lambda f: np.save(f, (8 * XYZ).astype("i8")), 8, False),
    "npy with fields": ("a.npy", lambda f: np.save(f, rows()), 8, True),
    "npz": ("a.npz", lambda f: np.savez(f, xyz=XYZ, rgb=RGB), 1, True),
    "npz compressed, other names": (
        "a.npz",
        lambda f: np.savez_compressed(f, points=XYZ, colors=RGB),
        1,
        True,
    ),
    "npz of floats, more in it": (
        "a.npz",
        lambda f: np.savez(f, xyz=XYZ, rgb=(RGB / 255).astype("f2"), normals=XYZ, name="scan"),
        1,
        True,
    ),
    "npz of ushort colours": ("a.npz", lambda f: np.savez(f, xyz=XYZ, rgb=RGB * np.uint16(257)), 1, True),
    "npz of positions": ("a.npz", lambda f: np.savez(f, xyz=XYZ), 1, False),
    "ply": ("a.ply", lambda f: PlyData([PlyElement.describe(rows(), "vertex")]).write(f), 8, True),
    "ply with normals, no colours": (
        "a.ply",
        lambda f: PlyData([PlyElement.describe(rows([*FIELDS[:3], FIELDS[6]]), "vertex")]).write(f),
        8,
        False,
    ),
    "ply of a mesh": (
        "a.ply",
        lambda f: PlyData(
            [
                PlyElement.describe(rows(), "vertex"),
                PlyElement.describe(np.array([([0, 1, 2],)], [("vertex_indices", "i4", (3,))]), "face"),
            ],
            text=True,
        ).write(f),
        8,
        True,
    ),
}


@pytest.mark.parametrize(("name", "write", "unit", "colored"), GOOD.values(), ids=GOOD)
def test_good_files(tmp_path, name, write, unit, colored):
    write(tmp_path / name)
    if colored:
        points = load_points(tmp_path / name)
    else:
        with pytest.warns(UserWarning, match=f"{name}: no colours in it; all 4 points begin as grey"):
            points = load_points(tmp_path / name)
    assert points.xyz.dtype == points.rgb.dtype == torch.float32
    assert points.path == tmp_path / name
    np.testing.assert_array_equal(points.xyz, unit * XYZ)
    expected = RGB / 255 if colored else np.full((4, 3), 0.5)
    np.testing.assert_allclose(points.rgb, expected, atol=1e-3 if "floats" in str(write) else 3e-4)


BROKEN = {  # file name, what writes it, what the line says
    "no file": ("a.npy", lambda f: None, "a.npy: no such file; give the path"),
    "no npz": ("a.npz", lambda f: None, "a.npz: no such file; give the path"),
    "text": (
        "a.npy",
        lambda f: f.write_text("x y z"),
        "a.npy: not a complete file of numpy ( ... ); write or",
    ),
    "npz that is none": (
        "a.npz",
        lambda f: f.write_text("PK"),
        "a.npz: not a complete file of numpy ( ... );",
    ),
    "empty": ("a.npy", lambda f: f.write_bytes(b""), "a.npy: not a complete file of numpy ("),
    "objects": (
        "a.npy",
        lambda f: np.save(f, np.array([{}, {}], object), allow_pickle=True),
        "a.npy: not a complete file of numpy ( ... write or download",
    ),
    "too short": (
        "a.npy",
        lambda f: (np.save(f, XYZ), f.write_bytes(f.read_bytes()[:-8])),
        "a.npy: not a complete file of numpy (",
    ),
    "one row of numbers": (
        "a.npy",
        lambda f: np.save(f, XYZ[:, 0]),
        "a.npy: an array of float64 [4], expected numbers [P, 3] or, with colours in 0..1, [P, 6]; save",
    ),
    "four columns": ("a.npy", lambda f: np.save(f, np.ones((5, 4))), "a.npy: an array of float64 [5, 4]"),
    "words": ("a.npy", lambda f: np.save(f, np.array([["a"] * 3])), "a.npy: an array of <U1 [1, 3]"),
    "no points": ("a.npy", lambda f: np.save(f, XYZ[:0]), "a.npy: no points, expected at least one; give"),
    "nan": (
        "a.npy",
        lambda f: np.save(f, np.where(XYZ == 1, np.nan, XYZ)),
        "a.npy: vertex 2: z is nan, expected a finite number (1 of 4 vertices are so); remove these points",
    ),
    "colours to 255": (
        "a.npy",
        lambda f: np.save(f, np.hstack([XYZ, RGB.astype("f8")])),
        "a.npy: vertex 0: colour [0.0, 51.0, 102.0] of type float64, expected 0 to 1; store colours as",
    ),
    "fields that are no numbers": (
        "a.npy",
        lambda f: np.save(f, np.zeros(2, [("x", "f4"), ("y", "U3"), ("z", "f4")])),
        "a.npy: element vertex has a list as y, expected a number for each",
    ),
    "fields without z": (
        "a.npy",
        lambda f: np.save(f, np.zeros(2, [("x", "f4"), ("y", "f4")])),
        "a.npy: element vertex lacks z, expected a number for each (found: x, y); give",
    ),
    "npz without positions": (
        "a.npz",
        lambda f: np.savez(f, rgb=RGB, normals=XYZ),
        "a.npz: no array xyz or points, expected one [P, 3] (found: normals, rgb); save it under this name",
    ),
    "npz with fewer colours": (
        "a.npz",
        lambda f: np.savez(f, xyz=XYZ, rgb=RGB[:3]),
        "a.npz: rgb is an array of uint8 [3, 3], expected numbers [4, 3]; save it so",
    ),
    "npz of a number": (
        "a.npz",
        lambda f: np.savez(f, xyz=np.float64(3)),
        "a.npz: xyz is an array of float64 [], expected numbers [P, 3]",
    ),
    "npz of words": (
        "a.npz",
        lambda f: np.savez(f, xyz=np.array([["a"] * 3])),
        "a.npz: xyz is an array of <U1",
    ),
}


@pytest.mark.parametrize(("name", "write", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError) as caught:
        load_points(tmp_path / name)
    assert re.search(".*".join(map(re.escape, message.split(" ... "))), str(caught.value))
    assert "\n" not in str(caught.value)


def test_an_npz_that_claims_more_than_it_has_is_refused_before_memory_is_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", XYZ)
    content = (tmp_path / "a.npy").read_bytes()
    lie = content.replace(b"(4, 3), }        ", b"(4000000000, 3),}")
    assert len(lie) == len(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("xyz.npy", lie)
    with pytest.raises(InputError, match=r"xyz.npy is too short for its shape \[4000000000, 3\]"):
        load_points(tmp_path / "a.npz")


def test_an_ending_that_no_cloud_has(tmp_path):
    (tmp_path / "a.las").write_bytes(b"LASF")
    config = TrainConfig(scene=scenes.write_colmap(tmp_path / "s"), init=tmp_path / "a.las", iterations=1)
    with pytest.raises(InputError, match=r"--init .*a.las: no format .*\.spz, .*\.npy, \.npz"):
        Trainer(config)


# in a scene, in a run


def test_points_of_any_source_are_thinned(tmp_path):
    colmap = scenes.write_colmap(tmp_path / "colmap")
    assert len(load_scene(colmap).points.xyz) == 200
    assert 10 <= len(load_scene(colmap, init_max=25).points.xyz) <= 25
    transforms = scenes.write_transforms(tmp_path / "transforms", points=90)
    assert 10 <= len(load_scene(transforms, init_max=25).points.xyz) <= 25
    np.savez(tmp_path / "a.npz", xyz=XYZ, rgb=RGB)
    assert len(load_scene(colmap, init=tmp_path / "a.npz", init_max=3).points.xyz) <= 3


@pytest.mark.parametrize("build", [scenes.write_colmap, scenes.write_nerf_synthetic, scenes.write_transforms])
def test_random_points_of_a_given_number_in_the_volume_that_cameras_see(tmp_path, build):
    scene = load_scene(build(tmp_path), init_points=1234)
    assert scene.points.xyz.shape == scene.points.rgb.shape == (1234, 3)
    assert scene.points.path is None
    centers = torch.stack([view.camera.center for view in scene.train])
    assert scene.points.xyz.norm(dim=1).max() < 4 * centers.norm(dim=1).max()
    assert torch.equal(scene.points.xyz, load_scene(tmp_path, init_points=1234).points.xyz)


def test_more_random_points_than_the_views_see_are_refused(tmp_path, monkeypatch):
    from gsopt.datasets import initial_points

    monkeypatch.setattr(initial_points, "_BATCHES", 1)
    scenes.write_nerf_synthetic(tmp_path)
    with pytest.raises(InputError, match=r"--init-points 5000: .* see only .* together; give a lower"):
        load_scene(tmp_path, init_points=5000)


def test_a_run_begins_with_the_points_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", xyz=np.vstack([XYZ - 0.7, 0.5 - XYZ]), rgb=np.vstack([RGB, RGB]))
    scene = scenes.write_nerf_synthetic(tmp_path / "scene", points=60)
    common = {"scene": scene, "iterations": 4, "resolution": 12, "quiet": True}
    counts = {"init": 8, "random": 1500, "thinned": 3}
    for name, given_ in (
        ("init", {"init": tmp_path / "a.npz"}),
        ("random", {"init_points": 1500}),
        ("thinned", {"init": tmp_path / "a.npz", "init_max": 3}),
    ):
        trainer = Trainer(TrainConfig(**common, **given_, output=tmp_path / name))
        assert trainer.model.num_gaussians <= counts[name]
        assert trainer.model.num_gaussians >= counts[name] - (name == "thinned")
        before = trainer.model.xyz.detach().clone()
        trainer.train()
        assert not torch.equal(before, trainer.model.xyz)
    (tmp_path / "a.npz").unlink()  # nothing that comes later needs it
    for name in counts:
        resumed = Trainer(TrainConfig.of_run(tmp_path / name))
        assert resumed.step == 4
        assert main(["evaluate", str(tmp_path / name), "--device", "cpu"]) == 0


FLAGS = {
    "no points": ({"init_points": 0}, "--init-points 0: expected 1 or more"),
    "at most none": ({"init_max": 0}, "--init-max 0: expected 1 or more"),
    "random points and a file": (
        {"init_points": 5, "init": "a.npz"},
        "--init-points 5: are random points, and --init a.npz is about others; leave one of the two away",
    ),
    "random points, thinned": (
        {"init_points": 5, "init_max": 3},
        "--init-points 5: are random points, and --init-max 3 is about others; leave one of the two away",
    ),
    "Gaussians, thinned": (
        {"init": "a.splat", "init_max": 3},
        "--init-max 3: thins clouds of points, and --init .*a.splat has Gaussians; make it smaller first",
    ),
}


@pytest.mark.parametrize(("settings_", "message"), FLAGS.values(), ids=FLAGS)
def test_flags_that_contradict_each_other(tmp_path, settings_, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.splat").write_bytes(bytes(32))
    with pytest.raises(InputError, match=message):
        TrainConfig(scene=tmp_path, **settings_).check()


def test_positions_are_float64_until_they_are_moved(tmp_path):
    """Coordinates of a map, in millions of metres: their differences survive, if the scene is normalised."""
    np.save(tmp_path / "a.npy", XYZ + np.array([400_000, 5_000_000, 100]))
    with pytest.warns(UserWarning, match="no colours"):
        points = read_points(tmp_path / "a.npy")
    assert points.xyz.dtype == torch.float64
    np.testing.assert_array_equal(points.xyz - torch.tensor([400_000, 5_000_000, 100.0]), XYZ)
