"""Masks of a scene: where they are found, which pixels they are about, what is refused."""

import json
import warnings

import numpy as np
import pytest
import scenes
import torch
from PIL import Image

from gsopt.datasets import load_scene
from gsopt.datasets.images import Lens, Photo, load_view
from gsopt.datasets.maps import Way
from gsopt.datasets.masks import REACH, load_mask
from gsopt.errors import InputError

USED = np.full((24, 32), 255, np.uint8)
USED[4:10, 6:16] = 0


def save(path, pixels=USED):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def masked(scene):
    """Names of the views that have masks."""
    return {view.camera.name for view in (*scene.train, *scene.test) if view.mask is not None}


# ---------------------------------------- where they are

PLACES = [  # photo, mask
    ("{:04d}.jpg", "masks/0001.png"),
    ("{:04d}.jpg", "masks/0001.jpg.png"),
    ("{:04d}.png", "masks/0001.png"),
    ("{:04d}.png", "masks/0001.png.png"),
    ("{:04d}.JPG", "masks/0001.PNG"),
    ("a/b/{:04d}.png", "masks/a/b/0001.png"),
]


@pytest.mark.parametrize(("names", "mask"), PLACES, ids=[mask for _, mask in PLACES])
def test_a_mask_has_the_name_of_its_photo(tmp_path, names, mask):
    scenes.write_colmap(tmp_path, names=names)
    save(tmp_path / mask)
    scene = load_scene(tmp_path)
    assert masked(scene) == {names.format(1)}
    (view,) = (view for view in scene.train if view.mask is not None)
    assert view.mask.dtype == torch.bool
    np.testing.assert_array_equal(view.mask, USED > 0)


def test_another_folder_and_none(tmp_path):
    scenes.write_colmap(tmp_path)
    save(tmp_path / "masks" / "0001.png")
    save(tmp_path / "sky" / "0002.png")
    assert masked(load_scene(tmp_path)) == {"0001.png"}
    assert masked(load_scene(tmp_path, masks="sky")) == {"0002.png"}
    assert masked(load_scene(tmp_path, masks=False)) == set()


@pytest.mark.parametrize(
    ("masks", "expected"), [(None, {1: 4, 2: 6}), ("masks", {1: 6, 2: 6}), (False, {})], ids=str
)
def test_mask_path_of_frames(tmp_path, masks, expected):
    """It goes before `masks`, but not before a folder that is asked for. {number: rows ignored}"""
    scenes.write_transforms(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1]["mask_path"] = "other\\one.png"
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    four = USED.copy()
    four[8:] = 255
    save(tmp_path / "other" / "one.png", four)
    for number in (1, 2):
        save(tmp_path / "masks" / f"{number:04d}.png")
    scene = load_scene(tmp_path, masks=masks)
    rows = {int(v.camera.name[:4]): int((~v.mask).any(1).sum()) for v in scene.train if v.mask is not None}
    assert rows == expected


def test_masks_of_a_nerf_synthetic_scene(tmp_path):
    scenes.write_nerf_synthetic(tmp_path)
    save(tmp_path / "masks" / "train" / "r_2.png", np.zeros((24, 24), np.uint8) + (np.arange(24) < 9))
    (view,) = (view for view in load_scene(tmp_path).train if view.mask is not None)
    assert view.camera.name == "train/r_2.png"
    assert view.mask.sum() == 9 * 24


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Image.fromarray(USED // 255).save(path),  # 1 is used as 255 is
        lambda path: Image.fromarray(USED > 0).save(path),
        lambda path: Image.fromarray(USED).convert("P").save(path),
        lambda path: Image.fromarray(np.stack([0 * USED, 0 * USED, USED // 255], axis=2)).save(path),
        lambda path: Image.fromarray((USED // 255).astype(np.uint16)).save(path),
    ],
    ids=["1 for 255", "1 bit", "palette", "a faint blue", "16 bits"],
)
def test_whatever_is_not_0_is_used(tmp_path, write):
    scenes.write_colmap(tmp_path)
    (tmp_path / "masks").mkdir()
    write(tmp_path / "masks" / "0001.png")
    (view,) = (view for view in load_scene(tmp_path).train if view.mask is not None)
    np.testing.assert_array_equal(view.mask, USED > 0)


def test_a_mask_that_uses_all_is_none(tmp_path):
    scenes.write_colmap(tmp_path)
    save(tmp_path / "masks" / "0001.png", np.full((24, 32), 255, np.uint8))
    assert masked(load_scene(tmp_path)) == set()


# ---------------------------------------- which pixels


def made_from(width, height, resolution, tmp_path, lens=None, suffix="png"):
    """By changes: which pixels [H, W] of a view depend on those that a mask ignores; and its own mask."""
    rng = np.random.default_rng(0)
    lens = lens or Lens("PINHOLE", width, height, (width, width, width / 2, height / 2), "camera 1")
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    used = np.full((height, width), 255, np.uint8)
    used[height // 3 : height // 2, width // 4 : width // 3] = 0
    mask = save(tmp_path / "mask.png", used)
    images = []
    for seed in range(2):
        changed = rng.integers(0, 256, pixels.shape, np.uint8) if seed else pixels
        pixels = np.where(used[..., None] > 0, pixels, changed)
        photo = Photo("a", save(tmp_path / f"{seed}.{suffix}", pixels), lens, np.eye(4), mask=mask)
        images.append(load_view(photo, resolution=resolution))
    differ = (images[0].image != images[1].image).any(-1)
    return differ, load_mask(Way.of(photo, resolution), images[0])


@pytest.mark.parametrize(
    ("size", "resolution"), [((64, 48), None), ((64, 48), 40), ((300, 200), 64), ((301, 203), 50)], ids=str
)
def test_no_used_pixel_depends_on_an_ignored_one(tmp_path, size, resolution):
    differ, mask = made_from(*size, resolution, tmp_path)
    assert differ.any()
    assert not (differ & mask).any()
    reach = REACH if resolution else 0
    spread = torch.nn.functional.max_pool2d(differ[None].float(), 2 * reach + 3, 1, reach + 1)[0] > 0
    assert (spread | mask).all()  # and not much more is ignored


def test_undistorted_pixels_depend_on_what_they_are_made_from(tmp_path):
    lens = Lens("OPENCV", 300, 200, (300, 300, 150, 100, -0.1, 0.02, 0.001, 0.0), "camera 1")
    for resolution in (None, 90):
        differ, mask = made_from(300, 200, resolution, tmp_path, lens)
        assert mask.shape == differ.shape
        assert differ.any()
        assert not (differ & mask).any()
        assert 0.7 < mask.float().mean() < 0.999


def test_jpegs_that_are_shrunk_in_the_decoder(tmp_path):
    """Outside the blocks of 8x8 pixels that the mask touches nothing differs."""
    differ, mask = made_from(768, 384, 96, tmp_path, suffix="jpg")
    assert differ.any()
    assert not (differ & mask).any()


def test_masks_of_another_size(tmp_path):
    """Half the size, so that each of its pixels is about four of the photo; and twice the size."""
    scenes.write_colmap(tmp_path, width=64, height=48)
    save(tmp_path / "masks" / "0001.png")  # of 32x24
    twice = np.full((96, 128), 255, np.uint8)
    twice[17, 31] = 0
    save(tmp_path / "masks" / "0002.png", twice)
    views = {view.camera.name: view for view in load_scene(tmp_path).train}
    np.testing.assert_array_equal(views["0001.png"].mask, np.kron(USED > 0, np.ones((2, 2), bool)))
    assert (~views["0002.png"].mask).nonzero().tolist() == [[8, 15]]


@pytest.mark.parametrize("stored", [True, False], ids=["as the photo is stored", "as it is turned"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_is_turned_with_its_photo(tmp_path, orientation, stored):
    image = Image.fromarray(np.where(USED > 0, 0, 255).astype(np.uint8))  # white where ignored
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.convert("RGB").save(tmp_path / "a.png", exif=exif)
    lens = Lens("PINHOLE", 24, 32, (30.0, 30.0, 12, 16), "camera 1")
    photo = Photo("a.png", tmp_path / "a.png", lens, np.eye(4))
    white = load_view(photo).image[..., 0] > 128
    mask = save(tmp_path / "mask.png", USED if stored else np.where(white, 0, 255).astype(np.uint8))
    photo = Photo("a.png", tmp_path / "a.png", lens, np.eye(4), mask=mask)
    np.testing.assert_array_equal(load_mask(Way.of(photo, None), load_view(photo)), ~white)


# ---------------------------------------- alpha


def test_alpha_is_composited_or_a_mask(tmp_path):
    scenes.write_nerf_synthetic(tmp_path)
    pixels = np.full((24, 24, 4), 200, np.uint8)
    pixels[:9, :, 3], pixels[9:12, :, 3] = 0, 1
    save(tmp_path / "train" / "r_1.png", pixels)
    before = load_scene(tmp_path)
    assert before.has_alpha
    assert masked(before) == set()
    scene = load_scene(tmp_path, alpha="mask")
    assert not scene.has_alpha
    view = next(view for view in scene.train if view.camera.name == "train/r_1.png")
    assert view.image.shape == (24, 24, 3)
    np.testing.assert_array_equal(view.mask, np.repeat(np.arange(24) >= 9, 24).reshape(24, 24))
    save(tmp_path / "masks" / "train" / "r_1.png", np.full((24, 24), 255 * (np.arange(24) < 20), np.uint8))
    view = next(v for v in load_scene(tmp_path, alpha="mask").train if v.camera.name == "train/r_1.png")
    assert view.mask.sum() == 15 * 20  # both have to use a pixel


# ---------------------------------------- views without any pixel, and what is refused

BLACK = np.zeros((24, 32), np.uint8)


def test_a_view_that_is_ignored_is_left_out_with_a_warning(tmp_path):
    scenes.write_colmap(tmp_path)
    save(tmp_path / "masks" / "0003.png", BLACK)
    save(tmp_path / "masks" / "0000.png", BLACK)  # the only test view
    with pytest.warns(UserWarning, match="left out") as told:
        scene = load_scene(tmp_path)
    assert [view.camera.name for view in scene.train] == ["0001.png", "0002.png", "0004.png", "0005.png"]
    assert scene.test == []
    assert sorted(str(warning.message).partition(": ")[2] for warning in told) == [
        "1 of 1 photos are left out, as their masks ignore every pixel: 0000.png",
        "1 of 5 photos are left out, as their masks ignore every pixel: 0003.png",
    ]
    assert {warning.filename for warning in told} == {__file__}


def damage(name, content):
    return lambda scene: (scene / "masks" / name).write_bytes(content)


def all_black(scene):
    for number in range(6):
        save(scene / "masks" / f"{number:04d}.png", BLACK)


def only_of_others(scene):
    (scene / "masks" / "0001.png").rename(scene / "masks" / "mask_0001.png")


REFUSALS = {
    "another aspect": (
        lambda scene: save(scene / "masks" / "0001.png", USED[:, :24]),
        None,
        r"masks/0001\.png: mask of 24x24 pixels, expected the aspect ratio of its photo, 32x24 "
        r"\(.*images/0001\.png\); make it from that photo, uncropped",
    ),
    "no image": (damage("0001.png", b"mask"), None, r"masks/0001\.png: does not decode as an image"),
    "truncated": (
        lambda scene: (scene / "masks" / "0001.png").write_bytes(
            (scene / "masks" / "0001.png").read_bytes()[:-30]
        ),
        None,
        r"masks/0001\.png: does not decode as an image",
    ),
    "all of them 0": (
        all_black,
        None,
        r"masks ignore every pixel of all training photos \(0001.png, .*\), expected some above 0.*no-masks",
    ),
    "none of a photo": (
        only_of_others,
        None,
        r"masks: no mask of the 6 photos is there, expected 0000\.png or 0000\.png\.png for 0000\.png and so "
        "on; rename them, or give --no-masks",
    ),
    "no folder": (lambda scene: None, "sky", r"sky: no such folder, named by --masks; give the name of one"),
}


@pytest.mark.parametrize(("damage", "masks", "message"), REFUSALS.values(), ids=REFUSALS)
def test_unusable_masks_are_one_line(tmp_path, damage, masks, message):
    scenes.write_colmap(tmp_path)
    save(tmp_path / "masks" / "0001.png")
    damage(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the test view that is ignored
        with pytest.raises(InputError, match=message) as error:
            load_scene(tmp_path, masks=masks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone.png", r"gone\.png: no such file, expected the mask of 0001\.png, .* mask_path; put it there"),
        (3, r"transforms\.json: frames\[1\]: mask_path is 3, expected the path of a file; correct it"),
        ("a\nb", r"frames\[1\]: mask_path is 'a\\nb', expected printable characters"),
    ],
)
def test_unusable_mask_paths(tmp_path, value, message):
    scenes.write_transforms(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1]["mask_path"] = value
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_scene(tmp_path)
