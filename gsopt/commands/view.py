"""`gsopt view`: a run or a splat in the browser, to look at and to cut."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from tyro.conf import Positional, arg

from gsopt.camera_files import read_cameras
from gsopt.cameras import cameras_extent, scene_up
from gsopt.commands.flags import parse
from gsopt.config import TrainConfig
from gsopt.datasets import Scene
from gsopt.device import DeviceName, cpu_count, pick_device
from gsopt.errors import InputError
from gsopt.formats import Splat, read
from gsopt.joint import BACKGROUND_FILE
from gsopt.model import GaussianModel
from gsopt.rundir import RunFolder
from gsopt.runtime import use_kernel_threads
from gsopt.settings import LATER, Needed
from gsopt.viewer_options import PORT, RESOLUTION, check_port, check_resolution

if TYPE_CHECKING:
    from gsopt.viewer.still import Sight, StillViewer

ABOUT = (
    "Show a run or a file of Gaussians in the browser, delete, crop and lock by a box, and save what is "
    "left under another name."
)
PHOTOS = 128  # pixels of the longest side of a photo that is loaded to be shown in its camera


@dataclass
class ViewConfig:
    """Settings of `gsopt view`."""

    source: Positional[Annotated[Needed[Path], arg(metavar="FILE|RUN")]] = LATER
    """Folder of a run, or a file of Gaussians of any program."""
    iteration: int | None = None
    """Of a run: which saved model; default the newest."""
    scene: Path | None = None
    """Folder of the scene, for its photos and cameras; default: that of the run."""
    cameras: Path | None = None
    """File of cameras (cameras.json, camera_path.json) to look from, in place of a scene."""
    no_photos: bool = False
    """Do not load the photos of a run's scene."""
    up: tuple[float, float, float] = (0.0, -1.0, 0.0)
    """What is up in a file without cameras."""
    background: Literal["white", "black"] | None = None
    """Behind the Gaussians; default: as in training, black for a file."""
    antialiased: bool = False
    """As the model was trained; a run knows it."""
    output: Path | None = None
    """Folder to save in; default: that of the file, or of the run."""
    host: str = "127.0.0.1"
    """Address to listen at. Whoever reaches it may save files in the folder of --output."""
    port: int = PORT
    """Port to listen at; 0 for one that is free."""
    resolution: int = RESOLUTION
    """Longest side of the pictures in pixels, at most that of the window."""
    splats: bool = False
    """Let the browser draw the Gaussians, without their harmonics, instead of showing pictures from here."""
    device: DeviceName = "auto"
    """auto: CUDA where torch sees a device and gsplat can be imported, else the CPU."""
    threads: int | None = None
    """Processors the CPU rasterizer uses; default: all there are."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.source is None:
            raise InputError("gsopt view: expected a file of Gaussians or the folder of a run, found none")
        if not self.source.exists():
            raise InputError(f"{self.source}: no such run or file; check the path")
        if self.iteration is not None and not self.source.is_dir():
            raise InputError(
                f"--iteration {self.iteration}: is of a run, {self.source} is none; leave it away"
            )
        if self.scene is not None and self.cameras is not None:
            raise InputError(f"--scene {self.scene}, --cameras {self.cameras}: both have cameras; give one")
        if not (all(map(math.isfinite, self.up)) and any(self.up)):
            raise InputError(f"--up {' '.join(map(str, self.up))}: expected a direction, not 0 0 0")
        if self.output is not None and not self.output.is_dir():
            raise InputError(f"--output {self.output}: expected a folder that is there; make it first")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads {self.threads}: expected 1 or more")
        check_port("--port", self.port)
        check_resolution("--resolution", self.resolution)


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(ViewConfig, argv, "gsopt view", ABOUT))


def run(config: ViewConfig) -> None:
    """Show until Ctrl-C."""
    viewer = open_viewer(config)
    print(f"viewer    {viewer.address}", flush=True)
    viewer.run()
    if not viewer.edits.saved:
        print("note      the last changes are in no file")


def open_viewer(config: ViewConfig) -> "StillViewer":
    """The viewer of a run or file, listening. Raises InputError where it cannot be."""
    from gsopt.viewer.still import StillViewer

    config.check()
    trained: TrainConfig | None = None
    file = config.source
    if config.source.is_dir():
        run = RunFolder.open(config.source)
        trained = TrainConfig.of_run(config.source)
        file, iteration = run.saved_ply(config.iteration)
        print(f"run       {run.path}, iteration {iteration:,}")
    splat = read(file)
    print(f"read      {file}: {splat.kind}, {splat.count:,} Gaussians, SH degree {splat.sh_degree}")
    folder = config.output or (config.source if config.source.is_dir() else file.absolute().parent)
    name = f"{file.stem.removesuffix('.compressed')}_edited.ply"
    return StillViewer(
        splat,
        _sight(config, trained, file, splat),
        folder,
        name,
        host=config.host,
        port=config.port,
        resolution=config.resolution,
        in_browser=config.splats,
    )


def _sight(config: ViewConfig, trained: TrainConfig | None, file: Path, splat: Splat) -> "Sight":
    """How the splat is seen."""
    from gsopt.viewer.frusta import thumbnail
    from gsopt.viewer.still import Sight, looking_from_outside

    settings = trained or TrainConfig()
    device = pick_device(config.device)
    use_kernel_threads(config.threads or cpu_count(), device, "auto")
    scene = _scene(config, settings)
    background = torch.zeros(3) if scene is None else settings.plain_background(scene)
    if config.background or (scene is None and settings.background in ("white", "black")):
        background = torch.full((3,), float((config.background or settings.background) == "white"))
    options = settings.render_options()
    if config.antialiased:
        options["rasterize_mode"] = "antialiased"
    other = None
    if trained and trained.background_model is not None:
        own = file.with_name(BACKGROUND_FILE) if trained.background_model_trainable else None
        other = GaussianModel.load_ply(own or trained.background_model, device=device)
    photo = None if scene is None else lambda number: thumbnail(scene.train[number], background)
    up = torch.nn.functional.normalize(torch.tensor(config.up, dtype=torch.float32), dim=0)
    cameras = [view.camera for view in scene.train] if scene is not None else _cameras(config)
    if cameras:
        extent, up = cameras_extent(cameras), scene_up(cameras)
    else:
        camera, extent = looking_from_outside(splat.tensors["xyz"], up)
        cameras = [camera]
    extent = extent or 1.0
    return Sight(cameras, extent, up, background.to(device), options, photo, other)


def _scene(config: ViewConfig, trained: TrainConfig) -> Scene | None:
    """The scene with small photos, where one is asked for, or the run's is still there."""
    own = config.scene is None
    path = trained.scene if own else config.scene
    if path is None or (own and (config.no_photos or config.cameras is not None)):
        return None
    if own and not path.is_dir():
        print(f"note      {path}: the scene of the run is not there; its cameras are shown without photos")
        return None
    small = replace(trained, scene=path, resolution=PHOTOS, normalize="none", depth_loss=0.0, resume=None)
    return small.load_scene(with_init=False)


def _cameras(config: ViewConfig) -> list:
    """Of the file that was given, or of the run; none for a file of Gaussians alone."""
    if config.cameras is not None:
        return read_cameras(config.cameras)
    if not config.source.is_dir():
        return []
    run = RunFolder.open(config.source)
    file = run.refined_cameras if run.refined_cameras.is_file() else run.cameras
    return read_cameras(file) if file.is_file() else []
