"""`gsopt render`: pictures or a video of a run or a PLY, from its photos' cameras or along a path."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from gsopt.camera_files import read_cameras
from gsopt.camera_paths import interpolate, orbit
from gsopt.cameras import Camera
from gsopt.commands.flags import parse
from gsopt.commands.render_output import Output, open_output
from gsopt.commands.sources import Source, SourceOptions, load_source
from gsopt.errors import InputError
from gsopt.evaluation import Maps
from gsopt.runtime import spread
from gsopt.video import ENDINGS, is_video, require_ffmpeg

ABOUT = (
    "Render a run, or a PLY with --scene DIR: the photographed views, an orbit, a path through the training "
    "cameras, or cameras from a file; as PNG, or as a video."
)
PATHS = ("test", "train", "orbit", "interpolate")
_LARGEST = 1 << 14  # pixels of a side
_PROBES = 8  # frames that the range of depths is taken from


@dataclass
class RenderConfig(SourceOptions):
    """Settings of `gsopt render`."""

    model: Positional[Path] = Path()
    """Folder of a run, or a PLY."""
    path: str = "test"
    """test, train: the cameras of the photos; orbit: around the scene; interpolate: through the training
    cameras; FILE.json: cameras.json of a run, camera_path.json of nerfstudio."""
    output: Path | None = None
    """A video (.mp4, .mov, .mkv) or a folder for PNGs; default: renders/PATH of the run."""
    overwrite: bool = False
    """Replace what is at --output."""
    frames: int | None = None
    """Pictures of an orbit (default 120) or an interpolation (default: 10 for each training camera)."""
    fps: float | None = None
    """Pictures per second of a video; default 30, of --path test and train 2."""
    width: int | None = None
    """Of the pictures, in pixels; without --height that follows, and the other way round."""
    height: int | None = None
    """Of the pictures, in pixels. Another shape than the camera's shows more on two sides."""
    depth: bool = False
    """Depth too: as colours, and beside PNGs as .npy (float32 [H, W], z in world units, 0 for nothing)."""
    depth_range: tuple[float, float] | None = None
    """Depths that are drawn brightest and darkest; default: found from the pictures."""
    opacity: Annotated[bool, arg(name="alpha")] = False
    """Opacity too, from black (nothing) to white."""
    rgba: bool = False
    """PNGs with transparency instead of a background."""


@dataclass(frozen=True)
class Shot:
    """One picture to make."""

    camera: Camera
    view: int | None = None  # number of the training view that it is


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(RenderConfig, argv, "gsopt render", ABOUT))


@torch.no_grad()
def run(config: RenderConfig) -> list[Path]:
    """The files it wrote: PNGs in the order they were made, or the videos."""
    check(config)
    source = load_source(config.model, replace(config, output=None))
    shots = make_shots(config, source)
    first = shots[0].camera
    print(f"path      {config.path}: {len(shots)} pictures of {first.width}x{first.height}")
    limits = None
    if config.depth:
        limits = config.depth_range or depth_limits(source, shots)
        print(f"depth     yellow at {limits[0]:.4g}, violet at {limits[1]:.4g} world units")
    name = Path(config.path).stem
    with open_output(config, source.folder.renders / name, (first.width, first.height), limits) as output:
        render(source, shots, output, rgba=config.rgba)
    print(output.summary())
    return output.files


def check(config: RenderConfig) -> None:
    """Raise InputError, naming the flag, for what can be told before anything is loaded."""
    path = config.path
    if path not in PATHS and not path.lower().endswith(".json"):
        raise InputError(f"--path {path}: expected {', '.join(PATHS)}, or a .json file of cameras")
    if config.frames is not None and path not in ("orbit", "interpolate"):
        raise InputError(f"--frames {config.frames}: is for --path orbit and interpolate; leave it away")
    if config.frames is not None and config.frames < 1:
        raise InputError(f"--frames {config.frames}: expected 1 or more")
    for flag, side in (("--width", config.width), ("--height", config.height)):
        if side is not None and not 2 <= side <= _LARGEST:
            raise InputError(f"{flag} {side}: expected 2 to {_LARGEST} pixels")
    if config.depth_range is not None and not config.depth_range[0] < config.depth_range[1] < float("inf"):
        given = " ".join(f"{value:g}" for value in config.depth_range)
        raise InputError(f"--depth-range {given}: expected two numbers, the nearer first")
    if config.depth_range is not None and not config.depth:
        raise InputError("--depth-range: is without effect; give --depth too")
    _check_output(config)


def _check_output(config: RenderConfig) -> None:
    output = config.output
    as_video = output is not None and is_video(output)
    if config.fps is not None and not as_video:
        raise InputError(f"--fps {config.fps:g}: is of a video; give --output FILE.mp4")
    if config.fps is not None and not 0.1 <= config.fps <= 1000:
        raise InputError(f"--fps {config.fps:g}: expected 0.1 to 1000 pictures per second")
    if as_video and config.rgba:
        raise InputError(f"--rgba: {output} has no transparency; give a folder as --output, or --alpha")
    if output is None:
        return
    if output.suffix and not as_video and not output.is_dir():
        raise InputError(f"--output {output}: expected a folder, or a video ({', '.join(ENDINGS)})")
    if as_video:
        require_ffmpeg()
    is_there = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    if is_there and (not config.overwrite or output.is_dir() == as_video):
        remedy = "give another name" if output.is_dir() == as_video else "give another name, or --overwrite"
        raise InputError(f"--output {output}: there is something here already; {remedy}")


def make_shots(config: RenderConfig, source: Source) -> list[Shot]:
    """What to render, all of one size where that is asked for or a video needs it. At least one."""
    scene, joint = source.scene, source.joint
    trained = [Shot(view.camera, number) for number, view in enumerate(scene.train)]
    if config.path in ("test", "train"):
        shots = trained if config.path == "train" else [Shot(view.camera) for view in scene.test]
        if not shots:
            raise InputError(f"{scene.path}: no test views; give --path train, or --test-every N")
        return _sized(shots, config)
    if config.path not in PATHS:
        return _sized([Shot(camera) for camera in read_cameras(Path(config.path))], config)
    refined = [joint.refined(shot.camera, shot.view) for shot in trained]
    if config.path == "orbit":
        return _sized(
            [Shot(camera) for camera in orbit(refined, scene.points.xyz, config.frames or 120)], config
        )
    size = refined[0].width, refined[0].height
    keys = [camera.fitted(*size) for camera in refined]
    return _sized([Shot(camera) for camera in interpolate(keys, config.frames or 10 * len(keys))], config)


def _sized(shots: list[Shot], config: RenderConfig) -> list[Shot]:
    as_video = config.output is not None and is_video(config.output)
    if not as_video and config.width is None and config.height is None:
        return shots
    first = shots[0].camera
    width, height = config.width, config.height
    if width is None:
        width = first.width if height is None else max(1, round(height * first.width / first.height))
    if height is None:
        height = first.height if config.width is None else max(1, round(width * first.height / first.width))
    if as_video:  # H.264 has a colour for each 2x2 pixels
        width, height = max(2, width - width % 2), max(2, height - height % 2)
    return [replace(shot, camera=shot.camera.fitted(width, height)) for shot in shots]


def depth_limits(source: Source, shots: Sequence[Shot]) -> tuple[float, float]:
    """Nearest and farthest depth of what is solid, without the outermost hundredths, in a few pictures."""
    depths = []
    for shot in spread(shots, _PROBES):
        scale = min(1.0, 160 / max(shot.camera.width, shot.camera.height))
        width, height = (max(1, round(scale * side)) for side in (shot.camera.width, shot.camera.height))
        maps = seen(source, replace(shot, camera=shot.camera.fitted(width, height)))
        depths.append(maps.depth[maps.alpha > 0.5].cpu())
    found = torch.cat(depths)
    if not len(found):
        return 0.0, 1.0
    near, far = found.quantile(torch.tensor([0.01, 0.99])).tolist()
    return near, max(far, near * (1 + 1e-6))


def seen(source: Source, shot: Shot, *, transparent: bool = False) -> Maps:
    """What one picture shows, over the source's background or over nothing (black)."""
    background = torch.zeros_like(source.background) if transparent else source.background
    return source.joint.maps(shot.camera, background, shot.view, **source.config.render_options())


def render(source: Source, shots: Sequence[Shot], output: Output, *, rgba: bool) -> None:
    """Make the pictures one after another; none is kept."""
    from tqdm import tqdm

    def progress() -> Iterator[Shot]:
        yield from tqdm(shots, "render", unit="picture", disable=None, leave=False)

    for shot in progress():
        maps = seen(source, shot, transparent=rgba)
        if rgba:
            alpha = maps.alpha[..., None]
            straight = (maps.image / alpha.clamp(min=1e-6)).clamp(0, 1)
            maps = maps._replace(image=torch.cat([straight, alpha], dim=-1))
        output.add(shot.camera.name, maps)
