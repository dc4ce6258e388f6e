"""Unusable scenes: each is one line that names the file and what to do."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scenes
from PIL import Image

from gsopt.datasets import load_scene
from gsopt.errors import InputError

# damages of a scene's folder


def cut(name: str, size: int):
    """Keeps the first bytes of a file; a negative size leaves out the last."""

    def damage(scene: Path) -> None:
        path = scene / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def overwrite(name: str, content: str | bytes):
    def damage(scene: Path) -> None:
        (scene / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def remove(*names: str):
    def damage(scene: Path) -> None:
        for name in names:
            path = scene / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def substitute(name: str, pattern: str, replacement: str):
    """Replaces the first match of a regular expression in a text file."""

    def damage(scene: Path) -> None:
        path = scene / name
        text, count = re.subn(pattern, replacement, path.read_text(), count=1)
        assert count == 1
        path.write_text(text)

    return damage


def in_frame(**changes):
    """Sets keys of frames[2] of transforms.json; None removes one."""

    def damage(scene: Path) -> None:
        content = json.loads((scene / "transforms.json").read_text())
        frame = content["frames"][2] | changes
        content["frames"][2] = {key: value for key, value in frame.items() if value is not None}
        (scene / "transforms.json").write_text(json.dumps(content))

    return damage


def in_file(**changes):
    """Sets keys at the top of transforms.json; None removes one."""

    def damage(scene: Path) -> None:
        content = json.loads((scene / "transforms.json").read_text()) | changes
        text = json.dumps({key: value for key, value in content.items() if value is not None})
        (scene / "transforms.json").write_text(text)

    return damage


def save(name: str, image: Image.Image):
    def damage(scene: Path) -> None:
        image.save(scene / name)

    return damage


def nothing(scene: Path) -> None:
    pass


def matrix(**entries) -> list[list[float]]:
    """The identity with other entries: m01=2.0 is row 0, column 1."""
    out = np.eye(4).tolist()
    for name, value in entries.items():
        out[int(name[1])][int(name[2])] = value
    return out


def no_scene(folder):
    folder.mkdir()
    return folder


def as_file(scene: Path) -> None:
    scene.rmdir()
    scene.write_text("")


def rename_photos(scene: Path) -> None:
    for path in (scene / "images").iterdir():
        path.rename(path.with_suffix(".old"))


def refuses(scene: Path, message: str, **arguments) -> None:
    """load_scene raises an InputError of one line with all parts of `message` (between the dots) in order."""
    with pytest.raises(InputError) as caught:
        load_scene(scene, **arguments)
    assert re.search(".*".join(map(re.escape, message.split(" ... "))), str(caught.value))
    assert "\n" not in str(caught.value)


# tables: what -> damage, what the line says

COLMAP, NERF, TRANSFORMS = scenes.write_colmap, scenes.write_nerf_synthetic, scenes.write_transforms

FOLDERS = {
    "missing directory": (COLMAP, shutil.rmtree, "scene: no such directory (found nothing); give the folder"),
    "a file": (no_scene, as_file, "scene: no such directory (found a file); give the folder"),
    "empty directory": (
        no_scene,
        nothing,
        "scene: no scene, expected sparse/0 ... found an empty directory; give",
    ),
    "photos only": (
        TRANSFORMS,
        remove("transforms.json"),
        "scene: no scene, 6 photos without ... --images ... /scene/images --output ... /scene_scene",
    ),
    "no scene files": (
        TRANSFORMS,
        remove("transforms.json", *(f"images/{i:04d}.png" for i in range(6))),
        "scene: no scene, expected sparse/0 ... found images; give",
    ),
    "no photos": (COLMAP, remove("images"), "images: none of the 6 photos named in ... sparse/0 is there"),
    "other photos": (
        TRANSFORMS,
        rename_photos,
        "images: none of the 6 photos ... (the first is 0000.png) ... --images",
    ),
    "not an image": (
        COLMAP,
        overwrite("images/0003.png", "hello"),
        "0003.png: does not decode as an image ... replace",
    ),
    "empty image": (COLMAP, overwrite("images/0003.png", ""), "0003.png: does not decode as an image"),
    "truncated image": (
        COLMAP,
        cut("images/0003.png", 200),
        "0003.png: does not decode as an image ... replace",
    ),
    "aspect ratio": (
        COLMAP,
        save("images/0003.png", Image.new("RGB", (32, 32))),
        "0003.png: photo of 32x32 pixels, expected ... 32x24 ( ... cameras.bin camera 1); use the photos",
    ),
    "aspect ratio of a frame": (
        TRANSFORMS,
        save("images/0003.png", Image.new("RGB", (24, 32))),
        "0003.png: photo of 24x32 pixels, expected ... 32x24 ( ... transforms.json: frames[3])",
    ),
    "points3d.ply cut": (NERF, cut("points3d.ply", -1), "points3d.ply: not a complete PLY file"),
}

ARGUMENTS = {
    "resolution": (COLMAP, {"resolution": 0}, "--resolution 0: expected ... at least 1 pixel"),
    "images": (COLMAP, {"images": "photos"}, "photos: no such folder ... choose one of: images, sparse"),
    "images of NeRF-synthetic": (NERF, {"images": "train"}, "--images train: ... leave --images away"),
    "all views for testing": (
        COLMAP,
        {"test_every": 1},
        "no view is left to train on, of 6 photos; ... --test-every 0",
    ),
    "init": (COLMAP, {"init": "none.ply"}, "none.ply: no such file"),
}

TEXT_MODEL = {
    "camera": (overwrite("cameras.txt", "1 PINHOLE 32 24 30\n"), "sparse/0: COLMAP cannot read this model"),
    "pose": (overwrite("images.txt", "1 1 0 0 zero\n\n"), "sparse/0: COLMAP cannot read this model"),
    "point": (overwrite("points3D.txt", "1 0 zero\n"), "sparse/0: COLMAP cannot read this model"),
    "no images": (overwrite("images.txt", ""), "images.txt: no registered images, expected at least one"),
    "no points": (
        overwrite("points3D.txt", ""),
        "points3D.txt: no points, expected at least one; ... --init",
    ),
    "no cameras": (overwrite("cameras.txt", ""), "sparse/0: COLMAP cannot read this model"),
    "one name twice": (
        substitute("images.txt", "0001.png", "0002.png"),
        "images.txt: image 0002.png is there twice",
    ),
    "negative focal length": (
        overwrite("cameras.txt", "1 PINHOLE 32 24 -30 30 16 12\n"),
        "cameras.txt camera 1: PINHOLE camera of 32x24 pixels ... [-30.0, ... expected a positive size",
    ),
    "panorama": (
        overwrite("cameras.txt", "1 EQUIRECTANGULAR 32 24 32 24\n"),
        "cameras.txt: camera 1 is EQUIRECTANGULAR, expected a lens; cut the panoramas",
    ),
    "file missing": (
        remove("points3D.txt"),
        "sparse/0: no points3D.txt, expected ... found: cameras.txt, images.txt",
    ),
}

BINARY_MODEL = {
    "cameras.bin cut": (cut("cameras.bin", -1), "cameras.bin: truncated: ... record 0 of 1; copy or export"),
    "images.bin cut": (
        cut("images.bin", 200),
        "images.bin: truncated: its 200 bytes end in record 2 of 6; copy",
    ),
    "images.bin cut in a name": (cut("images.bin", 8 + 64 + 3), "images.bin: truncated: ... record 0 of 6"),
    "points3D.bin cut": (cut("points3D.bin", -8), "points3D.bin: truncated: ... record 199 of 200; copy"),
    "rigs.bin cut": (cut("rigs.bin", -1), "rigs.bin: truncated"),
    "frames.bin cut": (cut("frames.bin", 20), "frames.bin: truncated"),
    "images.bin empty": (overwrite("images.bin", b""), "images.bin: 0 bytes, not even the number of records"),
    "absurd count": (overwrite("points3D.bin", b"\xff" * 16), "points3D.bin: truncated"),
    "no points": (
        overwrite("points3D.bin", bytes(8)),
        "points3D.bin: no points, expected at least one; ... --init",
    ),
    "unknown camera model": (
        overwrite("cameras.bin", b"\1" + bytes(7) + b"\1" + bytes(3) + b"\x63" + bytes(60)),
        "cameras.bin: camera model 99, which pycolmap does not know",
    ),
    "file missing": (remove("points3D.bin"), "sparse/0: no points3D.bin, expected ... found: cameras.bin"),
}

JSON_FILE = {
    "not JSON": (overwrite("transforms.json", "{frames"), "transforms.json: not JSON ( ... line 1"),
    "not text": (overwrite("transforms.json", b"\xff\xfe\0"), "transforms.json: not JSON"),
    "half of it": (cut("transforms.json", 300), "transforms.json: not JSON ... write or download it again"),
    "a list": (overwrite("transforms.json", "[1]"), "transforms.json: no list of 'frames'"),
    "no frames": (in_file(frames=[]), "transforms.json: 'frames' is empty, expected at least one"),
    "frames not a list": (in_file(frames={"a": 1}), "transforms.json: no list of 'frames'"),
    "frame not an object": (in_file(frames=[3]), "transforms.json: frames[0] has no file_path"),
    "no file_path": (in_frame(file_path=None), "frames[2] has no file_path, expected a text"),
    "no matrix": (
        in_frame(transform_matrix=None),
        "frames[2] has no transform_matrix, expected a 4x4 matrix",
    ),
    "2x4": (in_frame(transform_matrix=matrix()[:2]), "frames[2]: transform_matrix is not a 4x4 matrix"),
    "ragged": (in_frame(transform_matrix=[[1], [2, 3]]), "frames[2]: transform_matrix is not a 4x4 matrix"),
    "words": (in_frame(transform_matrix=[["a"] * 4] * 4), "frames[2]: transform_matrix is not a 4x4 matrix"),
    "NaN": (
        in_frame(transform_matrix=matrix(m03=np.nan)),
        "frames[2]: ... of finite numbers; correct or remove",
    ),
    "infinite": (in_frame(transform_matrix=matrix(m00=np.inf)), "frames[2]: ... of finite numbers"),
    "sheared": (in_frame(transform_matrix=matrix(m01=0.2)), "frames[2]: transform_matrix is not rigid"),
    "unequal scale": (in_frame(transform_matrix=matrix(m00=1.2)), "frames[2]: transform_matrix is not rigid"),
    "mirrored": (
        in_frame(transform_matrix=matrix(m00=-1.0)),
        "frames[2]: transform_matrix has determinant -1",
    ),
    "zero": (in_frame(transform_matrix=[[0] * 4] * 4), "frames[2]: transform_matrix has determinant 0"),
    "last row": (in_frame(transform_matrix=matrix(m32=5.0)), "frames[2]: ... last row [0.0, 0.0, 5.0, 1.0]"),
    "one photo twice": (
        in_frame(file_path="images/0001.png"),
        "frames[2] is 0001.png again, already frames[1]",
    ),
    "no focal length": (
        in_file(fl_x=None, fl_y=None),
        "frames[0]: no focal length, expected fl_x ... or camera_angle_x",
    ),
    "orthographic": (in_frame(ortho=True), "frames[2]: ortho is set, expected a lens; cut perspective"),
    "a lens of instant-ngp": (in_file(ftheta_p0=0.1), "frames[0]: ftheta_p0 is set, expected a lens"),
    "angle of text": (in_file(fl_x=None, fl_y=None, y_fov="60"), "frames[0]: y_fov is '60', expected a"),
    "list of photos not a list": (
        in_file(train_filenames="images/0001.png"),
        "transforms.json: train_filenames is 'images/0001.png', expected a list of names; correct it",
    ),
    "list of photos of numbers": (in_file(test_filenames=[1]), "test_filenames is [1], expected a list"),
    "listed photo of two lines": (in_file(val_filenames=["a\nb"]), "val_filenames is 'a\\nb', expected"),
    "nothing listed for training": (
        in_file(train_filenames=[], test_filenames=["images/0001.png"]),
        "none of the 6 frames is for training, expected one or more in train_filenames; correct that list",
    ),
    "focal length of text": (in_file(fl_x="long"), "frames[0]: fl_x is 'long', expected a finite number"),
    "focal length zero": (
        in_file(fl_x=0),
        "frames[0]: PINHOLE camera ... expected a positive size and focal length",
    ),
    "angle too wide": (
        in_file(fl_x=None, camera_angle_x=3.2),
        "frames[0]: ... expected a positive size and focal",
    ),
    "width zero": (in_file(w=0), "frames[0]: PINHOLE camera of 0x24 pixels ... expected a positive size"),
    "focal length of 400 digits": (in_file(fl_x=10**400), "frames[0]: fl_x is 1000"),
    "long value": (in_file(fl_x="long" * 99), "fl_x is 'longlong"),
    "point cloud of two lines": (
        in_file(ply_file_path="a\nb.ply"),
        "ply_file_path is 'a\\nb.ply', expected print",
    ),
    "photo with a zero byte": (
        in_frame(file_path="a\0.png"),
        "frames[2]: file_path is 'a\\x00.png', expected print",
    ),
    "camera model": (in_file(camera_model="EQUIRECTANGULAR"), "'EQUIRECTANGULAR', expected one of OPENCV"),
    "named points missing": (in_file(ply_file_path="none.ply"), "none.ply: no such file"),
}


@pytest.mark.parametrize(("build", "damage", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_and_photos(tmp_path, build, damage, message):
    scene = build(tmp_path / "scene")
    damage(scene)
    refuses(scene, message)


@pytest.mark.parametrize(("build", "arguments", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(tmp_path, build, arguments, message):
    refuses(build(tmp_path), message, **arguments)


@pytest.mark.parametrize(("damage", "message"), TEXT_MODEL.values(), ids=TEXT_MODEL)
def test_colmap_text(tmp_path, damage, message):
    scenes.write_colmap(tmp_path, text=True)
    damage(tmp_path / "sparse" / "0")
    refuses(tmp_path, message)


@pytest.mark.parametrize(("damage", "message"), BINARY_MODEL.values(), ids=BINARY_MODEL)
def test_colmap_binary(tmp_path, damage, message):
    scenes.write_colmap(tmp_path)
    damage(tmp_path / "sparse" / "0")
    refuses(tmp_path, message)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "rigs", "frames"])
def test_a_binary_model_cut_anywhere(tmp_path, name):
    scenes.write_colmap(tmp_path, views=3, points=3)
    path = tmp_path / "sparse" / "0" / f"{name}.bin"
    content = path.read_bytes()
    for size in range(0, len(content), 5):
        path.write_bytes(content[:size])
        refuses(tmp_path, f"{name}.bin: truncated" if size >= 8 else f"{name}.bin: {size} bytes")


def test_colmap_points_that_are_not_finite(tmp_path):
    scenes.write_colmap(tmp_path, points=5)
    path = tmp_path / "sparse" / "0" / "points3D.bin"
    content = bytearray(path.read_bytes())
    record = (len(content) - 8) // 5  # id, xyz, ...: of equal length, as there are no tracks
    for row in (2, 4):
        content[8 + row * record + 8 : 8 + row * record + 16] = np.float64(np.nan).tobytes()
    path.write_bytes(content)
    refuses(
        tmp_path,
        "points3D.bin: point ... nan ... (2 of 5 points are so); remove them, or give a PLY with --init",
    )


@pytest.mark.parametrize(("damage", "message"), JSON_FILE.values(), ids=JSON_FILE)
def test_transforms_json(tmp_path, damage, message):
    damage(scenes.write_transforms(tmp_path))
    refuses(tmp_path, message)


def test_nerf_synthetic_without_its_train_photos(tmp_path):
    scenes.write_nerf_synthetic(tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.warns(UserWarning, match="6 of 8 photos are not in"):
        refuses(
            tmp_path, "transforms_train.json: no view is left to train on, of 2 photos; put the train photos"
        )


@pytest.mark.parametrize("name", ["train", "test"])
def test_nerf_synthetic_with_a_broken_file(tmp_path, name):
    scenes.write_nerf_synthetic(tmp_path)
    (tmp_path / f"transforms_{name}.json").write_text("{")
    refuses(tmp_path, f"transforms_{name}.json: not JSON")
