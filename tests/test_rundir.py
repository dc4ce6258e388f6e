"""Whose folder a run's folder is, and where its pictures go."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gsopt.errors import InputError
from gsopt.rundir import RunFolder

PICTURES = {  # view: picture of it, inside renders/test
    "a.png": "a.png",
    "a.jpg": "a.jpg.png",
    "a.b.JPG": "a.b.JPG.png",
    "left/0001": "left/0001.png",
    "../photos/a.png": "photos/a.png",
    "left/../../a.png": "left/a.png",
    "/home/me/photos/a.png": "home/me/photos/a.png",
    "/home/me/photos/a.jpg": "home/me/photos/a.jpg.png",
}


@pytest.mark.parametrize("view", PICTURES)
def test_a_picture_is_always_inside_the_run(tmp_path, view):
    assert RunFolder(tmp_path).picture_of("test", view) == tmp_path / "renders" / "test" / PICTURES[view]


def claims(runs: list[RunFolder]) -> list[Path | None]:
    """The folders that they get when they claim at once; None for refused."""

    def claim(run: RunFolder) -> Path | None:
        try:
            return run.claim().path
        except InputError:
            return None

    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(claim, runs))


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gsopt.rundir.datetime", type("Noon", (), {"now": staticmethod(lambda: Noon())}))
    got = claims([RunFolder.new(None, "ball") for _ in range(8)])
    assert sorted(path.name for path in got) == ["ball-noon", *(f"ball-noon_{n}" for n in range(2, 9))]
    assert RunFolder.new(None, "ball").path == Path("output/ball-noon_9")


class Noon:
    def __format__(self, _: str) -> str:
        return "noon"


@pytest.mark.parametrize("exists", [False, True])
def test_one_of_several_gets_a_folder_given_by_name(tmp_path, exists):
    folder = tmp_path / "deep" / "run"
    if exists:
        folder.mkdir(parents=True)
    got = claims([RunFolder.new(folder) for _ in range(8)])
    assert [path for path in got if path] == [folder]
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_what_is_in_a_folder_stays(tmp_path):
    run = RunFolder.new(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")  # after `new` had a look
    for attempt in (run.claim, lambda: RunFolder.new(tmp_path)):
        with pytest.raises(InputError, match="something here already"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_resumed_run_is_made_again_without_harm(tmp_path):
    run = RunFolder.new(tmp_path / "run").claim()
    run.config.write_text("{}")
    run.make()
    assert RunFolder.open(run.path).config.read_text() == "{}"


def test_a_file_of_a_run_is_not_the_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"config.json: not the folder of a run .*; give {tmp_path}$"):
        RunFolder.open(tmp_path / "config.json")
