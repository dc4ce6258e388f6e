"""Photos: which folder is read, size, orientation, pixel formats, alpha."""

import numpy as np
import pytest
import scenes
import torch
from PIL import Image

from gsopt.datasets import View, load_scene
from gsopt.datasets.images import Lens, Photo, load_view
from gsopt.errors import InputError


def photo(path, width, height) -> Photo:
    """A photo at `path` by a pinhole camera of width x height pixels."""
    lens = Lens("PINHOLE", width, height, (50.0, 40.0, width / 2, height / 2), "cameras.txt camera 1")
    return Photo(path.name, path, lens, np.eye(4))


def save_copies(folder, *factors, size=(64, 48)):
    """images_2, images_4, ... beside images/, each filled with its own grey level."""
    for factor in factors:
        copy = folder / f"images_{factor}"
        copy.mkdir()
        for path in (folder / "images").iterdir():
            Image.new("RGB", (size[0] // factor, size[1] // factor), (factor,) * 3).save(copy / path.name)


# which folder and what size


@pytest.mark.parametrize(
    ("resolution", "images", "size", "read_from"),
    [
        (None, None, (64, 48), "images"),
        (1000, None, (64, 48), "images"),
        (64, None, (64, 48), "images"),
        (40, None, (40, 30), "images"),
        (32, None, (32, 24), "images_2"),
        (20, None, (20, 15), "images_2"),
        (16, None, (16, 12), "images_4"),
        (5, None, (5, 4), "images_8"),
        (1, None, (1, 1), "images_8"),
        (None, "images_4", (16, 12), "images_4"),
        (10, "images_2", (10, 8), "images_2"),
        (32, "images_4", (16, 12), "images_4"),
    ],
)
@pytest.mark.parametrize("write", [scenes.write_colmap, scenes.write_transforms])
def test_the_smallest_copy_that_is_large_enough_is_read(tmp_path, write, resolution, images, size, read_from):
    write(tmp_path, views=3, width=64, height=48, points=20)
    save_copies(tmp_path, 2, 4, 8)
    scene = load_scene(tmp_path, resolution=resolution, images=images)
    for view in (*scene.train, *scene.test):
        camera = view.camera
        assert view.path == tmp_path / read_from / camera.name
        assert (camera.width, camera.height) == tuple(view.image.shape[1::-1]) == size
        scale = torch.tensor([[size[0] / 64], [size[1] / 48], [1.0]])
        torch.testing.assert_close(camera.K, scenes.orbit(3, 64, 48)[0].K * scale)


def test_a_copy_without_all_photos_is_not_read(tmp_path):
    scenes.write_colmap(tmp_path, views=3, width=64, height=48)
    save_copies(tmp_path, 2)
    (tmp_path / "images_2" / "0001.png").unlink()
    scene = load_scene(tmp_path, resolution=32)
    assert {view.path.parent.name for view in scene.train} == {"images"}


def test_a_scene_beside_whose_name_ends_in_2_is_not_a_copy(tmp_path):
    scenes.write_nerf_synthetic(tmp_path / "ball", size=24)
    scenes.write_nerf_synthetic(tmp_path / "ball_2", size=24)
    scene = load_scene(tmp_path / "ball", resolution=12)
    assert {view.path.parent for view in scene.train} == {tmp_path / "ball" / "train"}


def test_one_small_photo_keeps_the_others_from_a_copy_too_small_for_them(tmp_path):
    scenes.write_colmap(tmp_path, views=3, width=64, height=48)
    save_copies(tmp_path, 2)
    Image.new("RGB", (16, 12)).save(tmp_path / "images_2" / "0001.png")
    scene = load_scene(tmp_path, resolution=32)
    assert {view.path.parent.name for view in scene.train} == {"images"}


@pytest.mark.parametrize("size", [(64, 48), (16, 12), (33, 25), (31, 24), (320, 240), (3, 2)])
def test_photos_of_another_size_and_the_same_ratio_scale_the_intrinsics(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    camera = load_view(photo(tmp_path / "a.png", 32, 24)).camera
    x, y = size[0] / 32, size[1] / 24
    assert camera.K.tolist() == [
        [pytest.approx(50 * x), 0, pytest.approx(16 * x)],
        [0, pytest.approx(40 * y), pytest.approx(12 * y)],
        [0, 0, 1],
    ]


@pytest.mark.parametrize(
    "size", [(24, 32), (32, 32), (32, 25), (32, 20), (64, 44), (33, 22), (320, 260), (2000, 1600)]
)
def test_photos_of_another_ratio_are_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    message = rf"a\.png: photo of {size[0]}x{size[1]} .*32x24 \(cameras.txt camera 1\)"
    with pytest.raises(InputError, match=message):
        load_view(photo(tmp_path / "a.png", 32, 24))


# orientation


def save_turned(path, orientation, size=(32, 24)):
    """A photo whose EXIF tag says `orientation`, red where it is stored at the top left, blue elsewhere."""
    image = Image.new("RGB", size, (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


@pytest.mark.parametrize(
    ("orientation", "lens", "red_corner"),
    [
        (1, (32, 24), (0, 0)),
        (6, (32, 24), (0, 0)),  # fits as stored: the tag is ignored, as COLMAP does
        (3, (32, 24), (0, 0)),
        (6, (24, 32), (0, -1)),  # (row, column)
        (8, (24, 32), (-1, 0)),
        (5, (24, 32), (0, 0)),
        (7, (24, 32), (-1, -1)),
    ],
)
def test_exif_orientation_is_followed_only_where_the_camera_needs_it(tmp_path, orientation, lens, red_corner):
    save_turned(tmp_path / "a.jpg", orientation)
    image = load_view(photo(tmp_path / "a.jpg", *lens)).image
    assert tuple(image.shape[:2]) == lens[::-1]
    corners = {(r, c): image[r, c, 0] > 128 for r in (0, -1) for c in (0, -1)}
    assert [corner for corner, red in corners.items() if red] == [red_corner]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_a_tag_that_does_not_turn_by_90_degrees_cannot_make_it_fit(tmp_path, orientation):
    save_turned(tmp_path / "a.jpg", orientation)
    with pytest.raises(InputError, match="photo of 32x24 pixels"):
        load_view(photo(tmp_path / "a.jpg", 24, 32))


# pixel formats


def _palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 0
        image.putpixel((0, 0), 0)
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "pixel", "has_alpha"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), "png", [10, 20, 30], False),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 40)), "png", [10, 20, 30, 40], True),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), "png", [10, 20, 30], False),
        (Image.new("L", (4, 4), 50), "png", [50, 50, 50], False),
        (Image.new("LA", (4, 4), (50, 60)), "png", [50, 50, 50, 60], True),
        (Image.new("1", (4, 4), 1), "png", [255, 255, 255], False),
        (_palette(False), "png", [10, 20, 30], False),
        (_palette(True), "png", [10, 20, 30, 255], True),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "jpg", [0, 0, 0], False),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "webp", None, False),
    ],
    ids=lambda value: f"{value.mode}" if isinstance(value, Image.Image) else None,
)
def test_every_pixel_format_becomes_rgb_or_rgba(tmp_path, image, suffix, pixel, has_alpha):
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    pixels = load_view(photo(path, 4, 4)).image
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert tuple(pixels.shape) == (4, 4, 4 if has_alpha else 3)
    if pixel is not None:
        assert pixels[2, 2].tolist() == pixel


def test_16_bit_grey_is_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: pixels of mode I;16, expected 8 bits"):
        load_view(photo(tmp_path / "a.png", 4, 4))


# resizing and alpha


def test_reducing_a_large_jpeg_in_its_decoder_changes_next_to_nothing(tmp_path):
    (camera,) = scenes.orbit(1, 256, 192)
    Image.fromarray(scenes.picture(camera)).save(tmp_path / "a.jpg", quality=98)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")  # the same pixels, decoded in full
    jpeg, png = (load_view(photo(tmp_path / name, 256, 192), resolution=32) for name in ("a.jpg", "a.png"))
    assert jpeg.image.shape == png.image.shape == (24, 32, 3)
    torch.testing.assert_close(jpeg.camera.K, png.camera.K)
    assert (jpeg.image.float() - png.image.float()).abs().max() < 12
    assert (jpeg.image.float() - png.image.float()).abs().mean() < 1


def test_colours_under_full_transparency_do_not_bleed_when_resized(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 0] = 255  # invisible red around
    pixels[8:24, 8:24] = [0, 200, 0, 255]  # a green square
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_view(photo(tmp_path / "a.png", 32, 32), resolution=10).image
    visible = image[..., 3] > 25
    assert image[visible][:, 0].max() < 10


def test_rgb_composites_on_the_background():
    camera = scenes.orbit(1, 2, 1)[0]
    pixels = torch.tensor([[[255, 0, 102, 51], [255, 255, 255, 0]]], dtype=torch.uint8)
    rgb = View(camera, pixels).rgb(torch.tensor([0.5, 1.0, 0.0]))
    assert rgb.dtype == torch.float32
    torch.testing.assert_close(rgb, torch.tensor([[[0.6, 0.8, 0.08], [0.5, 1.0, 0.0]]]))
    opaque = View(camera, pixels[..., :3]).rgb(torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(opaque, torch.tensor([[[1.0, 0.0, 0.4], [1.0, 1.0, 1.0]]]))


# loading many


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(tmp_path, threads):
    scenes.write_colmap(tmp_path, views=12)
    scene = load_scene(tmp_path, threads=threads)
    for view in scene.train:
        expected = scenes.orbit(12)[int(view.camera.name[:4])]
        np.testing.assert_array_equal(view.image, scenes.picture(expected))


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_a_bar_on_stderr(tmp_path, capsys, progress):
    load_scene(scenes.write_colmap(tmp_path), progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("photos: " in err) == progress
