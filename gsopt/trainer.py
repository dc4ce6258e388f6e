"""Training. READ FIRST: `Trainer.train_step` is the whole method, one update of a model from photos.

    freezes -> for each view: activate -> rasterize -> loss -> backward -> all finite? -> observe
    -> mean of the gradients -> optimizer -> refine -> learning rates of the next step

A step has `--batch-size` x `--accumulate` views, by default one; of several processes (`ranks`) each has so
many.

`Trainer.train` repeats it, while a `Recorder` keeps the run on disk; what is below that prepares. Each part
is in its own file: parameters in `model`, what is trained beside it in `joint`, rates and freezes in
`groups`, which Gaussians grow or die in `strategy`, how rows move in `surgery`, images in `render`, settings
in `config`.

    >>> Trainer(TrainConfig(scene=Path("data/scene"))).train()["test"]["psnr"]
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsopt import pictures, resume
from gsopt.batches import average_gradients, mean_terms, scale_for_batch
from gsopt.by_hand import ByHand
from gsopt.config import TrainConfig
from gsopt.datasets import Scene
from gsopt.datasets.pyramid import ViewPyramid
from gsopt.datasets.scene import View
from gsopt.device import cpu_count, deterministic, pick_device, use_card
from gsopt.direct import DirectView
from gsopt.editing import transform
from gsopt.evaluation import Metrics, evaluate_scene
from gsopt.feed import PhotoFeed
from gsopt.formats import Splat
from gsopt.group_options import attribute_name
from gsopt.groups import apply_freezes, build_groups, build_scheduler
from gsopt.guards import NonFinite, check_finite, intact
from gsopt.joint import Joint
from gsopt.joint_options import present_groups, still_groups
from gsopt.locks import check_something_moves, clear_locked_gradients, hold_locked, lock, unlock
from gsopt.losses import photometric, with_terms
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.monitor import PICTURES, Monitor
from gsopt.optim import build_optimizer, visible_rows
from gsopt.optim.arguments import parse_arguments
from gsopt.progress import Progress
from gsopt.ranks import Ranks, Seen
from gsopt.recorder import Recorder, StepResult
from gsopt.render.info import keep_gradient
from gsopt.rundir import RunFolder
from gsopt.runtime import StopSignals, Stopwatch, ViewOrder, torch_threads, use_kernel_threads
from gsopt.schedules import reduction
from gsopt.strategy import Strategy
from gsopt.supervision import DepthLoss
from gsopt.warm_start import for_start, load_moments


class Trainer:
    """One run: a scene, a model with what is trained beside it (`joint`), its optimizer and its strategy.

    Args:
        config: all settings.
        scene: by default loaded from `config.scene`.
        model: by default made from the scene's points, or read from `config.init` where that is a splat.
        strategy: by default the one named in `config`.
        ranks: this process among others; by default those of torch.distributed, where it has a group.

    A model or strategy given here is trained in place. `step` is the number of finished steps; `by_hand`
    takes what is asked of the run while it trains.

    Raises:
        InputError: settings or files that cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        scene: Scene | None = None,
        model: GaussianModel | None = None,
        strategy: Strategy | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks = Ranks.current() if ranks is None else ranks
        if config.scene is None and scene is not None:
            config = dataclasses.replace(config, scene=scene.path)
        if not ranks.first:
            config = dataclasses.replace(config, quiet=True, log_json=False)
        config.check()
        self.device = pick_device(config.device, config.backend)
        use_card(self.device, ranks.local_rank)
        self.config = config = config.resolved(self.device.type)
        self.threads = config.threads or max(1, cpu_count() // ranks.local_size)
        self.views_per_step = config.views_per_step * ranks.size
        use_kernel_threads(self.threads, self.device, config.backend)
        self.clock = Stopwatch(self.device)
        self.run = config.run_folder() if ranks.first else RunFolder(config.output or "output")
        saved = resume.saved_state(config, self.run, ranks)
        with self.clock("load"):
            if scene is None:  # a resumed run has no more use for the points it began with
                scene = config.load_scene(resume.saved_world(saved), with_init=not saved)
            start = None if saved or model is not None else config.read_start()
            centres = None if start is None else start.tensors["xyz"]  # in world units, as in the file
            if start is not None:
                start = start if scene.world is None else transform(start, scene.world)
                self.config = config = for_start(config, start)
            of_points = model is None and start is None and not saved
            if model is None:
                model = GaussianModel(device=self.device) if saved else config.first_model(scene, start)
            self.scene, self.model = scene, model.to(self.device)
            self.joint = Joint.of_config(config, scene, self.model, read=not saved)
        self.background = config.plain_background(self.scene).to(self.device)  # [3]
        self.specs = config.specs(self.scene.extent)
        strategy = strategy if strategy is not None else config.make_strategy(self.scene)
        self.strategy = strategy.resolve(config.schedule_iterations)
        self.render_options = config.render_options() | {"absgrad": getattr(strategy, "absgrad", False)}
        length = config.schedule_iterations
        self.depth = DepthLoss(config.depth_loss, length) if config.depth_loss else None
        # Where nothing beside the model is trained, and colours alone, the CPU kernel needs no autograd.
        alone = self.device.type == "cpu" and config.backend == "auto" and not self.joint.sides
        alone = alone and not self.depth
        self.direct = DirectView(self.model, **self.render_options) if alone else None
        self.step = config.start_step or 0
        self.skipped = 0  # of the steps done, those that were left out
        self.whole = True  # False in the middle of an update
        self.order = ViewOrder(len(self.scene.train), config.seed)
        self.feed = PhotoFeed(ViewPyramid(self.scene.train), self.order, self.device)
        self.generator = torch.Generator("cpu").manual_seed(config.seed + 1)  # of all other random choices
        self.monitor = Monitor(None)
        self.by_hand = ByHand()
        self.start_notes: list[str] = []  # on Gaussians from a file
        self.first_sh_degree = self.model.max_sh_degree if self.model.feature_rest.any() else 0
        if saved:
            resume.go_on(self, saved)
        else:
            self._begin(start)
        self._lock(saved, centres)
        self.strategy.check(self.model)
        if of_points:
            self.strategy.prepare(self.model)

    # ------------------------------------------------------------------------------------------ the method

    def train_step(self) -> StepResult:
        """One update of every group that is not frozen, by the mean loss of one view or several.

        Then what the strategy makes of it. Raises NonFinite for a loss or gradient that is not finite: then,
        and if memory runs out before the update, all is as it was before the step.
        """
        with intact(self):
            self.step += 1
            apply_freezes(self.optimizer, self.specs, self.step - 1)
            losses = []
            for number, background in self.ranks.deal(self._next_views()):
                backward = partial(self._backward, number, background)
                terms, seen = self.ranks.each(backward, self._observer())
                losses += terms
            self.ranks.sum_gradients(self.optimizer)
        self.whole = False
        average_gradients(self.optimizer, len(losses))

        clear_locked_gradients(self.model)
        with self.monitor.norms(self.optimizer, self.step), hold_locked(self.model, self.optimizer):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        refined = self.strategy.refine(self.model, self.optimizer, self.step, self.generator)
        self.scheduler.step()  # to the learning rates of the next step
        self.whole = True
        terms = mean_terms(losses)
        return StepResult(terms.pop("total"), terms, seen.image, seen.photo, seen.mask, refined)

    def _backward(self, number: int, background: Tensor) -> Seen:
        """Render a view and add the gradients of its loss to those that there are.

        Raises NonFinite where the loss or a gradient is not finite.
        """
        view, photo = self.feed.take(number, self.reduction, background)

        grad2d = self.strategy.needs_grad2d(self.step)
        weight, degree = self.config.ssim_weight, self.sh_degree
        about = (view.camera, background, photo, weight, degree, grad2d, view.mask)
        done = self.direct and self.direct.backward(*about)
        if done:  # all in one call
            loss, terms, image, info, finite = done
        else:
            finite = False  # as far as is known
            options = self.render_options | {"sh_degree": degree} | (self.depth.options if self.depth else {})
            image, info = self.joint.render(view.camera, background, number, **options)
            if grad2d:
                keep_gradient(info["means2d"])
            loss, terms = photometric(image, photo, weight, view.mask)
            if self.depth:
                loss, terms = with_terms(loss, terms, self.depth.terms(info, view, self.step))
        loss, terms = with_terms(loss, terms, self.strategy.regularization(self.model))
        if loss.requires_grad:
            loss.backward()
            finite = False
        if not finite:
            where = f"iteration {self.step}: photo {view.camera.name}"
            projected = info["means2d"].grad if grad2d else None
            check_finite(where, loss, self.optimizer, self.model, projected)
        return Seen(terms | {"total": loss.detach()}, image.detach(), photo, info, view.mask, grad2d)

    def _observer(self) -> Callable[[Mapping[str, Any]], None] | None:
        """What looks at each view's info after its backward pass; None where nobody does."""
        watched = type(self.strategy).observe is not Strategy.observe
        return self._observe if watched or hasattr(self.optimizer, "add_visible") else None

    def _observe(self, info: Mapping[str, Any]) -> None:
        self.strategy.observe(self.model, info, self.step)
        if hasattr(self.optimizer, "add_visible"):
            self.optimizer.add_visible(self.model, visible_rows(info))

    def skip_step(self) -> None:
        """Leave the next step out: its number, its views and its learning rates go by, all else stays."""
        self.step += 1
        for _ in range(self.views_per_step):
            self.order.next()
        self.scheduler.load_state_dict({"step": self.step})
        self.skipped += 1

    def train(self) -> Metrics:
        """Train to the last iteration and return what is then in the run's `metrics.json`.

        On Ctrl-C or SIGTERM the step is finished, a checkpoint and a PLY are saved, and KeyboardInterrupt is
        raised with what to do next.

        Raises:
            InputError: the training cannot go on (a gradient is not finite, the model has diverged, memory or
                disk is full); where the state is whole, it is in a checkpoint.
        """
        recorder = Recorder(self)
        recorder.begin()
        progress = Progress.of(self)
        with (
            StopSignals(patient=self.ranks.size > 1) as stop,
            torch_threads(1),
            deterministic(self.config.deterministic),
            self.clock("train"),
            self.ranks.together(),
            recorder.rescue(),
        ):
            about = (self, recorder, progress, stop)
            try:
                self.by_hand.between_steps(*about)
                while self.step < self.config.iterations:
                    try:
                        result = self.train_step()
                    except NonFinite as trouble:
                        recorder.skip_or_stop(trouble, progress)
                        result = None
                    progress.advance()
                    recorder.after(result, progress)
                    self.by_hand.between_steps(*about)
                    if asked := self.ranks.any(stop.asked):
                        recorder.save()
                        raise KeyboardInterrupt(
                            f"{asked} after {self.step} iterations, all saved; "
                            f"go on with: gsopt train --resume {self.run.path}"
                        )
                return recorder.finish()
            finally:
                progress.close()
                recorder.close()

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
            about = (self.joint.render, self.scene, self.background)
            metrics = evaluate_scene(*about, on_view=look, shown=PICTURES, ranks=self.ranks, **options)
            for split in ("test", "train"):
                self.monitor.evaluation(split, metrics[split], self.step)
            self.monitor.histograms(self.model.opacities, self.model.scales, self.step)
            self.monitor.flush()
            if sheet and self.ranks.first:
                pictures.save_png(pictures.sheet(rows), sheet)
        return metrics

    def save(self) -> None:
        """A PLY and a checkpoint of now. Raises InputError where the model has diverged."""
        Recorder(self).save()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as a checkpoint holds it."""
        return resume.state_of(self)

    # -------------------------------------------------------------------------------- what a step stands on

    def build_optimizer(self) -> None:
        """Groups, optimizer and schedules over all parameters as they are, at step 0."""
        native = self.device.type == "cpu" and self.config.backend == "auto"
        groups = build_groups(self.joint.models, self.specs)
        args = parse_arguments(self.config.optimizer_args)
        self.optimizer = build_optimizer(self.config.optimizer, groups, native=native, **args)
        specs = self.specs
        if self.config.scale_rates:
            specs = scale_for_batch(self.optimizer, specs, self.views_per_step)
        self.scheduler = build_scheduler(self.optimizer, specs)

    def _begin(self, start: Splat | None) -> None:
        """A new optimizer, with the moments that came with the Gaussians in a file."""
        self.build_optimizer()
        self.scheduler.load_state_dict({"step": self.step})
        if start is not None:
            self.start_notes = [*start.notes, *load_moments(self.optimizer, start)]

    def _lock(self, saved: dict | None, centres: Tensor | None) -> None:
        """Lock the Gaussians that the settings mean now; a run that goes on keeps its own.

        `centres`: in world units, for regions are, if they are known to the bits of a file.

        Other settings than those of the checkpoint replace its locks. Its config.json will not do for the
        comparison: it has what an interrupted resume asked for.
        """
        config, old = self.config, saved["config"] if saved else {}
        before = tuple(old.get("lock", ()))
        self.newly_locked = False  # in this session
        if config.forget_by_hand and self.by_hand.forget_locks():
            before = ()
            unlock(self.model)
        if not before or (config.lock, config.lock_attributes) != (before, tuple(old["lock_attributes"])):
            if before:
                unlock(self.model)
            if config.lock:
                if centres is None and self.scene.world is not None:
                    centres = self.scene.world.inverse().points(self.model.xyz)
                lock(self.model, config.lock, config.lock_attributes, centres=centres)
                self.newly_locked = True
        still = {attribute_name(text) for text in (*config.freeze, *config.exclude) if "@" not in text}
        if still.union(still_groups(config), ATTRIBUTES).issuperset(present_groups(config)):
            check_something_moves(self.model, still=still.intersection(ATTRIBUTES))

    def _next_views(self) -> list[tuple[int, Tensor]]:
        """The numbers of the next step's views, those of all processes, and the backgrounds [3] of each."""
        return [(self.order.next(), self._view_background()) for _ in range(self.views_per_step)]

    def _view_background(self) -> Tensor:
        """[3] behind the Gaussians in the next view."""
        if self.config.background == "random":
            return torch.rand(3, generator=self.generator, device="cpu").to(self.device, non_blocking=True)
        return self.background
