"""`gsopt render`: paths, sizes, maps and videos, and what it refuses; the sheet of `gsopt evaluate`."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scenes
import torch
from PIL import Image

from gsopt import load_scene, rasterization
from gsopt.commands import main
from gsopt.commands.flags import parse
from gsopt.commands.render import RenderConfig, run
from gsopt.commands.sources import load_source
from gsopt.error_sheet import label, save_sheet, worst_first
from gsopt.errors import InputError
from gsopt.model import GaussianModel
from gsopt.pictures import depth_picture
from gsopt.video import Video


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("render") / "ball", points=300)


@pytest.fixture(scope="module")
def trained(ball, tmp_path_factory):
    folder = tmp_path_factory.mktemp("render") / "run"
    words = [
        "train",
        "--scene",
        ball,
        "--output",
        folder,
        "--iterations",
        40,
        "--strategy",
        "none",
        "--schedule-iterations",
        7_000,  # the start of a longer run: a video has colours at half the resolution, not for garish ones
        "--quiet",
    ]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def render(trained, tmp_path):
    """Renders the run into tmp_path/out, or what `output` names there; the files."""

    def call(output="out", **options):
        return run(RenderConfig(model=trained, output=tmp_path / output, device="cpu", **options))

    return call


@pytest.fixture
def frames(tmp_path_factory):
    """A function that gives the frames of a video: [F, H, W, 3] uint8."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()

    def read(path):
        folder = tmp_path_factory.mktemp("frames")
        command = [ffmpeg, "-loglevel", "error", "-i", path, "-fps_mode", "passthrough", folder / "%04d.png"]
        subprocess.run(command, check=True)
        return np.stack([pixels(file) for file in sorted(folder.iterdir())])

    return read


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(
    ("options", "count", "size"),
    [
        ({"path": "orbit", "frames": 5}, 5, (24, 24)),
        ({"path": "interpolate"}, 60, (24, 24)),
        ({"path": "interpolate", "frames": 3, "width": 40, "height": 20}, 3, (40, 20)),
        ({"path": "train", "width": 48}, 6, (48, 48)),
        ({"path": "test", "height": 12}, 2, (12, 12)),
    ],
)
def test_pictures_of_each_path(render, options, count, size, capsys):
    files = render(**options)
    assert len(files) == count
    for file in files:
        picture = pixels(file)
        assert picture.shape == (size[1], size[0], 3)
        assert picture.std() > 20  # the ball before the background
    out = capsys.readouterr().out
    assert f"path      {options['path']}: {count} pictures of {size[0]}x{size[1]}" in out
    assert f"wrote     {count} pictures in " in out


def test_an_orbit_has_the_ball_in_the_middle(render):
    for file in render(path="orbit", frames=6):
        dark = pixels(file).min(axis=2) < 200
        rows, columns = np.nonzero(dark)
        assert abs(rows.mean() - 11.5) < 1.5
        assert abs(columns.mean() - 11.5) < 1.5
        assert not dark[0].any()


def test_cameras_from_the_file_of_the_run(render, trained):
    """The same pictures as from the scene: test cameras first."""
    by_file = render("a", path=str(trained / "cameras.json"))
    by_scene = render("b", path="test") + render("c", path="train")
    assert len(by_file) == len(by_scene) == 8
    for one, other in zip(by_file, by_scene, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1


def test_without_output_pictures_are_in_the_run(trained):
    files = run(RenderConfig(model=trained, path="orbit", frames=2, device="cpu"))
    assert files == [trained / "renders" / "orbit" / f"{i:04d}.png" for i in range(2)]


def test_maps_are_those_of_rasterization(render, trained, ball):
    files = render(path="test", depth=True, opacity=True, depth_range=(2.0, 6.0))
    kinds = ["", "depth/", "alpha/"]
    folder = files[0].parents[1]
    assert files == [folder / f"{kind}test/r_{i}.png" for i in range(2) for kind in kinds]
    model = GaussianModel.load_ply(trained / "point_cloud" / "iteration_40" / "point_cloud.ply")
    for index, view in enumerate(load_scene(ball).test):
        with torch.no_grad():
            images, alphas, _ = rasterization(
                model.means,
                model.quats,
                model.scales,
                model.opacities,
                model.sh,
                view.camera.viewmat[None],
                view.camera.K[None],
                24,
                24,
                sh_degree=3,
                render_mode="RGB+ED",
            )
        depth, alpha = images[0, ..., 3], alphas[0, ..., 0]
        found = np.load(folder / f"depth/test/r_{index}.npy")
        assert (found.dtype, found.shape) == (np.float32, (24, 24))
        np.testing.assert_allclose(found, depth.numpy(), rtol=1e-4, atol=1e-4)
        grey = pixels(folder / f"alpha/test/r_{index}.png")
        assert np.abs(grey - 255 * alpha.numpy()[..., None]).max() <= 1
        colors = 255 * depth_picture(depth, alpha, 2.0, 6.0).numpy()
        assert np.abs(pixels(folder / f"depth/test/r_{index}.png") - colors).max() <= 1
        assert found[alpha.numpy() > 0.9].min() > 2.5  # the ball's front is at 3


def test_the_range_of_depths_is_found(render, capsys):
    render(path="orbit", frames=4, depth=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("depth "))
    near, far = float(line.split()[3].rstrip(",")), float(line.split()[6])
    assert 2.5 < near < far < 5.5


def test_colours_of_depth():
    depth = torch.tensor([[2.0, 3.0, 4.0, 9.0, 1.0, 0.0]])
    alpha = torch.tensor([[1.0, 1.0, 1.0, 0.5, 1.0, 0.0]])
    found = (255 * depth_picture(depth, alpha, 2.0, 4.0))[0].round().tolist()
    assert found[0] == found[4] == [253, 231, 37]  # at the near end and before it
    assert found[1] == [33, 144, 141]
    assert found[2] == [68, 1, 84]
    assert found[3] == pytest.approx([34, 0.5, 42], abs=0.51)
    assert found[5] == [0, 0, 0]


def test_rgba_is_the_picture_without_its_background(render):
    (clear, _), (white, _) = render("a", path="test", rgba=True), render("b", path="test", background="white")
    rgba, rgb = pixels(clear).astype(float) / 255, pixels(white).astype(float) / 255
    assert rgba.shape[-1] == 4
    alpha = rgba[..., 3:]
    assert alpha[0, 0] == 0
    assert alpha.max() > 0.9
    assert np.abs(rgba[..., :3] * alpha + 1 - alpha - rgb).max() < 0.02


@pytest.mark.parametrize(("options", "fps"), [({"path": "orbit", "frames": 7}, 30), ({"path": "test"}, 2)])
def test_a_video_has_the_frames(render, frames, tmp_path, options, fps, capsys):
    files = render("out.mp4", depth=True, opacity=True, **options)
    assert [file.name for file in files] == ["out.mp4", "out_depth.mp4", "out_alpha.mp4"]
    expected = render("pngs", depth=True, opacity=True, **options)
    for number, file in enumerate(files):
        found = frames(file)
        wanted = np.stack([pixels(png) for png in expected[number::3]])
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).mean() < 6  # colours at half the resolution
    seconds = len(wanted) / fps
    assert f"out.mp4: {len(wanted)} frames, {seconds:.1f} s, " in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


def test_a_video_has_even_sides(render, frames):
    (file,) = render("out.mp4", path="orbit", frames=2, width=31, height=25, fps=10.0)
    assert frames(file).shape == (2, 24, 30, 3)


def test_a_video_that_is_not_finished_leaves_nothing(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")

    def stop() -> None:
        with Video(path, 16, 16, 30.0).writing() as video:
            video.add(torch.zeros(16, 16, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_ffmpeg_cannot_write_is_one_line(tmp_path):
    pytest.importorskip("imageio_ffmpeg")

    def write(path) -> None:
        with Video(path, 16, 15, 30.0).writing() as video:  # H.264 has no odd sides here
            for _ in range(300):
                video.add(torch.rand(15, 16, 3))

    with pytest.raises(
        InputError, match=r"out\.mp4: ffmpeg cannot write it \(.*height not divisible"
    ) as caught:
        write(tmp_path / "out.mp4")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_its_package_a_video_names_the_extra(render, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r'needs the package imageio-ffmpeg: pip install "gsopt\[video\]"'):
        render("out.mp4", path="orbit")


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        (
            "out",
            {"path": "spiral"},
            "--path spiral: expected test, train, orbit, interpolate, or a .json file",
        ),
        ("out", {"path": "none.json"}, r"none\.json: cannot be read"),
        ("out", {"frames": 5}, "--frames 5: is for --path orbit and interpolate"),
        ("out", {"path": "orbit", "frames": 0}, "--frames 0: expected 1 or more"),
        ("out", {"width": 1}, "--width 1: expected 2 to 16384 pixels"),
        ("out", {"height": 20_000}, "--height 20000: expected 2 to 16384 pixels"),
        ("out", {"depth": True, "depth_range": (3.0, 2.0)}, "--depth-range 3 2: expected two numbers"),
        ("out", {"depth_range": (1.0, 2.0)}, "--depth-range: is without effect; give --depth too"),
        ("out", {"fps": 30.0}, "--fps 30: is of a video; give --output FILE.mp4"),
        ("out.mp4", {"fps": 0.0}, "--fps 0: expected 0.1 to 1000"),
        ("out.mp4", {"rgba": True}, r"--rgba: .*out\.mp4 has no transparency"),
        ("out.avi", {}, r"--output .*out\.avi: expected a folder, or a video \(\.mp4, \.mov, \.mkv\)"),
        ("full", {}, "full: there is something here already; give another name, or --overwrite"),
        ("full.mp4", {}, r"full\.mp4: there is something here already; give another name, or --overwrite"),
        ("file", {"overwrite": True}, "file: there is something here already; give another name"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(render, tmp_path, output, options, message):
    (tmp_path / "full").mkdir()
    for name in ("full/a.png", "full.mp4", "file"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(InputError, match=message) as caught:
        render(output, **options)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "full.mp4").read_bytes() == b"old"


def test_overwriting(render, frames, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"old")
    (file,) = render("out.mp4", path="orbit", frames=3, overwrite=True)
    assert len(frames(file)) == 3
    render("out", path="test")
    render("out", path="test", overwrite=True)


# the sheet


def test_the_worst_views_come_first_and_are_labelled():
    views = {"b": {"psnr": 20.0}, "a": {"psnr": 20.0}, "c": {"psnr": 30.0}, "d": {"psnr": 10.0}}
    assert worst_first(views, 3) == ["d", "a", "b"]
    text = label("x/y.png", {"psnr": 20.126, "ssim": 0.5, "l1": 0.1, "lpips": 0.25})
    assert text == "x/y.png   PSNR 20.13 dB   SSIM 0.5000   L1 0.1000   LPIPS 0.2500"


def test_a_sheet_has_a_row_for_each_view_under_its_label(tmp_path):
    photo = torch.full((60, 100, 3), 0.5)
    large = torch.full((1000, 500, 3), 0.25)
    name = "a" * 200 + "/z.png"
    save_sheet([(name, photo, photo + 0.25), ("b", large, large)], tmp_path / "sheet.png")
    found = pixels(tmp_path / "sheet.png").astype(int)
    gap, text = 4, 22
    assert found.shape == (text + gap + text + gap + 60 + gap + text + gap + 480, 3 * 240 + 2 * gap, 3)
    first = text + gap + text + gap
    assert (found[first + 5, 5] == 128).all()
    assert (found[first + 5, 100 + gap + 5] == 191).all()
    assert found[first + 5, 2 * (100 + gap) + 5].tolist() == [255, 128, 0]  # half the way to white
    second = first + 60 + gap + text + gap
    assert (found[second + 5, 5] == 64).all()
    assert (found[second + 5, 2 * (240 + gap) + 5] == 0).all()
    for top in (0, text + gap, first + 60 + gap):  # something is written above each row
        assert found[top : top + text].min() < 100


def test_evaluate_writes_the_sheet_and_lpips(trained, tmp_path, capsys):
    pytest.importorskip("torchmetrics")
    from gsopt.perceptual import layers

    state = {f"features.{key}": value for key, value in layers("vgg").state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    words = ["evaluate", trained, "--lpips", "vgg", "--lpips-weights", tmp_path / "vgg.pth", "--sheet", 1]
    assert main([str(word) for word in words]) == 0
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["lpips_network"] == "vgg"
    for split in ("test", "train"):
        values = [view["lpips"] for view in metrics["views"][split].values()]
        assert all(value > 0 for value in values)
        assert metrics[split]["lpips"] == pytest.approx(sum(values) / len(values))
    out = capsys.readouterr().out
    assert f"LPIPS {metrics['test']['lpips']:.4f}" in out
    assert f"sheet     {trained / 'renders' / 'sheet.png'}" in out
    one = pixels(trained / "renders" / "sheet.png").shape[0]
    assert main(["evaluate", str(trained)]) == 0  # all test views, and no LPIPS from before
    assert pixels(trained / "renders" / "sheet.png").shape[0] == one + 22 + 4 + 24 + 4
    after = json.loads((trained / "metrics.json").read_text())
    assert "lpips_network" not in after
    assert "lpips" not in after["test"]
    (trained / "renders" / "sheet.png").unlink()
    assert main(["evaluate", str(trained), "--sheet", "0"]) == 0
    assert not (trained / "renders" / "sheet.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sheet", "-1"], "--sheet -1: expected a number of views"),
        (["--lpips-weights", "a.pth"], "--lpips-weights: is without effect; give --lpips"),
        (["--lpips", "alex", "--lpips-weights", "none.pth"], "none.pth: cannot be read"),
    ],
)
def test_what_cannot_be_evaluated(trained, words, message, capsys):
    assert main(["evaluate", str(trained), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_run_of_photos_with_masks_keeps_its_background(ball, tmp_path):
    """--alpha is of the photos in training, and of the pictures here: they are two."""
    words = ["train", "--scene", ball, "--output", tmp_path / "run", "--iterations", 2, "--alpha", "mask"]
    assert main([*map(str, words), "--quiet", "--device", "cpu"]) == 0
    for flags in ([], ["--alpha"]):
        config = parse(RenderConfig, [str(tmp_path / "run"), *flags], "gsopt render", "")
        source = load_source(config.model, config)
        assert source.config.alpha == "mask"
        assert source.background.tolist() == [0, 0, 0]  # white is behind photos with transparency
        assert config.opacity == bool(flags)
