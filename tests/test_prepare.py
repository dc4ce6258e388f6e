"""`gsopt prepare`: photos in, a scene out; what it refuses; how it goes on."""

import json
import re
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import preparing
import pytest
from PIL import Image, ImageFilter
from tqdm import tqdm

import gsopt.prepare as package
from gsopt import load_scene
from gsopt.commands import main
from gsopt.errors import InputError
from gsopt.prepare import PrepareConfig, prepare
from gsopt.prepare.frames import take_frames
from gsopt.prepare.pairs import choose_matching, pair_count
from gsopt.prepare.photos import ReadPhoto, camera_groups
from gsopt.rundir import owned


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An untidy folder of photos, its scene, the report, and the true camera centres."""
    folder = tmp_path_factory.mktemp("prepare")
    centers = preparing.make_untidy(folder / "photos", preparing.draw_photos(folder / "photos"))
    config = PrepareConfig(images=folder / "photos", output=folder / "scene", camera_model="SIMPLE_RADIAL")
    return config, prepare(config), centers


def test_the_scene_has_the_cameras_that_took_the_photos(made):
    config, _, centers = made
    scene = load_scene(config.output, test_every=0)
    assert {view.camera.name for view in scene.train} == set(centers)
    found = np.array([view.camera.center.numpy() for view in scene.train], np.float64)
    truth = np.array([centers[view.camera.name] for view in scene.train])
    assert preparing.aligned_error(found, truth) < 0.02
    for view in scene.train:
        assert view.camera.K[0, 0].item() == pytest.approx(preparing.FOCAL, rel=0.05)
        assert view.camera.width > view.camera.height  # also the photo that lies on its side
    assert len(scene.points.xyz) > 100


def test_smaller_copies_are_used_at_lower_resolutions(made):
    config, report, centers = made
    camera = report["cameras"]["scene"][0]
    for factor in (2, 4, 8):
        folder = config.output / f"images_{factor}"
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(centers)
        scene = load_scene(config.output, resolution=camera["width"] // factor)
        assert scene.train[0].path.is_relative_to(folder)


def test_the_report_says_what_became_of_each_photo(made):
    config, report, centers = made
    assert report == json.loads((config.output / "prepare.json").read_text())
    assert (report["photos"]["found"], report["photos"]["registered"]) == (len(centers) + 2, len(centers))
    dropped = report["photos"]["dropped"]
    assert set(dropped) == {"broken.jpg", "wall.png"}
    assert "does not decode as an image" in dropped["broken.jpg"]
    assert "no features in it" in dropped["wall.png"]
    assert 0 < report["mean_reprojection_error"] < 1
    assert report["mean_track_length"] > 2
    assert list(report["seconds"]) == ["photos", "features", "matches", "models", "scene"]
    assert not (config.output / ".prepare").exists()


def test_a_second_call_finds_it_finished_and_other_settings_are_refused(made, capsys):
    config, before = made[0], preparing.contents(made[0].output)
    flags = ["--images", str(config.images), "--output", str(config.output)]
    flags += ["--camera-model", "SIMPLE_RADIAL"]
    assert main(["prepare", *flags]) == 0
    assert f"finished  {config.output}, by an earlier call" in capsys.readouterr().out
    assert main(["prepare", *flags, "--matching", "sequential"]) == 2
    assert "--matching sequential: " in (said := capsys.readouterr().err)
    assert "was begun with --matching auto; give that again, give another --output, or delete" in said
    assert preparing.contents(config.output) == before


def test_a_call_goes_on_after_the_last_stage_that_is_done(made, tmp_path, monkeypatch):
    """Ended in each stage once; in the end it has the bits of a call that was not."""
    config = replace(made[0], output=tmp_path / "scene")
    run, started = package.run_colmap, []
    with monkeypatch.context() as patch:
        for stage in ("features", "matches", "models", "scene"):

            def interrupted(job, *args, stage=stage, **kwargs):
                started.append(job["stage"])
                result = run(job, *args, **kwargs)
                if job["stage"] == stage:
                    raise KeyboardInterrupt
                return result

            patch.setattr(package, "run_colmap", interrupted)
            with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
                prepare(config)
            assert [path.name for path in config.output.iterdir()] == [".prepare"]
    assert started == ["features", *("features", "matches"), *("matches", "models"), *("models", "scene")]
    with pytest.raises(InputError, match=r"--camera-model OPENCV: .* was begun with"):
        prepare(replace(config, camera_model="OPENCV"))
    with pytest.raises(InputError, match="no scene yet; let the same gsopt prepare --output"):
        load_scene(config.output)
    prepare(config)
    assert preparing.contents(config.output) == preparing.contents(made[0].output)


def test_photos_that_change_meanwhile_are_refused(made, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48)).save(photos / f"{number}.png")
    config = PrepareConfig(images=photos, output=tmp_path / "scene")
    with pytest.raises(InputError, match="none of the 3 photos could be placed"):
        prepare(config)
    Image.new("RGB", (64, 48)).save(photos / "3.png")
    with pytest.raises(InputError, match=r"begun with other photos: then 3 files .* now 4 files .* put them"):
        prepare(config)


def test_one_process_at_a_time_prepares_a_scene(made, tmp_path):
    config = replace(made[0], output=tmp_path / "scene")
    with (
        owned(config.output, "--output", "a test is"),
        pytest.raises(InputError, match="another gsopt prepare is at work in here"),
    ):
        prepare(config)


def test_what_is_in_the_output_is_not_overwritten(made, tmp_path):
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"something here already \(thesis.tex\), and it is not overwritten"):
        prepare(replace(made[0], output=tmp_path / "scene"))
    assert [path.name for path in (tmp_path / "scene").iterdir()] == ["thesis.tex"]


def test_the_sharpest_frames_of_a_video_are_taken(tmp_path):
    """Four sharp frames among blurred ones; of a shorter video, all."""
    sharp = {2, 9, 13, 22}
    writer = imageio_ffmpeg.write_frames(str(tmp_path / "film.mp4"), (160, 96), fps=12, quality=9)
    writer.send(None)
    for number in range(24):
        picture = Image.effect_noise((160, 96), 80).convert("RGB")
        writer.send((picture if number in sharp else picture.filter(ImageFilter.BoxBlur(2))).tobytes())
    writer.close()
    for count, taken in ((4, sharp), (60, set(range(24)))):
        folder = tmp_path / str(count)
        folder.mkdir()
        with tqdm(disable=True) as bar:
            found = take_frames(tmp_path / "film.mp4", count, folder, bar)
        assert (found["frames"], set(found["taken"])) == (24, taken)
        names = {f"frame_{number:06d}.jpg" for number in taken}
        assert {path.name for path in folder.iterdir()} == names
        with Image.open(folder / min(names)) as image:
            assert image.size == (160, 96)


@pytest.mark.parametrize(
    ("asked", "photos", "is_video", "matching", "pairs"),
    [
        ("auto", 50, False, "exhaustive", 1225),
        ("auto", 401, False, "sequential", None),
        ("auto", 50, True, "sequential", None),
        ("exhaustive", 401, True, "exhaustive", 80200),
        ("sequential", 6, False, "sequential", 15),
    ],
)
def test_which_photos_are_compared(asked, photos, is_video, matching, pairs):
    assert choose_matching(asked, photos, is_video) == matching
    assert pairs in (None, pair_count(matching, photos))


@pytest.mark.parametrize(
    ("how", "groups"),
    [
        ("auto", [["a/1", "b/1"], ["a/2"], ["b/2"]]),
        ("folder", [["a/1", "a/2"], ["b/1"], ["b/2"]]),
        ("no", [["a/1"], ["a/2"], ["b/1"], ["b/2"]]),
    ],
)
def test_which_photos_are_by_one_camera(how, groups):
    """Two phones, the second zoomed once; one photo is upright."""
    wide, tall = (640, 480), (480, 640)
    photos = [
        ReadPhoto("a/1", (*wide, "Maker", "Phone", 4.2, 26.0), False),
        ReadPhoto("a/2", (*wide, "Maker", "Phone", 9.0, 52.0), False),
        ReadPhoto("b/1", (*wide, "Maker", "Phone", 4.2, 26.0), False),
        ReadPhoto("b/2", (*tall, "Maker", "Phone", 4.2, 26.0), True),
    ]
    assert camera_groups(photos, how) == groups


# ------------------------------------------------------------------------------------------------ refusals


def photo(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert("RGB").save(path)


def nothing(folder: Path) -> None:
    pass


def no_photos(folder: Path) -> None:
    (folder / "photos" / "sub").mkdir(parents=True)
    (folder / "photos" / "notes.txt").write_text("")


def one(folder: Path) -> None:
    photo(folder / "photos" / "a.jpg")


def two_and_a_broken_one(folder: Path) -> None:
    one(folder)
    photo(folder / "photos" / "b.jpg")
    (folder / "photos" / "c.jpg").write_text("hello")


def noise(folder: Path) -> None:
    for number in range(3):
        photo(folder / "photos" / f"{number}.png", (320, 240))


def two_sizes(folder: Path) -> None:
    noise(folder)
    photo(folder / "photos" / "3.png")


def file(folder: Path) -> None:
    (folder / "photos").write_text("")


def no_video(folder: Path) -> None:
    (folder / "film.mp4").write_bytes(bytes(1000))


IMAGES = ("--images", "photos")
REFUSALS = {
    "nothing asked": (nothing, (), "expected --images DIR or --video FILE, found neither; give one"),
    "both": (noise, (*IMAGES, "--video", "film.mp4"), "--images DIR or --video FILE, found both; give one"),
    "no folder": (nothing, IMAGES, "--images photos: no such directory (found nothing); give"),
    "a file": (file, IMAGES, "--images photos: no such directory (found a file); give"),
    "no photos": (no_photos, IMAGES, "--images photos: no photos in it (JPEG, ... give their folder"),
    "one photo": (one, IMAGES, "photos: 1 photo, expected 3 or more; take more"),
    "unreadable": (
        two_and_a_broken_one,
        IMAGES,
        "photos: 2 photos (1 cannot be read: photos/c.jpg: does not decode as ... expected 3 or more",
    ),
    "nothing registers": (
        noise,
        IMAGES,
        "photos: none of the 3 photos could be placed: a median of ... features in a photo, 0 photos share",
    ),
    "two sizes": (
        two_sizes,
        (*IMAGES, "--single-camera", "yes"),
        "--single-camera yes: photos of 2 sizes (64x48, 320x240), expected one size",
    ),
    "no video": (nothing, ("--video", "film.mp4"), "--video film.mp4: no such file; give a video"),
    "not a video": (no_video, ("--video", "film.mp4"), "--video film.mp4: ffmpeg cannot read it"),
    "inside": (noise, (*IMAGES, "--output", "photos/scene"), "--output photos/scene: lies in the photos'"),
    "frames": (noise, (*IMAGES, "--frames", "2"), "--frames 2: expected 3 or more"),
    "threads": (noise, (*IMAGES, "--threads", "0"), "--threads 0: expected 1 or more"),
    "camera model": (noise, (*IMAGES, "--camera-model", "FOV"), "--camera-model"),
}


@pytest.mark.parametrize(("build", "flags", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(tmp_path, monkeypatch, capsys, build, flags, message):
    build(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = flags if "--output" in flags else (*flags, "--output", "scene")
    assert main(["prepare", *flags]) == 2
    said = capsys.readouterr().err
    assert re.search(".*".join(map(re.escape, message.split(" ... "))), said)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "scene" / "sparse").exists()


def test_train_offers_the_command_for_a_folder_of_photos(tmp_path, monkeypatch, capsys):
    noise(tmp_path)
    photos = tmp_path / "photos"
    assert main(["train", "--scene", str(photos), "--output", str(tmp_path / "run")]) == 2
    offered = f"gsopt prepare --images {photos} --output {photos}_scene"
    assert f"{photos}: no scene, 3 photos without cameras; find these with: {offered}\n" in (
        capsys.readouterr().err
    )
    monkeypatch.chdir(photos)
    with pytest.raises(InputError, match=f"gsopt prepare --images . --output {photos}_scene$"):
        load_scene(".")


def test_an_output_is_asked_for(tmp_path, capsys):
    assert main(["prepare", "--images", str(tmp_path)]) == 2
    assert "--output: expected a folder to make the scene in" in capsys.readouterr().err


def test_a_video_without_the_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "film.mp4").write_bytes(b"film")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["prepare", "--video", str(tmp_path / "film.mp4"), "--output", str(tmp_path / "s")]) == 2
    assert 'pip install "gsopt[video]"' in capsys.readouterr().err


def test_a_process_of_colmap_that_dies_is_one_line(made, tmp_path, monkeypatch):
    """Here for want of a worker; the stage is done by the next call."""
    config = replace(made[0], output=tmp_path / "scene")
    with monkeypatch.context() as patch:
        patch.setattr("gsopt.prepare.process.WORKER", tmp_path / "none.py")
        with pytest.raises(
            InputError, match=r"cannot do the stage 'features' \(exit code 2\); .*colmap.log has"
        ):
            prepare(config)
