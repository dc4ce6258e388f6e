"""Scenes in blocks: cuts, the scene of each block, ownership, runs, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch
from blocks import PHOTOS, finish, made, refused, with_tracks
from PIL import Image

from gsopt.blocks.division import Cell, divide, ground_axes, margins, to_plane
from gsopt.blocks.merging import join
from gsopt.blocks.partition import Partition
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene, read_splat
from gsopt.errors import InputError
from gsopt.rundir import write_json

# ---------------------------------------- cuts


@pytest.mark.parametrize("blocks", [(2,), (3,), (5,), (8,), (2, 1), (3, 2), (1, 4), (4, 4)], ids=str)
def test_cells_have_equal_numbers_of_cameras_and_tile_the_plane(blocks):
    random = np.random.default_rng(0)
    cameras = random.normal(size=(101, 2)) * (3.0, 1.0)
    cells = divide(cameras, blocks)
    counts = [int(cell.holds(cameras).sum()) for cell in cells]
    assert len(cells) == math.prod(blocks)
    assert sum(counts) == 101
    assert max(counts) - min(counts) <= max(2, 0.15 * max(counts))
    cuts = sorted({value for cell in cells for value in (*cell.low, *cell.high) if math.isfinite(value)})
    far = [-1e300, -1e9, *cuts, *np.nextafter(cuts, -np.inf), *np.nextafter(cuts, np.inf), 0.0, 1e9, 1e300]
    points = np.concatenate([100 * random.normal(size=(10_000, 2)), [(x, y) for x in far for y in far]])
    owners = np.stack([cell.holds(points) for cell in cells]).sum(axis=0)
    assert (owners == 1).all()


def test_a_line_of_blocks_is_cut_across_the_longer_axis():
    cameras = np.stack([np.arange(10.0), np.zeros(10)], axis=1)
    assert [cell.high[0] for cell in divide(cameras, (2,))] == [4.5, math.inf]
    assert [(cell.low[0], cell.high[0]) for cell in divide(cameras, (5, 1))][1:4] == [
        (1.5, 3.5),
        (3.5, 5.5),
        (5.5, 7.5),
    ]


def test_the_axes_are_those_of_the_cameras():
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    centers = (random.normal(size=(200, 3)) * (5.0, 2.0, 0.1)) @ turn.T
    viewmats = np.tile(np.eye(4), (200, 1, 1))
    viewmats[:, :3, 3] = -centers
    axes = ground_axes(viewmats)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.abs(axes @ turn[:, :2]), np.eye(2), atol=0.05)
    np.testing.assert_array_equal(to_plane(axes, centers)[7], to_plane(axes, centers[7:8])[0])


def test_margins_are_of_what_there_is():
    cameras, points = np.array([[0.0, 0.0], [8.0, 2.0]]), np.array([[-2.0, 0.0], [10.0, 4.0]])
    cell = Cell(low=(4.0, -math.inf))
    size = margins(cell, cameras, points, 0.5)
    np.testing.assert_allclose(size, [0.5 * 6, 0.5 * 4], rtol=0.05)
    assert cell.grown(size).low[0] == pytest.approx(1.0, abs=0.1)
    assert cell.grown(size).high == (math.inf, math.inf)


# ---------------------------------------- the scene of each block


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    return with_tracks(scenes.write_colmap(tmp_path_factory.mktemp("blocks") / "ball", views=PHOTOS))


def names(views) -> set[str]:
    return {view.camera.name for view in views}


@pytest.mark.parametrize("how", [{}, {"overlap": 0.5}, {"min_seen": 0.05}, {"blocks": (2, 2)}], ids=str)
def test_each_block_is_a_scene_with_the_test_views_of_the_whole(tmp_path, ball, how):
    whole = load_scene(ball)
    parts = made(ball, tmp_path / "out", **how)
    views = {view.camera.name: view for view in (*whole.train, *whole.test)}
    trained, tested = set(), set()
    for block in parts.blocks:
        scene = load_scene(parts.scene_of(block))
        assert (len(scene.train), len(scene.test)) == (block.train, block.test)
        assert len(scene.points.xyz) == block.points
        for view in (*scene.train, *scene.test):
            other = views[view.camera.name]
            assert torch.equal(view.image, other.image)
            torch.testing.assert_close(view.camera.viewmat, other.camera.viewmat, rtol=0, atol=1e-6)
            assert view.path.is_symlink()
            assert view.path.resolve() == other.path.resolve()
        trained |= names(scene.train)
        tested |= names(scene.test)
        owned = parts.owned(block, whole.points.xyz.numpy())
        there = {tuple(xyz) for xyz in scene.points.xyz.tolist()}
        assert {tuple(xyz) for xyz in whole.points.xyz[owned].tolist()} <= there
    assert trained == names(whole.train)
    assert tested <= names(whole.test)
    read = Partition.read(tmp_path / "out")
    assert (read.scene, list(read.blocks)) == (parts.scene, list(parts.blocks))
    np.testing.assert_array_equal(read.axes, parts.axes)


def test_more_overlap_and_less_to_be_seen_are_more_photos(tmp_path, ball):
    counts = [
        sum(block.train for block in made(ball, tmp_path / str(number), **how).blocks)
        for number, how in enumerate(
            ({"min_seen": 1.0}, {"min_seen": 1.0, "overlap": 0.5}, {"min_seen": 0.3}, {"min_seen": 0.01})
        )
    ]
    assert counts[0] >= 14
    assert counts[0] < counts[1]
    assert counts[0] < counts[2] <= counts[3] <= 28


def test_a_block_can_be_divided_again(tmp_path, ball):
    parts = made(ball, tmp_path / "out")
    again = made(parts.scene_of(parts.blocks[0]), tmp_path / "again")
    assert sum(block.train for block in again.blocks) >= parts.blocks[0].train
    inside = load_scene(parts.scene_of(parts.blocks[0]))
    for block in again.blocks:
        assert names(load_scene(again.scene_of(block)).test) <= names(inside.test)


def test_masks_depths_and_smaller_copies_are_linked(tmp_path):
    ball = scenes.write_colmap(tmp_path / "ball")
    for path in sorted((ball / "images").iterdir()):
        for folder in ("images_2", "masks"):
            (ball / folder).mkdir(exist_ok=True)
        with Image.open(path) as image:
            image.resize((16, 12)).save(ball / "images_2" / path.name)
        Image.new("L", (32, 24), 255).save(ball / "masks" / f"{path.name}.png")
        (ball / "depths").mkdir(exist_ok=True)
        np.save(ball / "depths" / path.with_suffix(".npy").name, np.full((24, 32), 4.0, np.float32))
    parts = made(ball, tmp_path / "out")
    for block in parts.blocks:
        folder = parts.scene_of(block)
        scene = load_scene(folder, resolution=16, depths=True)
        assert {view.path.parent.name for view in scene.train} == {"images_2"}
        assert all(view.inverse_depth is not None for view in scene.train)
        links = [p for p in folder.rglob("*") if p.is_symlink()]
        assert len(links) == 4 * (block.train + block.test)


def test_the_model_says_which_photos_are_for_testing(tmp_path):
    ball = scenes.write_colmap(tmp_path / "ball")
    listed = ball / "sparse" / "0" / "test.txt"
    listed.write_text("0002.png\n\n0005.png\n")
    scene = load_scene(ball)
    assert names(scene.test) == {"0002.png", "0005.png"}
    assert len(scene.train) == 4
    listed.write_text("0002.png\n0007.png\n")
    with pytest.raises(InputError, match=r"test\.txt: line 2: '0007\.png', expected the name of an image"):
        load_scene(ball)
    listed.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"test\.txt: cannot be read as text"):
        load_scene(ball)


# ---------------------------------------- joining


def test_of_each_block_only_what_it_owns_is_taken(tmp_path, ball, capsys):
    parts = made(ball, tmp_path / "out", blocks=(2, 2))
    finish(parts)
    splat, counts = join(parts)
    assert sum(owned for *_, owned in counts) == splat.count
    begin = 0
    for block, count, owned in counts:
        assert count == 300
        assert 0 < owned < 300
        xyz = splat.tensors["xyz"][begin : begin + owned].numpy()
        assert parts.owned(block, xyz).all()
        every = read_splat(parts.run_of(block).ply(10))["xyz"]
        assert parts.owned(block, every).sum() == owned
        begin += owned
    out = tmp_path / "all.ply"
    assert main(["merge", str(tmp_path / "out"), "--output", str(out)]) == 0
    assert f"wrote     {out}: {splat.count:,} Gaussians" in capsys.readouterr().out
    np.testing.assert_array_equal(read_splat(out)["xyz"], splat.tensors["xyz"].numpy())


# ---------------------------------------- training


def test_blocks_are_trained_and_joined(tmp_path, ball, capsys):
    """By the commands; a second call trains nothing, one with other settings is refused."""
    folder, flags = tmp_path / "out", ["--", "--device", "cpu", "--strategy", "none"]
    partitioned = ["partition", "--scene", ball, "--blocks", "2", "--output", folder]
    assert main(list(map(str, partitioned))) == 0
    train = ["train-blocks", str(folder), "--iterations-per-photo", "2", "--jobs", "2", "--quiet"]
    assert main([*train, *flags]) == 0
    parts = Partition.read(folder)
    for block in parts.blocks:
        run = parts.run_of(block)
        assert TrainConfig.of_run(run.path).iterations == 2 * block.train
        assert run.ply(2 * block.train).is_file()
    capsys.readouterr()
    assert main([*train, *flags]) == 0
    assert f"blocks    2, 2 done: {folder}" in capsys.readouterr().out
    other = [*train[:2], "--iterations-per-photo", "3", *flags]
    refused(capsys, other, "this run has --iterations ... and the command asks for")
    out = tmp_path / "all.ply"
    assert main(["merge", str(folder), "--output", str(out)]) == 0
    assert main(["evaluate", str(out), "--scene", str(ball), "--output", str(tmp_path / "seen")]) == 0
    assert json.loads((tmp_path / "seen" / "metrics.json").read_text())["test"]["psnr"] > 10


def test_a_block_that_was_trained_elsewhere_is_done(tmp_path, ball, capsys, monkeypatch):
    parts = made(ball, tmp_path / "out")
    finish(parts, count=20)
    for block in parts.blocks:
        config = parts.run_of(block).config
        there = {"scene": f"/elsewhere/{block.name}", "seed": 5}
        write_json(config, json.loads(config.read_text()) | there)
    monkeypatch.setattr("gsopt.sweep.runner.Job", None)
    assert main(["train-blocks", str(parts.folder), "--iterations", "99", "--quiet"]) == 0
    assert "blocks    2, 2 done" in capsys.readouterr().out
