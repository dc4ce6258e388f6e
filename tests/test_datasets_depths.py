"""Depth maps of a scene: two formats, sizes, lenses, and what is refused."""

import json

import numpy as np
import pytest
import scenes
import torch
from PIL import Image

from gsopt.datasets import load_scene
from gsopt.errors import InputError

SHOTS = scenes.orbit(6)


def save_npy(scene, number=1, values=None):
    path = scene / "depths" / f"{number:04d}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, scenes.depth(SHOTS[number]) if values is None else values)
    return path


def save_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def inverse(scene, number=1):
    """The one of a training view of a scene read with depth maps."""
    views = {view.camera.name: view for view in load_scene(scene, depths=True).train}
    return views[f"{number:04d}.png"].inverse_depth


def expected(z):
    return torch.from_numpy(np.divide(1, z, out=np.full_like(z, np.nan), where=z > 0))


@pytest.mark.parametrize(
    "values",
    [
        lambda z: z,
        lambda z: z.astype(np.float64),
        lambda z: z[..., None],
        lambda z: np.where(z > 0, z, np.nan),
        lambda z: np.where(z > 0, z, np.inf),
        lambda z: np.where(z > 0, z, -1),
    ],
    ids=["float32", "float64", "a channel", "NaN is unknown", "infinity is", "what is below 0 is"],
)
def test_metric_depths_in_npy(tmp_path, values):
    scenes.write_colmap(tmp_path)
    z = scenes.depth(SHOTS[1])
    assert 0.1 < (z > 0).mean() < 0.9
    save_npy(tmp_path, values=values(z))
    found = inverse(tmp_path)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(z), equal_nan=True)
    views = load_scene(tmp_path, depths=True).train
    assert [view.inverse_depth is not None for view in views] == [True, False, False, False, False]
    assert all(view.inverse_depth is None for view in load_scene(tmp_path).train)


@pytest.mark.parametrize("kind", ["scale", "up"])
def test_depths_are_in_the_units_of_a_normalised_world(tmp_path, kind):
    scenes.write_colmap(tmp_path)
    save_npy(tmp_path)
    scene = load_scene(tmp_path, depths=True, normalize=kind)
    assert scene.world.scale != 1
    found = next(view.inverse_depth for view in scene.train if view.inverse_depth is not None)
    z = scenes.depth(SHOTS[1]) * np.float32(scene.world.scale)
    torch.testing.assert_close(found, expected(z), equal_nan=True)


def write_parameters(scene, **scales):
    content = {name: {"scale": scale, "offset": offset} for name, (scale, offset) in scales.items()}
    (scene / "sparse" / "0" / "depth_params.json").write_text(json.dumps(content))


def test_inverse_depths_in_png_with_scale_and_offset(tmp_path):
    """As the original 3DGS reads them: value / 65536 x scale + offset, not below 0; left out if far off."""
    scenes.write_colmap(tmp_path)
    values = np.full((24, 32), 30_000, np.uint16)
    values[0, :3] = 0, 1, 65535
    for number in (1, 2, 3, 4):
        save_png(tmp_path / "depths" / f"{number:04d}.png", values)
    scales = {"0001": (0.8, -0.1), "0002": (0.9, 0.0), "0003": (0.0, 0.0), "0004": (4.8, 0.0)}
    write_parameters(tmp_path, **scales)
    with pytest.warns(UserWarning, match=r"000[34]\.png: left out, its scale (0|4.8) is not within") as told:
        views = {view.camera.name: view for view in load_scene(tmp_path, depths=True).train}
    assert len(told) == 2
    assert {warning.filename for warning in told} == {__file__}
    found = views["0001.png"].inverse_depth
    assert found[0, 0].isnan()  # 0 is unknown
    assert found[0, 1:4].tolist() == pytest.approx([0, 65535 / 65536 * 0.8 - 0.1, 30_000 / 65536 * 0.8 - 0.1])
    assert views["0002.png"].inverse_depth[5, 5].item() == pytest.approx(30_000 / 65536 * 0.9)
    assert views["0003.png"].inverse_depth is views["0004.png"].inverse_depth is None


@pytest.mark.parametrize(
    ("level", "unit", "factor"),
    [(None, None, 0.001), ("file", 0.01, 0.01), ("frame", 0.002, 0.002)],
    ids=["millimetres", "of the file", "of the frame"],
)
def test_depth_file_path_of_frames(tmp_path, level, unit, factor):
    scenes.write_transforms(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    frame = content["frames"][1]
    frame["depth_file_path"] = "depth\\one.png"
    if level:
        (content if level == "file" else frame)["depth_unit_scale_factor"] = unit
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    z = scenes.depth(SHOTS[1])
    save_png(tmp_path / "depth" / "one.png", np.rint(z / factor).astype(np.uint16))
    torch.testing.assert_close(inverse(tmp_path), expected(z), atol=1e-3, rtol=0, equal_nan=True)


def test_a_map_of_another_size_and_a_resolution(tmp_path):
    """Means over what a pixel covers; unknown where any of that is."""
    scenes.write_colmap(tmp_path, width=64, height=48)
    z = np.full((24, 32), 2.0, np.float32)
    z[:, 16:] = 4.0
    z[0, 0] = 0
    save_npy(tmp_path, values=z)
    found = inverse(tmp_path)  # a map pixel is four of the photo's
    torch.testing.assert_close(found, expected(np.kron(z, np.ones((2, 2), np.float32))), equal_nan=True)
    views = load_scene(tmp_path, resolution=16, depths=True).train  # four of the map's are one
    found = views[0].inverse_depth
    assert found.shape == (12, 16)
    assert found[0, 0].isnan()
    assert found[1, 7:9].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("resolution", [None, 40])
def test_under_a_lens_that_is_undistorted(tmp_path, resolution):
    """A slope, z = 3 + x / z, as the distorted photo sees it becomes that which the pinhole camera sees."""
    how = {"width": 96, "height": 72}
    lens = {"model": "OPENCV", "distortion": (-0.15, 0.03, 0.002, 0.001)}
    scenes.write_colmap(tmp_path, **how, **lens)
    rays = scenes._rays(scenes.orbit(6, **how)[1], lens["model"], lens["distortion"])
    save_npy(tmp_path, values=3 + rays[:, 0].reshape(72, 96))
    view = load_scene(tmp_path, depths=True, resolution=resolution).train[0]
    camera, z = view.camera, 1 / view.inverse_depth
    assert camera.name == "0001.png"
    assert z.shape == view.image.shape[:2]
    wanted = 3 + (torch.arange(camera.width) + 0.5 - camera.K[0, 2]) / camera.K[0, 0]
    assert z.isnan().float().mean() < 0.02  # at the edge
    pixel = 1 / scenes.orbit(6, **how)[1].K[0, 0].item()  # a step of the map
    assert (z - wanted)[~z.isnan()].abs().max() < 0.6 * pixel  # the nearest
    shown = np.linspace(rays[:, 0].min(), rays[:, 0].max(), camera.width) + 3
    assert np.abs(shown - wanted.numpy()).max() > 1.2 * pixel  # the lens moves it by more than that


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_map_is_turned_with_its_photo(tmp_path, orientation):
    scenes.write_colmap(tmp_path, width=24, height=32)
    turn = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]  # what undoes it
    path = tmp_path / "images" / "0001.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).transpose(turn).save(path, exif=exif)
    (shot,) = (shot for shot in scenes.orbit(6, 24, 32) if shot.name == "0001.png")
    z = scenes.depth(shot)
    stored = np.asarray(Image.fromarray(z).transpose(turn))
    for values in (stored, z):  # as the photo is stored, and as it is turned
        save_npy(tmp_path, values=values)
        torch.testing.assert_close(inverse(tmp_path), expected(z), equal_nan=True)


# ---------------------------------------- what is refused


def png(values):
    return lambda scene: save_png(scene / "depths" / "0001.png", values)


def with_parameters(content):
    def damage(scene):
        png(np.full((24, 32), 9, np.uint16))(scene)
        (scene / "sparse" / "0" / "depth_params.json").write_text(content)

    return damage


def archive(scene):
    np.savez(scene / "depths" / "0001.npz", a=np.ones(3))
    (scene / "depths" / "0001.npz").rename(scene / "depths" / "0001.npy")


GOOD = '{"0001": {"scale": 1, "offset": 0}}'
REFUSALS = {
    "no depth maps": (
        lambda scene: None,
        r"--depth-loss: no depth map of the 5 photos, expected .*depths with \.npy or \.png files named as "
        "the photos are, or depth_file_path in transforms.json; add them",
    ),
    "no parameters": (
        png(np.full((24, 32), 9, np.uint16)),
        r"depth_params\.json: cannot be read \(No such file or directory\), expected scale and offset of "
        r"each PNG in depths; write it with 3DGS's utils/make_depth_scale\.py, or give metric depths as",
    ),
    "parameters of others": (
        with_parameters(GOOD.replace("0001", "0002")),
        r"depth_params\.json: no '0001', expected scale and offset of .*0001\.png; run",
    ),
    "no JSON": (with_parameters("{"), r"depth_params\.json: not JSON \(.*\); write it with"),
    "a list": (with_parameters("[3]"), r"depth_params\.json: '' is \[3\], expected numbers 'scale' and"),
    "no number": (
        with_parameters(GOOD.replace("1,", '"one",')),
        r"depth_params\.json: '0001' is \{'scale': 'one', 'offset': 0\}, expected numbers",
    ),
    "8 bits": (
        lambda scene: (with_parameters(GOOD)(scene), png(np.full((24, 32), 9, np.uint8))(scene)),
        r"0001\.png: pixels of 8 bits, expected 16; write the depth map as a 16-bit PNG",
    ),
    "truncated PNG": (
        lambda scene: (
            with_parameters(GOOD)(scene),
            (scene / "depths" / "0001.png").write_bytes((scene / "depths" / "0001.png").read_bytes()[:60]),
        ),
        r"0001\.png: does not decode as an image",
    ),
    "another aspect": (
        lambda scene: save_npy(scene, values=np.ones((24, 24))),
        r"0001\.npy: depth map of 24x24 pixels, expected the aspect ratio of its photo, 32x24 \(",
    ),
    "one dimension": (
        lambda scene: save_npy(scene, values=np.ones(24)),
        r"0001\.npy: float64 \[24\], expected numbers \[height, width\]; write z in world units",
    ),
    "truth values": (
        lambda scene: save_npy(scene, values=np.ones((24, 32), bool)),
        r"0001\.npy: bool \[24, 32\], expected numbers",
    ),
    "an archive": (archive, r"0001\.npy: cannot be read as an array"),
    "no array": (
        lambda scene: (scene / "depths" / "0001.npy").write_bytes(b"depth"),
        r"0001\.npy: cannot be read as an array \(.*\); write it with numpy\.save",
    ),
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.values(), ids=REFUSALS)
def test_unusable_depth_maps_are_one_line(tmp_path, damage, message):
    scenes.write_colmap(tmp_path)
    (tmp_path / "depths").mkdir()
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        load_scene(tmp_path, depths=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_file_path": "gone.png"}, r"gone\.png: no such file, expected the depth map of 0001\.png"),
        ({"depth_file_path": 3}, r"frames\[1\]: depth_file_path is 3, expected the path of a file"),
        (
            {"depth_file_path": "a.png", "depth_unit_scale_factor": "mm"},
            r"frames\[1\]: depth_unit_scale_factor is 'mm', expected a finite number",
        ),
        (
            {"depth_file_path": "a.png", "depth_unit_scale_factor": 0},
            r"frames\[1\]: depth_unit_scale_factor is 0, expected more than 0",
        ),
    ],
)
def test_unusable_depth_file_paths(tmp_path, changes, message):
    scenes.write_transforms(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1] |= changes
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_scene(tmp_path, depths=True)
