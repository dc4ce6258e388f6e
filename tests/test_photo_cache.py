"""Photos in the cache: the same bits, keys, damage, trouble with the disk, memory, several processes."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import large_scene
import many_photos
import numpy as np
import pytest
import ranked
import scenes
import torch
from PIL import Image

from gsopt.commands import doctor
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene, photo_cache
from gsopt.datasets.mapped import let_go, map_file
from gsopt.datasets.photo_cache import HEADER, key, photo_folder, read
from gsopt.datasets.pyramid import ViewPyramid, reduce_view
from gsopt.datasets.scene import Scene, View
from gsopt.errors import InputError
from gsopt.feed import PhotoFeed
from gsopt.ranks import digest
from gsopt.runtime import ViewOrder
from gsopt.trainer import Trainer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; its photos' folder."""
    monkeypatch.setenv("GSOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "photos"


def views_of(scene: Scene) -> list[View]:
    return [*scene.train, *scene.test]


def same(views: list[View], others: list[View]) -> bool:
    return all(
        a.camera.name == b.camera.name
        and (a.camera.width, a.camera.height) == (b.camera.width, b.camera.height)
        and all(
            torch.equal(x, y)
            for x, y in (
                (a.image, b.image),
                (a.camera.K, b.camera.K),
                (a.camera.viewmat, b.camera.viewmat),
            )
        )
        for a, b in zip(views, others, strict=True)
    )


def distorted(folder: Path) -> Path:
    return scenes.write_transforms(folder, k1=0.1)


SCENES = {
    "pinhole": (scenes.write_colmap, {}),
    "reduced": (scenes.write_colmap, {"resolution": 16}),
    "normalised": (scenes.write_colmap, {"normalize": "up"}),
    "distorted": (distorted, {}),
    "distorted and reduced": (distorted, {"resolution": 16}),
    "transparent": (scenes.write_nerf_synthetic, {}),
    "alpha as mask": (scenes.write_nerf_synthetic, {"alpha": "mask"}),
}


@pytest.mark.parametrize("case", SCENES)
def test_the_same_pixels_with_every_kind_of_cache(tmp_path, monkeypatch, case):
    write, how = SCENES[case]
    scene = write(tmp_path / "scene")
    with monkeypatch.context() as alone:
        alone.setattr(photo_cache, "is_distorted", lambda lens: False)
        plain = views_of(load_scene(scene, **how))
    assert not photo_folder().exists()
    for kind in ("memory", "disk"):  # made now
        views = views_of(load_scene(scene, **how, cache=kind))
        assert same(plain, views)
        assert {view.mapped for view in views} == {kind == "disk"}
    monkeypatch.setattr(photo_cache, "load_view", None)  # made before
    assert same(plain, views_of(load_scene(scene, **how, cache="disk")))
    if case.startswith("distorted"):
        assert same(plain, views_of(load_scene(scene, **how)))


def test_photos_in_memory_without_distortion_are_not_kept(tmp_path):
    load_scene(scenes.write_colmap(tmp_path / "scene"))
    assert not photo_folder().exists()


def test_a_run_has_the_same_bits(tmp_path):
    scene = distorted(tmp_path / "scene")
    found = []
    for number, kind in enumerate(("memory", "disk", "disk", "memory")):
        run = tmp_path / str(number)
        common = {"device": "cpu", "quiet": True, "iterations": 30, "resolution": 16}
        Trainer(TrainConfig(scene=scene, output=run, cache=kind, **common)).train()
        found.append((run / "point_cloud" / "iteration_30" / "point_cloud.ply").read_bytes())
    assert found.count(found[0]) == 4


# ---------------------------------------- what a file is of


def photo_of(scene: Path, **changes):
    from dataclasses import replace

    from gsopt.datasets import _read

    return replace(_read(scene).photos[0], **changes)


def test_the_key_has_all_that_decides_the_pixels_and_no_more(tmp_path):
    from dataclasses import replace

    scene = distorted(tmp_path / "scene")
    photo = photo_of(scene)
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.path.read_bytes())
    link = tmp_path / "link.png"
    link.symlink_to(photo.path)
    lens = replace(photo.lens, params=(*photo.lens.params[:-1], 0.25))
    keys = {
        "as it is": key(photo, 16),
        "resolution": key(photo, 17),
        "whole": key(photo, None),
        "alpha": key(replace(photo, alpha="mask"), 16),
        "lens": key(replace(photo, lens=lens), 16),
        "file": key(replace(photo, path=copy), 16),
    }
    same = [
        key(replace(photo, viewmat=2 * photo.viewmat), 16),
        key(replace(photo, name="other", path=link, lens=replace(photo.lens, source="elsewhere")), 16),
    ]
    assert same == [keys["as it is"]] * 2
    os.utime(photo.path, ns=(0, photo.path.stat().st_mtime_ns + 1000))
    keys["time"] = key(photo, 16)
    assert len(set(keys.values())) == len(keys)


def test_a_photo_that_changed_is_read_again(tmp_path):
    scene = scenes.write_colmap(tmp_path / "scene")
    before = views_of(load_scene(scene, cache="disk"))
    path = before[0].path
    Image.new("RGB", (32, 24), (9, 9, 9)).save(path)
    os.utime(path, ns=(0, 1))  # a clock may be too coarse to tell
    after = views_of(load_scene(scene, cache="disk"))
    assert after[0].image.unique().tolist() == [9]
    assert same(before[1:], after[1:])


# ---------------------------------------- damage


def flip(at: int):
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    return damage


DAMAGES = {
    "empty": lambda data: b"",
    "half a header": lambda data: data[: HEADER.size // 2],
    "no pixels": lambda data: data[: HEADER.size],
    "a byte less": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "another file": lambda data: os.urandom(len(data)),
    "magic": flip(0),
    "height": flip(8),
    "channels": flip(16),
    "intrinsics": flip(20),
    "checksum": flip(56),
    "first pixel": flip(HEADER.size),
    "last pixel": flip(-1),
    "two parts swapped": lambda data: data[:1000] + data[1100:1200] + data[1000:1100] + data[1200:],
}


@pytest.mark.parametrize("kind", ["disk", "memory"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_made_anew(tmp_path, kind, damage):
    scene = distorted(tmp_path / "scene")
    views = views_of(load_scene(scene))
    path = sorted(photo_folder().iterdir())[1]
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    with pytest.warns(UserWarning, match=f"photos: 1 files were damaged .* {path.name}"):
        assert same(views, views_of(load_scene(scene, cache=kind)))
    assert path.read_bytes() == whole
    assert same(views, views_of(load_scene(scene, cache=kind)))  # without a warning


# ---------------------------------------- trouble


def a_file_in_its_place(cache: Path) -> None:
    cache.parent.write_text("")


def a_folder_in_place_of_files(cache: Path) -> None:
    for view_key in ALL_KEYS:
        (cache / f"{view_key}.photo").mkdir(parents=True)


ALL_KEYS: list[str] = []
TROUBLE = {
    "not a folder": (a_file_in_its_place, "(Not a directory)"),
    "folders where files are": (a_folder_in_place_of_files, "(Is a directory)"),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_a_cache_that_cannot_be_used(tmp_path, cache, case):
    from gsopt.datasets import _read

    scene = distorted(tmp_path / "scene")
    ALL_KEYS[:] = [key(photo, None) for photo in _read(scene).photos]
    cause, reason = TROUBLE[case]
    cause(cache)
    count = len(ALL_KEYS)
    about = f"{cache}: the {count} photos of the scene cannot be kept here {reason}; free space, or set"
    with pytest.raises(InputError) as error:
        load_scene(scene, cache="disk")
    assert str(error.value).startswith(about)
    assert str(error.value).endswith("to a folder that can be written, or leave --cache disk away")
    with pytest.warns(UserWarning, match="undistorts them anew") as told:
        views = views_of(load_scene(scene))
    assert [str(warning.message).startswith(about) for warning in told] == [True]
    assert len(views) == count


def test_a_full_disk(tmp_path, cache):
    """A limit to a file's size is told by the same errors."""
    scene = scenes.write_colmap(tmp_path / "scene")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be kept here \(File too large\); free space"):
            load_scene(scene, cache="disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(cache.iterdir()) == []


def test_a_bad_photo_is_told_as_ever(tmp_path):
    scene = scenes.write_colmap(tmp_path / "scene")
    path = sorted((scene / "images").iterdir())[2]
    path.write_bytes(path.read_bytes()[:-300])
    for kind in ("memory", "disk"):
        with pytest.raises(InputError, match=f"{path}: does not decode as an image"):
            load_scene(scene, cache=kind)


def test_what_killed_processes_left_goes_away(tmp_path, cache):
    cache.mkdir(parents=True)
    old, new = cache / "a.photo.1-1.draft", cache / "b.photo.1-1.draft"
    for draft in (old, new):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - photo_cache.STALE - 1,) * 2)
    load_scene(scenes.write_colmap(tmp_path / "scene"), cache="disk")
    assert (old.exists(), new.exists()) == (False, True)


def test_doctor_tells_of_the_cache(tmp_path, cache, capsys):
    doctor.main([])
    assert f"photos    0 in {cache}, 0.00 GB\n" in capsys.readouterr().out
    load_scene(scenes.write_colmap(tmp_path / "scene"), cache="disk")
    found = doctor.examine()["photos"]
    size = 6 * (HEADER.size + 32 * 24 * 3)
    assert found == {"folder": str(cache), "count": 6, "bytes": size}
    doctor.main([])
    assert f"photos    6 in {cache}, 0.00 GB (rm -r {cache} clears it)\n" in capsys.readouterr().out


# ---------------------------------------- memory


def resident() -> int:
    """Bytes of mapped files that are in this process's memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssFile:")))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells it")
def test_memory_is_given_back(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (1 << 17))  # 32 MiB
    whole = map_file(path, 1 << 25)
    begin, files = resident(), len(os.listdir("/proc/self/fd"))
    total = whole.sum(dtype=torch.int64)
    assert resident() - begin > 0.9 * 2**25
    let_go(whole[1000:])
    assert resident() - begin < 0.1 * 2**25
    assert whole.sum(dtype=torch.int64) == total
    assert len(os.listdir("/proc/self/fd")) == files


def test_the_photo_before_is_given_back(tmp_path, monkeypatch):
    scene = load_scene(scenes.write_colmap(tmp_path / "scene"), cache="disk")
    gone = []
    monkeypatch.setattr("gsopt.datasets.scene.let_go", lambda image: gone.append(image.data_ptr()))
    addresses = [view.image.data_ptr() for view in scene.train]
    feed = PhotoFeed(ViewPyramid(scene.train), ViewOrder(len(scene.train), 0), torch.device("cpu"))
    for number in (0, 1, 0):
        feed.take(number, 1, torch.zeros(3))
    assert gone == [addresses[0], addresses[1]]


def test_mapped_photos_on_their_way_to_a_device(tmp_path):
    scene = load_scene(scenes.write_colmap(tmp_path / "scene"), cache="disk")
    order = ViewOrder(len(scene.train), 0)
    feed = PhotoFeed(ViewPyramid(scene.train), order, torch.device("meta"))
    for _ in range(2 * len(scene.train)):
        number = order.next()
        view, photo = feed.take(number, 1, torch.zeros(3, device="meta"))
        assert (photo.device.type, view.camera.name) == ("meta", scene.train[number].camera.name)
        assert len(feed._ready) <= 2
    assert all(view.mapped and view.image.device.type == "cpu" for view in scene.train)


def test_only_so_many_reduced_views_are_kept(monkeypatch):
    monkeypatch.setattr("gsopt.datasets.pyramid.SMALLEST", 8)
    camera = scenes.orbit(1, 64, 48)[0]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8) for _ in range(4)]
    views = [View(camera, image) for image in images]
    pyramid = ViewPyramid(views, kept=2 * 32 * 24 * 3)
    for factor, stay in ((2, 2), (4, 4)):
        first = [pyramid.view(index, factor) for index in range(4)]
        again = [pyramid.view(index, factor) for index in range(4)]
        assert [a is b for a, b in zip(first, again, strict=True)] == [index < stay for index in range(4)]
        wanted = [reduce_view(view, factor) for view in views]
        assert same(wanted, first)
        assert same(wanted, again)


# ---------------------------------------- several processes


def test_two_ranks_make_one_cache(tmp_path, cache):
    scene = scenes.write_colmap(tmp_path / "scene", views=40)
    jobs = {"cached": ["cached", str(tmp_path / "run")]}
    answers = ranked.start(tmp_path, scene, jobs)
    assert answers[0] == answers[1]
    alone = load_scene(scene)
    assert answers[0]["cached"][:40] == [digest(view.image) for view in views_of(alone)]
    assert {path.suffix for path in cache.iterdir()} == {".photo"}
    assert len(list(cache.iterdir())) == 40


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_whole_files(tmp_path, cache):
    scene = many_photos.write_many(tmp_path / "scene", 300, 320, 240)
    code = (
        f"import gsopt; print('go', flush=True); gsopt.load_scene({str(scene)!r}, cache='disk'); print('end')"
    )
    random, killed = np.random.default_rng(0), 0
    for _ in range(40):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "go\n"
            time.sleep(random.uniform(0.2, 0.8))
            process.kill()
            ended = process.stdout.read() == "end\n"
        whole = list(cache.glob("*.photo"))
        assert all(read(path, path.stat().st_size) is not None for path in whole)
        if ended:
            break
        killed += len(whole) > 0
    assert killed > 0
    assert same(views_of(load_scene(scene)), views_of(load_scene(scene, cache="disk")))


@pytest.mark.slow
def test_a_thousand_photos(tmp_path, cache):
    """In the memory of the photos and 1 GiB; from the disk under 2 GiB, and a later start is sooner."""
    scene = many_photos.write_many(tmp_path / "scene", 1000, 1600, 1066)
    memory, first, later = (
        large_scene.in_a_process(scene, kind, GSOPT_CACHE=str(cache.parent))
        for kind in ("memory", "disk", "disk")
    )
    assert memory["photos_bytes"] == 1000 * 1600 * 1066 * 3
    assert memory["peak_bytes"] < memory["photos_bytes"] + 2**30
    assert max(first["peak_bytes"], later["peak_bytes"]) < 2 * 2**30
    assert later["first_step"] < min(memory["first_step"], first["first_step"])
