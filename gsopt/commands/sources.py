"""What `evaluate` and `render` look at: a run, or a PLY with a scene."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gsopt.config import TrainConfig
from gsopt.datasets import Scene
from gsopt.datasets.normalization import Normalization
from gsopt.device import DeviceName, cpu_count, pick_device
from gsopt.errors import InputError
from gsopt.joint import Joint
from gsopt.model import GaussianModel
from gsopt.rundir import RunFolder
from gsopt.runtime import use_kernel_threads
from gsopt.settings import to_json


@dataclass
class SourceOptions:
    """Which model, seen how. For a run, what is not given is as in its training."""

    scene: Path | None = None
    """Folder of the scene; needed with a PLY."""
    iteration: int | None = None
    """Of a run: which saved model; default the newest."""
    output: Path | None = None
    """Folder for the results; default: the run's own, for a PLY output/NAME-DATE."""
    resolution: int | None = None
    """Longest side of the images in pixels."""
    images: str | None = None
    """Name of the images folder inside the scene."""
    masks: str | None = None
    """Folder of masks beside that of the photos; pixels that are 0 do not count."""
    no_masks: bool | None = None
    """Use all pixels of all photos."""
    test_every: int | None = None
    """Every Nth photo by name is for testing, where the scene itself does not say which."""
    normalize: Normalization | None = None
    """Look at it in a world so normalised; the pictures stay the same, but for rounding."""
    background: Literal["auto", "white", "black"] | None = None
    """Behind the Gaussians; auto: white for photos with transparency, black for others."""
    antialiased: bool | None = None
    """As the model was trained."""
    background_model: Path | None = None
    """Splat PLY rendered together with the model; default: the run's own."""
    device: DeviceName | None = None
    """auto: CUDA where torch sees a device and gsplat can be imported, else the CPU."""
    threads: int | None = None
    """Processors the CPU rasterizer uses; default: all there are."""
    backend: Literal["auto", "reference"] | None = None
    """Rasterizer: auto is the fast one of the device."""


@dataclass
class Source:
    """A model ready to be looked at."""

    joint: Joint  # the model, and what the run has beside it
    scene: Scene
    config: TrainConfig
    background: Tensor  # [3], on the model's device
    folder: RunFolder  # where results go
    iterations: int | None  # of training; None for a PLY
    changed: dict[str, Any]  # settings of what is seen that are not the run's, where results go to its folder
    is_newest: bool = True  # False for an older model of a run, where results go to its folder


def load_source(path: Path, options: SourceOptions) -> Source:
    """The model at `path`, a run or a PLY, and its scene. Raises InputError where there is neither."""
    given = {f.name: getattr(options, f.name) for f in fields(options) if f.name in SHARED}
    given = {name: value for name, value in given.items() if value is not None}
    changed, is_newest = {}, True
    if path.is_dir():
        run = RunFolder.open(path)
        ply, iterations = run.saved_ply(options.iteration)
        trained = TrainConfig.of_run(path)
        config = replace(trained, **given)
        folder = run if options.output is None else RunFolder.new(options.output)
        if options.output is None:
            changed = {name: to_json(given[name]) for name in SEEN if _differ(config, trained, name)}
            is_newest = iterations == run.saved_ply()[1]
    elif not path.exists():
        raise InputError(f"{path}: no such run or file; give a run's folder, or a PLY with --scene DIR")
    elif options.iteration is not None:
        raise InputError(f"--iteration {options.iteration}: is of a run, {path} is none; leave it away")
    else:
        if options.scene is None:
            raise InputError(f"{path}: a PLY needs the scene it shows; give --scene DIR")
        ply, iterations = path, None
        config = TrainConfig(**given)
        folder = RunFolder.new(options.output, path.stem)
    device = pick_device(config.device, config.backend)
    config = config.resolved(device.type)
    config.check()
    scene = replace(config, depth_loss=0.0).load_scene(with_init=False)  # nobody looks at depth maps
    model = GaussianModel.load_ply(ply, device=device).moved(scene.world)
    use_kernel_threads(config.threads or cpu_count(), device, config.backend)
    background = config.plain_background(scene).to(device)
    joint = Joint.of_saved(config, scene, model, ply, options.background_model)
    return Source(joint, scene, config, background, folder, iterations, changed, is_newest)


def _differ(config: TrainConfig, trained: TrainConfig, name: str) -> bool:
    now, then = getattr(config, name), getattr(trained, name)
    return (now.absolute() != then.absolute()) if isinstance(now, Path) and then else now != then


# what metrics are of
SEEN = (
    *("scene", "resolution", "images", "masks", "no_masks", "alpha", "test_every"),
    *("background", "antialiased", "background_model"),
)
SHARED = {f.name for f in fields(TrainConfig)} - {"output"}  # options that mean the same in training
