"""Training. READ FIRST: `Trainer.train_step` is the whole method, one update of a model from one photo.

    view -> learning rates -> activate -> rasterize -> loss -> backward -> observe -> optimizer -> refine

`Trainer.train` repeats it and keeps the run on disk; what is below that prepares or reports. Each part is in
its own file: parameters in `model`, rates and freezes in `groups`, which Gaussians grow or die in `strategy`,
how rows move in `surgery`, images in `render`, settings in `config`.

    >>> Trainer(TrainConfig(scene=Path("data/scene"))).train()["test"]["psnr"]
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gsopt import checkpoint, pictures
from gsopt.cameras import camera_to_json
from gsopt.config import TrainConfig
from gsopt.datasets import Scene
from gsopt.datasets.pyramid import ViewPyramid
from gsopt.datasets.scene import View
from gsopt.device import cpu_count, peak_memory, pick_device
from gsopt.errors import InputError
from gsopt.evaluation import Metrics, evaluate_scene, render_view
from gsopt.groups import build_groups, build_scheduler
from gsopt.losses import photometric
from gsopt.metrics import psnr
from gsopt.model import GaussianModel
from gsopt.monitor import LOSSES_EVERY, PICTURES, Monitor, Progress
from gsopt.optim import build_optimizer, load_optimizer_state
from gsopt.rundir import read_json, write_json
from gsopt.runtime import StopSignals, Stopwatch, ViewOrder, torch_threads, use_kernel_threads
from gsopt.schedules import reduction
from gsopt.strategy import Refinement, Strategy

SAVED = (  # in every checkpoint
    *("step", "first_sh_degree", "model", "optimizer", "strategy", "strategy_kind"),
    *("order", "generator", "seconds", "config"),
)


@dataclass
class StepResult:
    """What one step leaves for the reports. Tensors stay on the device; nothing has waited for them."""

    loss: Tensor  # []
    terms: dict[str, Tensor]  # what the loss is made of, by name, each []
    image: Tensor  # [H, W, 3], before the update
    photo: Tensor  # [H, W, 3], float32 in 0..1 or uint8
    refined: Refinement  # how many Gaussians were cloned, split, pruned


class Trainer:
    """One run: a scene, a model, its optimizer and its strategy.

    Args:
        config: all settings.
        scene: by default loaded from `config.scene`.
        model: by default made from the scene's points, or read from `config.init` where that is a splat.
        strategy: by default the one named in `config`.

    A model or strategy given here is trained in place. `step` is the number of finished steps.

    Raises:
        InputError: settings or files that cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        scene: Scene | None = None,
        model: GaussianModel | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        if config.scene is None and scene is not None:
            config = dataclasses.replace(config, scene=scene.path)
        config.check()
        self.device = pick_device(config.device)
        self.config = config = config.resolved(self.device.type)
        self.threads = config.threads or cpu_count()
        use_kernel_threads(self.threads, self.device, config.backend)
        self.clock = Stopwatch(self.device)
        self.run = config.run_folder()
        saved = self._saved_state()
        with self.clock("load"):
            if scene is None:  # a resumed run has no more use for the points it began with
                scene = (dataclasses.replace(config, init=None) if saved else config).load_scene()
            if model is None:
                model = GaussianModel() if saved else config.first_model(scene)
            self.scene, self.model = scene, model.to(self.device)
        self.background = config.plain_background(self.scene).to(self.device)  # [3]
        self.specs = config.specs(self.scene.extent)
        strategy = strategy if strategy is not None else config.make_strategy(self.scene.extent)
        self.strategy = strategy.resolve(config.schedule_iterations)
        self.render_options = config.render_options() | {"absgrad": getattr(strategy, "absgrad", False)}
        self.step = 0
        self.views = ViewPyramid(self.scene.train)
        self.order = ViewOrder(len(self.scene.train), config.seed)
        self.generator = torch.Generator("cpu").manual_seed(config.seed + 1)  # of all other random choices
        self.monitor = Monitor(None)
        self._reported = (0, 0.0)  # step and training seconds at the last report
        self.history: list[Metrics] = []  # a test of this session each, see `_remember`
        self.first_sh_degree = self.model.max_sh_degree if self.model.feature_rest.any() else 0
        if saved:
            self._resume(saved)
        else:
            self._build_optimizer()
        self.strategy.check(self.model)

    # ------------------------------------------------------------------------------------------ the method

    def train_step(self) -> StepResult:
        """One view, one update of every group that is not frozen, and what the strategy makes of it."""
        self.step += 1
        view = self.views.view(self.order.next(), self.reduction)
        background = self._step_background()
        photo = self._photo(view, background)

        image, info = render_view(
            self.model, view.camera, background, sh_degree=self.sh_degree, **self.render_options
        )
        if self.strategy.needs_grad2d(self.step):
            info["means2d"].retain_grad()
        loss, terms = photometric(image, photo, self.config.ssim_weight)
        loss.backward()
        self.strategy.observe(self.model, info, self.step)

        with self.monitor.norms(self.optimizer, self.step):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        refined = self.strategy.refine(self.model, self.optimizer, self.step, self.generator)
        self.scheduler.step()  # to the learning rates of the next step
        return StepResult(loss.detach(), terms, image.detach(), photo, refined)

    def train(self) -> Metrics:
        """Train to the last iteration and return what is then in the run's `metrics.json`.

        On Ctrl-C or SIGTERM the step is finished, a checkpoint and a PLY are saved, and KeyboardInterrupt is
        raised with what to do next.
        """
        self._begin()
        progress = Progress(self.step, self.config.iterations, self.config.quiet)
        with StopSignals() as stop, torch_threads(1), self.clock("train"):
            try:
                while self.step < self.config.iterations:
                    result = self.train_step()
                    progress.advance()
                    self._keep_up(result, progress)
                    if stop.asked:
                        self.save()
                        raise KeyboardInterrupt(
                            f"{stop.asked} after {self.step} iterations, all saved; "
                            f"go on with: gsopt train --resume {self.run.path}"
                        )
                return self._finish()
            finally:
                progress.close()
                self.monitor.close()

    @property
    def sh_degree(self) -> int:
        """Highest band of the harmonics in use: one more after every `sh_degree_every` steps."""
        risen = max(self.step - 1, 0) // self.config.sh_degree_every
        return min(self.first_sh_degree + risen, self.model.max_sh_degree)

    @property
    def reduction(self) -> int:
        """What the sides of this step's image are divided by: 4, then 2, then 1."""
        return reduction(self.step, self.config.schedule_iterations) if self.config.coarse_to_fine else 1

    @torch.no_grad()
    def evaluate(self, sheet: Path | None = None) -> Metrics:
        """PSNR, SSIM and L1 of the test views, and of as many training views, now; also to TensorBoard.

        `sheet`: file for a picture of a few views, photo | render | error.
        """
        rows: list[Tensor] = []
        shown = "test" if self.scene.test else "train"

        def look(split: str, index: int, view: View, image: Tensor, photo: Tensor) -> None:
            if index < PICTURES:
                self.monitor.picture(split, view.camera.name, image, photo, self.step)
                if sheet and split == shown:
                    rows.append(pictures.compare(image, photo))

        with self.clock("evaluate"):
            options = self.render_options | {"sh_degree": self.sh_degree}
            metrics = evaluate_scene(self.model, self.scene, self.background, on_view=look, **options)
            for split in ("test", "train"):
                self.monitor.evaluation(split, metrics[split], self.step)
            self.monitor.histograms(self.model.opacities, self.model.scales, self.step)
            self.monitor.flush()
            if sheet:
                pictures.save_png(pictures.sheet(rows), sheet)
        return metrics

    def save(self) -> None:
        """A PLY and a checkpoint of now. Raises InputError where the model has diverged."""
        self._require_finite()
        self._save_ply()
        self._save_checkpoint()

    # -------------------------------------------------------------------------------- what a step stands on

    def _build_optimizer(self) -> None:
        """Groups, optimizer and schedules over the model's parameters as they are, at step 0."""
        native = self.device.type == "cpu" and self.config.backend == "auto"
        groups = build_groups(self.model, self.specs)
        self.optimizer = build_optimizer(self.config.optimizer, groups, native=native)
        self.scheduler = build_scheduler(self.optimizer, self.specs)

    def _step_background(self) -> Tensor:
        """[3] behind the Gaussians in this step."""
        if self.config.background == "random":
            return torch.rand(3, generator=self.generator, device="cpu").to(self.device)
        return self.background

    def _photo(self, view: View, background: Tensor) -> Tensor:
        """[H, W, 3] to be matched: uint8 as it was read, or float32 where composited on the background."""
        photo = view.rgb(background.cpu()) if view.image.shape[-1] == 4 else view.image
        return photo.to(self.device)

    def _saved_state(self) -> dict | None:
        """What the newest checkpoint of the run to resume holds; None for a new run and one that has none."""
        config = self.config
        if not config.resume:
            return None
        config.check_resume(TrainConfig.of_run(self.run.path))
        path = checkpoint.latest(self.run.checkpoints)
        if path is None:
            return None
        state = checkpoint.load(path)
        if missing := sorted(set(SAVED) - set(state)):
            raise InputError(f"{path}: no {', '.join(missing)} in it; delete it, and --resume starts earlier")
        if state["step"] > config.iterations:
            raise InputError(
                f"--iterations {config.iterations}: the run has done {state['step']} already; give more"
            )
        return state

    def _resume(self, state: dict) -> None:
        """Go on from what a checkpoint holds."""
        self._check_views()
        self.step, self.first_sh_degree = state["step"], state["first_sh_degree"]
        self.model.load_state_dict(state["model"], take_sh_degree=True)
        self._build_optimizer()
        report = load_optimizer_state(self.optimizer, state["optimizer"], strict=False)
        if not report.complete and not self.config.quiet:
            print(f"optimizer state of step {self.step}:\n{report}")
        self.scheduler.load_state_dict({"step": self.step})
        if state["strategy_kind"] == type(self.strategy).__name__:
            self.strategy.load_state_dict(state["strategy"])
        elif not self.config.quiet:
            print(f"strategy  {type(self.strategy).__name__} starts afresh (was {state['strategy_kind']})")
        self.order.load_state_dict(state["order"])
        self.generator.set_state(state["generator"])
        self.clock.seconds = dict(state["seconds"])

    def _check_views(self) -> None:
        """The scene may have moved since the run began, but it must be the same photos."""
        views = [view.camera.name for view in (*self.scene.train, *self.scene.test)]
        known = [camera["img_name"] for camera in read_json(self.run.cameras)]
        if views != known:
            odd = sorted(set(views) ^ set(known)) or ["their order"]
            raise InputError(
                f"--scene {self.scene.path}: not the {len(known)} views that {self.run.cameras} has: "
                f"{', '.join(odd[:5])}; resume with the scene and --images of the run"
            )

    # --------------------------------------------------------------------------------------- what is kept

    def _begin(self) -> None:
        """The run's folder and its first files."""
        if self.config.resume:
            self.run.make()
        else:
            self.run = self.run.claim()
        config = dataclasses.replace(self.config, resume=None, output=self.run.path)
        write_json(self.run.config, config.to_json())
        views = [*self.scene.train, *self.scene.test]
        write_json(self.run.cameras, [camera_to_json(view.camera, i) for i, view in enumerate(views)])
        self.monitor = Monitor(self.run.path, first_step=self.step + 1)
        if self.step == 0:
            self.monitor.text("config", f"```json\n{self.run.config.read_text()}```")

    def _keep_up(self, result: StepResult, progress: Progress) -> None:
        """Reports, files and tests that are due after this step."""
        config, step, refined = self.config, self.step, result.refined
        if refined.cloned or refined.split or refined.pruned:
            self.monitor.refinement(refined.cloned, refined.split, refined.pruned, step)
            if not self.model.num_gaussians:
                raise InputError(f"iteration {step}: every Gaussian was pruned; lower the learning rates")
        if step % LOSSES_EVERY == 0:
            self._report(result, progress)
        if step == config.iterations:
            return  # `_finish` does the rest
        if step % config.checkpoint_every == 0:
            self._require_finite()
            self._save_checkpoint()
        if step in config.save_iterations:
            self._save_ply()
        if step in config.test_iterations:
            self._require_finite()
            mean = self._remember(self.evaluate())
            progress.say(f"iteration {step:,}: PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}")

    def _remember(self, metrics: Metrics) -> Metrics:
        """Put a test of now into the history; the means that it is about."""
        mean = metrics["test" if self.scene.test else "train"]
        self.history.append(
            {
                "iteration": self.step,
                "seconds": self.clock.read()["train"],
                "psnr": mean["psnr"],
                "ssim": mean["ssim"],
                "gaussians": self.model.num_gaussians,
            }
        )
        return mean

    def _require_finite(self) -> None:
        """Nothing good is overwritten by a model that has diverged: the run ends here."""
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                newest = checkpoint.latest(self.run.checkpoints)
                raise InputError(
                    f"iteration {self.step}: {name} is not finite, the training has diverged; "
                    f"lower its learning rate (--groups.{name.replace('_', '-')}.lr). "
                    f"Newest checkpoint: {newest or 'none'}"
                )

    def _report(self, result: StepResult, progress: Progress) -> None:
        """Numbers of this step for TensorBoard and the progress line: what a step itself never waits for."""
        terms = {name: float(term) for name, term in result.terms.items()} | {"total": result.loss.item()}
        photo = result.photo / 255 if result.photo.dtype == torch.uint8 else result.photo
        seconds = self.clock.read()["train"]
        last_step, last_seconds = self._reported
        self._reported = (self.step, seconds)
        milliseconds = 1000 * (seconds - last_seconds) / (self.step - last_step)
        self.monitor.losses(terms, milliseconds, self.model.num_gaussians, self.step)
        self.monitor.groups(self.optimizer, self.step)
        progress.show(terms["total"], psnr(result.image, photo).item(), self.model.num_gaussians)

    def _finish(self) -> Metrics:
        """Save the end of the run, measure it, and write metrics.json and a picture."""
        self.save()
        metrics = self.evaluate(sheet=self.run.picture)
        self._remember(metrics)
        metrics |= {
            "iterations": self.step,
            "gaussians": self.model.num_gaussians,
            "seconds": {part: round(value, 3) for part, value in self.clock.read().items()},
            "peak_memory_bytes": peak_memory(self.device),
            "history": self.history,
        }
        write_json(self.run.metrics, metrics)
        return metrics

    def _save_ply(self) -> None:
        with self.clock("save"):
            self.model.save_ply(self.run.ply(self.step))

    def _save_checkpoint(self) -> None:
        with self.clock("save"):
            state = {
                "step": self.step,
                "first_sh_degree": self.first_sh_degree,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "strategy": self.strategy.state_dict(),
                "strategy_kind": type(self.strategy).__name__,
                "order": self.order.state_dict(),
                "generator": self.generator.get_state(),
                "seconds": dict(self.clock.seconds),
                "config": self.config.to_json(),
            }
            checkpoint.save(checkpoint.path_of(self.run.checkpoints, self.step), state)
            checkpoint.prune(self.run.checkpoints, self.config.keep)
