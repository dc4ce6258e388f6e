"""Scenes that cannot be divided, blocks that cannot be joined, flags that cannot be used."""

import json
import re
from pathlib import Path

import pytest
import scenes
from blocks import PHOTOS, finish, made, refused, with_tracks

from gsopt.blocks.partition import FILE, Partition
from gsopt.rundir import write_json


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    return with_tracks(scenes.write_colmap(tmp_path_factory.mktemp("blocks") / "ball", views=PHOTOS))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--scene": None}, "--scene: expected a value, found none"),
        ({"--output": None}, "--output: expected a value, found none"),
        ({"--blocks": None}, "--blocks: expected a value, found none; give 3x2, or 6"),
        ({"--blocks": "1"}, "--blocks 1: expected 2 or more blocks"),
        ({"--blocks": "0x3"}, "--blocks 0x3: expected 2 or more blocks"),
        ({"--blocks": "2x2x2"}, "--blocks 2x2x2: expected 2 or more blocks"),
        ({"--blocks": "two"}, "--blocks two: expected 2 or more blocks"),
        ({"--blocks": "15"}, "--blocks 15: more blocks than the 14 photos to train on"),
        ({"--overlap": "-1"}, "--overlap -1: expected 0 or more"),
        ({"--overlap": "nan"}, "--overlap nan: expected 0 or more"),
        ({"--min-seen": "0"}, "--min-seen 0: expected a share above 0"),
        ({"--min-seen": "2"}, "--min-seen 2: expected a share above 0"),
        ({"--test-every": "-1"}, "--test-every -1: expected 0 or more"),
        ({"--test-every": "1"}, "no view is left to train on"),
        ({"--scene": "nowhere"}, "nowhere: no such directory"),
        ({"--output": "{ball}"}, "ball: there is something here already; give a new folder"),
    ],
    ids=str,
)
def test_what_cannot_be_divided(tmp_path, ball, capsys, flags, message):
    given = {"--scene": str(ball), "--output": str(tmp_path / "out"), "--blocks": "2"} | flags
    words = [word for flag, value in given.items() if value for word in (flag, value.format(ball=ball))]
    refused(capsys, ["partition", *words], message)
    assert not (tmp_path / "out" / FILE).exists()


def test_scenes_that_cannot_be_divided(tmp_path, capsys):
    given = ["--output", tmp_path / "out", "--blocks", "2"]
    other = scenes.write_transforms(tmp_path / "other")
    message = "other: a scene of the format transforms, expected a COLMAP model in sparse/0; gsopt prepare"
    refused(capsys, ["partition", "--scene", other, *given], message)
    same = scenes.write_colmap(tmp_path / "same", text=True)
    images = same / "sparse" / "0" / "images.txt"
    pose = "1 0 0 0 0 0 4"
    images.write_text(re.sub(r"(?m)^(\d+) (\S+ ){7}", rf"\1 {pose} ", images.read_text()))
    message = "--blocks 2: 5 photos to train on stand where 2 blocks would be, and no cut parts them"
    refused(capsys, ["partition", "--scene", same, *given], message)
    (same / "sparse" / "0" / "points3D.txt").write_text("")
    refused(capsys, ["partition", "--scene", same, *given], "5 photos")
    bare = scenes.write_colmap(tmp_path / "bare", text=True)
    (bare / "sparse" / "0" / "points3D.txt").write_text("")
    refused(
        capsys, ["partition", "--scene", bare, *given], "sparse/0: no points, expected some in each block"
    )


def without_run(parts: Partition) -> None:
    parts.run_of(parts.blocks[1]).config.unlink()


def half_trained(parts: Partition) -> None:
    write_json(parts.run_of(parts.blocks[1]).metrics, {"iterations": 9})


def not_ended(parts: Partition) -> None:
    parts.run_of(parts.blocks[1]).metrics.unlink()


def without_model(parts: Partition) -> None:
    parts.run_of(parts.blocks[1]).ply(10).unlink()


def of_another(parts: Partition) -> None:
    config = parts.run_of(parts.blocks[1]).config
    write_json(config, json.loads(config.read_text()) | {"scene": "/somewhere/block_0"})


def damage(**changes):
    def apply(parts: Partition) -> None:
        path = parts.folder / FILE
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return apply


def no_json(parts: Partition) -> None:
    (parts.folder / FILE).write_text("{")


def no_file(parts: Partition) -> None:
    (parts.folder / FILE).unlink()


RUN = "runs/block_1"
MERGES = {
    "no run": (without_run, f"{RUN}: no run of block_1 is here; train it: gsopt train-blocks"),
    "half trained": (
        half_trained,
        f"{RUN}: the run of block_1 has not ended, its 10 iterations are not done",
    ),
    "not ended": (not_ended, f"{RUN}: the run of block_1 has not ended"),
    "no model": (without_model, "point_cloud.ply: no such file, expected the model at the end of that run"),
    "another's": (of_another, f"{RUN}: a run of the scene /somewhere/block_0, expected one of block_1"),
    "no partition": (no_file, f"no {FILE} in it, expected a folder that gsopt partition has written"),
    "no JSON": (no_json, f"{FILE}: not JSON"),
    "version": (damage(version=2), f"{FILE}: version 2, expected 1; make it anew"),
    "no axes": (damage(axes=None), f"{FILE}: damaged (no 'axes'); make it anew"),
    "bad axes": (damage(axes=[1, 2]), f"{FILE}: damaged ("),
    "bad blocks": (damage(blocks=[{"name": "block_0"}]), f"{FILE}: damaged (no 'low')"),
}


@pytest.mark.parametrize("case", MERGES)
def test_what_cannot_be_joined(tmp_path, ball, capsys, case):
    cause, message = MERGES[case]
    parts = made(ball, tmp_path / "out")
    finish(parts, count=20)
    cause(parts)
    refused(capsys, ["merge", tmp_path / "out", "--output", tmp_path / "all.ply"], message)
    assert not (tmp_path / "all.ply").exists()


def test_flags_that_cannot_be_used(tmp_path, ball, capsys):
    parts = made(ball, tmp_path / "out")
    (tmp_path / "there.ply").write_text("")
    trained = "--iterations-per-photo: --iterations is given, too"
    for words, message in (
        (["merge"], "gsopt merge: expected a folder"),
        (["merge", parts.folder], "--output: expected a file, found none"),
        (["merge", parts.folder, "--output", tmp_path / "a.xyz"], "no format has this ending"),
        (["merge", parts.folder, "--output", tmp_path / "there.ply"], "there is something here already"),
        (["train-blocks"], "gsopt train-blocks: expected a folder"),
        (["train-blocks", tmp_path], f"no {FILE} in it"),
        (["train-blocks", parts.folder, "--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["train-blocks", parts.folder, "--iterations", "9", "--iterations-per-photo", "2"], trained),
        (["train-blocks", parts.folder, "--iterations-per-photo", "0"], "0: expected more than 0"),
        (["train-blocks", parts.folder, "--strategy", "none"], "flags of gsopt train go after --"),
        (["train-blocks", parts.folder, "--", "--scene", "a"], "--scene after --: each block has its own"),
        (["train-blocks", parts.folder, "--", "--iterations", "5"], "--iterations after --: each block has"),
        (["train-blocks", parts.folder, "--", "--sh-degree", "4"], "block_0: --sh-degree 4: expected"),
    ):
        refused(capsys, words, message)
    assert not (parts.folder / "runs").exists()
