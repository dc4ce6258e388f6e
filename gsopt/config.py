"""Settings of a run, composed of the settings of its parts; to and from JSON.

Every setting that counts steps is given for a run of 30,000 iterations and scaled to the run's own length, so
that a run of 2,000 is a complete run. A value given explicitly is taken as it is. `--schedule-iterations N`
scales them as if the run had N iterations: with 30,000, a run of 2,000 is the start of a long one. In a run's
`config.json` every such setting is written out as the number used.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gsopt.datasets import Scene, load_scene, moved_points, read_points
from gsopt.device import DeviceName
from gsopt.errors import InputError
from gsopt.formats import Splat
from gsopt.freeze_windows import parse_freezes
from gsopt.group_options import (
    Groups,
    attribute_name,
    check_freezes,
    check_groups,
    fitted_rate,
    group_specs,
    named_options,
)
from gsopt.groups import GroupSpec
from gsopt.joint_options import joint_specs, present_groups, still_groups
from gsopt.limits import AT_LEAST, FIXED, LARGEST_SEED
from gsopt.locks import check_attributes
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim.arguments import check_optimizer_flags
from gsopt.progress import ProgressOptions
from gsopt.regions import parse_region
from gsopt.rundir import RunFolder, read_json
from gsopt.scene_options import SceneOptions
from gsopt.schedules import FIRST_LOOK, REFERENCE_ITERATIONS, Steps, resolve_steps, scaled
from gsopt.settings import LATER, Needed, differences, from_json, to_json
from gsopt.similarity import Similarity
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy, NoStrategy, Strategy
from gsopt.supervision import SupervisionOptions
from gsopt.viewer_options import VIEWER_FLAGS, ViewerOptions
from gsopt.warm_start import check_start, is_splat, model_of, read_start, started, warm_specs

ITERATION_LISTS = ("test_iterations", "save_iterations")
SESSION_FLAGS = VIEWER_FLAGS | {"log_json", "log_every"}  # no settings of the run
DEFAULT_RESOLUTION, CPU_RESOLUTION = 1600, 640  # pixels of the longest side


@dataclass
class TrainConfig(SceneOptions, SupervisionOptions, ViewerOptions, ProgressOptions):
    """Settings of `gsopt train`. Paths are those of the machine it runs on."""

    # what and where
    scene: Needed[Path] = LATER
    """Folder of the scene: COLMAP, NeRF-synthetic, or one with a transforms.json."""
    output: Path | None = None
    """Folder of the run; default output/SCENE-DATE. An existing run is never overwritten."""
    resume: Path | None = None
    """Folder of a run to continue from its newest checkpoint; flags given as well change its settings."""
    init: Path | None = None
    """Start from points (.ply, .npy, .npz) or Gaussians (.ply, .splat, .spz, a checkpoint of any program)."""
    start_step: int | None = None
    """With Gaussians: go on from this step, to --iterations; default: rows stay, rates are at their end."""
    init_rates: Literal["continue", "restart"] | None = None
    """With Gaussians: schedules go on (from --start-step; default), or begin anew over the steps left."""
    init_warmup: int | None = None
    """Steps over which rates rise; default: none with moments in the file, else a tenth, 100 at most."""
    init_reset_opacity: bool = False
    """Let densification reset the opacities of Gaussians from --init."""
    resolution: int | None = None
    """Longest side of the training images in pixels, never enlarged; default 1600 on CUDA, 640 on a CPU."""
    images: str | None = None
    """Name of the images folder inside the scene; default: the smallest that is at least RESOLUTION."""
    test_every: int = 8
    """Every Nth photo by name is for testing, where the scene itself does not say which; 0 for none."""
    # how long, with what
    iterations: int = REFERENCE_ITERATIONS
    """Optimizer steps, whatever the number of views in each."""
    schedule_iterations: Needed[int] = LATER
    """Scale settings as if the run had so many iterations; default: as many as it has."""
    seed: int = 0
    """Of every random choice: the same seed gives the same bits on a CPU."""
    device: DeviceName = "auto"
    """auto: CUDA where torch sees a device and gsplat can be imported, else the CPU."""
    deterministic: bool = False
    """On CUDA: algorithms of torch that repeat their bits, where it has such; slower. A CPU always does."""
    threads: int | None = None
    """Processors the CPU rasterizer uses; default: all there are. Bits do not depend on it."""
    backend: Literal["auto", "reference"] = "auto"
    """Rasterizer: auto is the fast one of the device; reference is slow, plain PyTorch."""
    # the model and the images
    sh_degree: int = 3
    """Highest band of the spherical harmonics, 0 to 3."""
    sh_degree_every: Steps = scaled(1_000, at_least=100)  # sooner, new bands learn what views hide
    """Steps after which one more band is used. Scaled, at least 100."""
    background: Literal["auto", "white", "black", "random"] = "auto"
    """Behind the Gaussians; auto: white for photos with transparency, black for others."""
    coarse_to_fine: bool = True
    """Start at a quarter of the resolution, for a tenth of the run, then half, until three tenths."""
    antialiased: bool = False
    """Compensate the opacity of Gaussians thinner than a pixel (Mip-Splatting's 2D filter)."""
    ssim_weight: float = 0.2
    """Loss = (1 - w) L1 + w (1 - SSIM)."""
    # the optimizer
    optimizer: str = "adam"
    """Its name: one of torch.optim, adam, adamw, sgd, ..., or visible_adam; see docs/optimizers.md."""
    optimizer_args: tuple[str, ...] = ()
    """Its options, as OPTION=VALUE: momentum=0.9, nesterov=true, betas=0.9,0.99."""
    freeze: tuple[str, ...] = ()
    """Attributes that keep their values, NAME or NAME@START:END: xyz@0:500 in the first 500 iterations."""
    exclude: tuple[str, ...] = ()
    """Attributes left out of the optimizer altogether."""
    weight_decay: float = 0.0
    """Of every group that states none of its own, as the optimizer defines it."""
    lock: tuple[str, ...] = ()
    """Regions whose Gaussians, those there at the start, keep their values: box:x0,y0,z0,x1,y1,z1,
    sphere:x,y,z,r, FILE.npy, FILE.ply, or outside:REGION."""
    lock_attributes: tuple[str, ...] = ATTRIBUTES
    """What locked Gaussians keep; none of them is cloned, split, pruned or reset."""
    batch_size: int = 1
    """Views in a batch. A step is over BATCH_SIZE x ACCUMULATE views: by the mean of their losses."""
    accumulate: int = 1
    """Batches whose gradients add up before a step."""
    scale_rates: bool = False
    """Fit rates, betas and eps to several views a step by Adam's square-root rule (rates x √views)."""
    fit_rates: bool = True
    """Raise the rates of short runs, made for 30,000 iterations, and let all fall in the last fifth of a run;
    rates and schedules given are as given."""
    groups: Groups = field(default_factory=Groups)
    # what is trained beside the model
    optimize_poses: bool = False
    """Refine the pose of each training camera."""
    exposure: bool = False
    """Learn an affine map of the colours of each training photo."""
    background_model: Path | None = None
    """Splat PLY of a second model that is rendered together with the first; frozen, and not densified."""
    background_model_trainable: bool = False
    """Train the background too: groups background.xyz, background.opacity and so on."""
    # which Gaussians there are
    strategy: Literal["default", "mcmc", "budget", "none"] | None = None
    """Densification: the original's clone, split and prune, gsplat's DefaultStrategy; MCMC; growth to a fixed
    number; or none. Default: mcmc; none for Gaussians from a file without --start-step."""
    max_gaussians: int | None = None
    """No growth beyond so many Gaussians; mcmc and budget grow to so many, by default one for 65 pixels of
    the training views."""
    densify: DefaultStrategy = field(default_factory=DefaultStrategy)
    mcmc: MCMCStrategy = field(default_factory=MCMCStrategy)
    budget: BudgetStrategy = field(default_factory=BudgetStrategy)
    # what is done when something goes wrong
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient is not finite: save a checkpoint and stop, or leave the step out and go on."""
    # what is kept
    checkpoint_every: Steps = scaled(5_000)
    """Steps between checkpoints. Scaled."""
    keep: int = 2
    """Checkpoints kept, newest first."""
    test_iterations: Needed[tuple[int, ...]] = LATER
    """Iterations to measure the test views after, as they are; default 7,000 scaled. The last always is."""
    save_iterations: Needed[tuple[int, ...]] = LATER
    """Iterations to save a PLY after, as they are; default 7,000 scaled. The last always is."""

    def __post_init__(self) -> None:
        for name in ("scene", "output", "resume", "init", "background_model"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else Path(value))
        for name in ("freeze", "exclude", "lock", "lock_attributes", *ITERATION_LISTS, "optimizer_args"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else tuple(value))
        self.lock = tuple(map(str, self.lock))  # a file may be given as a path

    @classmethod
    def of_run(cls, path: Path) -> "TrainConfig":
        """The settings a run was started with, set to resume it; change them with `dataclasses.replace`.

        Raises InputError where there is no run.
        """
        path = Path(path)
        run = RunFolder.open(path)
        saved = from_json(cls, read_json(run.config), str(run.config))
        return dataclasses.replace(saved, resume=path, output=path)

    def to_json(self) -> dict[str, Any]:
        """What goes into config.json: all but how a session is watched."""
        return {name: value for name, value in to_json(self).items() if name not in SESSION_FLAGS}

    def check(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.scene is None:
            raise InputError("--scene: expected a folder, found none; give that of a scene, or --resume RUN")
        if self.resume and self.output not in (None, self.resume):
            raise InputError(
                f"--output {self.output}: --resume goes on in {self.resume}; leave --output away"
            )
        for name, lowest in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"{_flag(name)} {value}: expected {lowest} or more")
        check_start(self)
        self.check_points(self.init, is_splat=lambda: not self.resume and self._begins_with_splat())
        self.check_supervision()
        self.check_progress()
        self.check_viewer()
        if self.seed > LARGEST_SEED:
            raise InputError(f"--seed {self.seed}: expected at most {LARGEST_SEED}")
        for name in ITERATION_LISTS:
            for value in getattr(self, name) or ():
                if value < 1:
                    raise InputError(f"{_flag(name)} {value}: expected 1 or more")
        for part in STRATEGIES.values():
            for name, value in vars(getattr(self, part)).items():
                if isinstance(value, float) and not math.isfinite(value):
                    flag = _flag(f"{part}.{name}")
                    raise InputError(
                        f"{flag} {value}: expected a number; --strategy none switches it all off"
                    )
        if self.sh_degree > 3:
            raise InputError(f"--sh-degree {self.sh_degree}: expected 0, 1, 2 or 3")
        if not 0 <= self.ssim_weight <= 1:
            raise InputError(f"--ssim-weight {self.ssim_weight}: expected 0 to 1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"--weight-decay {self.weight_decay:g}: expected 0 or more")
        if self.background_model_trainable and not self.background_model:
            raise InputError("--background-model-trainable: there is none; give --background-model PLY")
        check_groups(self.groups, self.schedule_iterations or self.iterations)
        check_freezes(
            self.freeze,
            self.exclude,
            self.iterations,
            present=present_groups(self),
            still=still_groups(self),
        )
        check_attributes("--lock-attributes", self.lock_attributes)
        for text in self.lock:
            parse_region(text)
        check_optimizer_flags(self.optimizer, self.optimizer_args, named_options(self.groups))

    def resolved(self, device_type: str) -> "TrainConfig":
        """The same with all that depends on the run's length or device ("cpu" or "cuda") as numbers.

        Raises InputError where `init` cannot be read.
        """
        self = started(self)
        length = self.schedule_iterations or self.iterations
        first = (max(1, round(FIRST_LOOK * length / REFERENCE_ITERATIONS)),)
        return dataclasses.replace(
            resolve_steps(self, length),
            strategy=self.strategy or DEFAULT_STRATEGY,
            schedule_iterations=length,
            **{part: resolve_steps(getattr(self, part), length) for part in STRATEGIES.values()},
            resolution=self.resolution or (CPU_RESOLUTION if device_type == "cpu" else DEFAULT_RESOLUTION),
            test_iterations=first if self.test_iterations is None else self.test_iterations,
            save_iterations=first if self.save_iterations is None else self.save_iterations,
            output=self.resume or self.output,
            scene=self.scene and self.scene.absolute(),
            init=self.init and self.init.absolute(),
            lock=tuple(str(parse_region(text).absolute()) for text in self.lock),
            lock_attributes=check_attributes("--lock-attributes", self.lock_attributes),
            background_model=self.background_model and self.background_model.absolute(),
        )

    def check_resume(self, old: "TrainConfig") -> None:
        """Raise InputError where a run that began with `old` cannot go on with these settings."""
        for name, before, after in differences(old, self):
            if name in FIXED:
                raise InputError(
                    f"--{name} {after}: this run has {before}, and {FIXED[name]}; start a new run for another"
                )

    def run_folder(self) -> RunFolder:
        """Where the run is on disk: the one to resume, else a new one. Raises InputError."""
        return RunFolder.open(self.resume) if self.resume else RunFolder.new(self.output, self.scene.name)

    @property
    def views_per_step(self) -> int:
        """Views that one optimizer step is made from."""
        return self.batch_size * self.accumulate

    # ------------------------------------------------------------------ the parts, made from their settings

    def load_scene(self, world: Similarity | None = None, *, with_init: bool = True) -> Scene:
        """The scene with its images. Raises InputError.

        `world`: the move that normalises it, if it is known. Without `with_init`, the points are its own.
        """
        return load_scene(
            self.scene,
            resolution=self.resolution,
            images=self.images,
            test_every=self.test_every,
            seed=self.seed,
            init=self.init if with_init and not self._begins_with_splat() else None,
            init_points=self.init_points if with_init else None,
            init_max=self.init_max,
            normalize=world or self.normalize,
            **self.supervision,
            cache=self.cache,
            threads=self.threads,
            progress=self.talks and sys.stderr.isatty(),
        )

    def _begins_with_splat(self) -> bool:  # its header is looked at only where nothing else tells
        return self.init is not None and (self.init_rates is not None or is_splat(self.init))

    def read_start(self) -> Splat | None:
        """The Gaussians to begin with, with their moments; None for a point cloud or the scene's points."""
        return read_start(self.init, self.sh_degree) if self.init and self._begins_with_splat() else None

    def first_model(self, scene: Scene, start: Splat | None = None) -> GaussianModel:
        """The model before the first step: `start` (in units of the scene), or of `init`, or of the scene."""
        if start is not None:
            return model_of(start)
        if start := self.read_start():
            return model_of(start).moved(scene.world)
        points = scene.points
        if self.init not in (None, points.path):  # the scene was loaded without it
            points = moved_points(read_points(self.init, most=self.init_max), scene.world)
        return GaussianModel.from_points(points.xyz, points.rgb, sh_degree=self.sh_degree)

    def plain_background(self, scene: Scene) -> Tensor:
        """[3] colour behind the Gaussians; for random backgrounds the one to look at them: that of "auto"."""
        white = self.background == "white" or (self.background in ("auto", "random") and scene.has_alpha)
        return torch.full((3,), float(white), device="cpu")

    def render_options(self) -> dict[str, Any]:
        """Arguments of `rasterization` that are the same for every image."""
        return {
            "rasterize_mode": "antialiased" if self.antialiased else "classic",
            "backend": None if self.backend == "auto" else self.backend,
        }

    def specs(self, extent: float) -> dict[str, GroupSpec]:
        """The group table: the original's, with what these settings change."""
        length = self._rate_iterations
        own = group_specs(
            self.groups,
            extent,
            length,
            windows=parse_freezes(self.freeze, present_groups(self)),
            excluded=set(map(attribute_name, self.exclude)),
            weight_decay=self.weight_decay,
            fit_rates=self.fit_rates,
        )
        if self.init_rates is not None:
            own = warm_specs(own, self, length)
        return own | joint_specs(self, extent)

    @property
    def _rate_iterations(self) -> int:  # length of the run that rates and their schedules are made for
        length = self.schedule_iterations or self.iterations
        return max(1, length - (self.start_step or 0)) if self.init_rates == "restart" else length

    def make_strategy(self, scene: Scene) -> Strategy:
        """A fresh strategy for a scene, with what its settings leave to the scene."""
        name = self.strategy or DEFAULT_STRATEGY
        if name == "none":
            return NoStrategy()
        settings = getattr(self, STRATEGIES[name])
        changes: dict[str, Any] = {}
        if settings.scene_scale == type(settings).scene_scale:
            changes["scene_scale"] = scene.extent
        if self.max_gaussians is not None:
            changes["max_gaussians"] = self.max_gaussians
        if hasattr(settings, "training_pixels") and settings.training_pixels is None:
            changes["training_pixels"] = sum(v.camera.width * v.camera.height for v in scene.train)
        if isinstance(settings, MCMCStrategy) and self.fit_rates and self.groups.xyz.lr is None:
            # noise as large as the original rate makes it: raised with the rate it blurs what short runs find
            changes["noise_lr"] = settings.noise_lr / fitted_rate("xyz", self._rate_iterations)
        return dataclasses.replace(settings, **changes)


DEFAULT_STRATEGY: Literal["mcmc"] = "mcmc"
STRATEGIES = {"default": "densify", "mcmc": "mcmc", "budget": "budget"}  # --strategy: name of its settings


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
