"""A run while it trains: files, checkpoints and tests, and what TensorBoard and the terminal show."""

import contextlib
import dataclasses
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsopt import checkpoint
from gsopt.cameras import cameras_to_json
from gsopt.device import peak_memory
from gsopt.errors import InputError, is_disk_full
from gsopt.evaluation import Metrics
from gsopt.guards import NonFinite, diverged, is_out_of_memory
from gsopt.log_json import teller
from gsopt.metrics import psnr
from gsopt.monitor import Monitor
from gsopt.progress import LOSSES_EVERY, Progress
from gsopt.ranks import RankError
from gsopt.rundir import RunFolder, read_json, write_json
from gsopt.strategy import Refinement

if TYPE_CHECKING:
    from gsopt.trainer import Trainer

FINITE_EVERY = 100  # steps between looks at the parameters; gradients are looked at in each


@dataclass
class StepResult:
    """What one step leaves for the reports. Tensors stay on the device; nothing has waited for them."""

    loss: Tensor  # [], mean over the views of the step
    terms: dict[str, Tensor]  # what the loss is made of, by name, each [], means over the views
    image: Tensor  # [H, W, 3] of the step's last view, before the update
    photo: Tensor  # [H, W, 3] of the same view, float32 in 0..1 or uint8
    mask: Tensor | None  # [H, W], where that counts; None for everywhere
    refined: Refinement  # what became of how many Gaussians


class Recorder:
    """Records what `trainer` does. Nothing here changes what is trained."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self._in_a_row = 0  # steps left out one after another
        self._last_skip = -1  # the step after which the last was
        self._session = contextlib.ExitStack()  # the run is held in it
        self._tell = teller(trainer.config)
        self.history: list[Metrics] = []  # a test of the run each
        self._reported = (trainer.step, trainer.clock.read().get("train", 0.0))  # at the last report

    def begin(self) -> None:
        """The run's folder and its first files."""
        trainer = self.trainer
        trainer.run = trainer.ranks.tell(self._begin_files)
        first = trainer.step + 1 if trainer.step else 0  # of the events that are written from now on
        if not trainer.ranks.first:
            return
        trainer.monitor = Monitor(trainer.run.path, first_step=first)
        if trainer.newly_locked and (locked := trainer.model.locked) is not None:
            trainer.monitor.scalars({"gaussians/locked": int(locked.sum())}, first)
        if trainer.step == 0:
            trainer.monitor.text("config", f"```json\n{trainer.run.config.read_text()}```")

    def _begin_files(self) -> RunFolder:
        """Make or open the run's folder, and write the settings and the cameras into it."""
        trainer = self.trainer
        settings = dataclasses.replace(trainer.config, resume=None, output=trainer.run.path).to_json()
        if trainer.config.resume:
            trainer.run.make()
            self._session.enter_context(trainer.run.held())
            self._recall()
            self._unfinish()
            write_json(trainer.run.config, settings)
        else:
            trainer.run = trainer.run.claim(settings)
            self._session.enter_context(trainer.run.held())
        # The original 3DGS puts the test cameras first.
        cameras = [view.camera for view in (*trainer.scene.test, *trainer.scene.train)]
        write_json(trainer.run.cameras, cameras_to_json(cameras, trainer.scene.world))
        return trainer.run

    def close(self) -> None:
        """Of TensorBoard's file, and of the run for others."""
        self.trainer.monitor.close()
        self._session.close()

    def after(self, result: StepResult | None, progress: Progress) -> None:
        """Reports, files and tests that are due after this step; None for one that was left out."""
        trainer = self.trainer
        config, step = trainer.config, trainer.step
        refined = Refinement() if result is None else result.refined
        if any(refined.counts.values()) or refined.score is not None:
            count = trainer.model.num_gaussians
            trainer.monitor.refinement(refined.counts, count, refined.score, step)
            if not count:
                raise InputError(f"iteration {step}: every Gaussian was pruned; lower the learning rates")
        if any(refined.counts.values()) or refined.reset:
            count = trainer.model.num_gaussians
            self._tell("refine", step=step, gaussians=count, **refined.counts, opacity_reset=refined.reset)
        if step % FINITE_EVERY == 0:
            self._require_finite()
        if step % LOSSES_EVERY == 0 and result is not None:
            self._report(result, progress)
        if step == config.iterations:
            return  # `finish` does the rest
        # The checkpoint comes last: a run that goes on from it has done all else that is due by then.
        if step in config.save_iterations:
            self._require_finite()
            with self._going_on(f"the model of iteration {step}"):
                self._save_ply()
        if step in config.test_iterations:
            self._require_finite()
            mean = self._remember(trainer.evaluate())
            progress.say(f"iteration {step:,}: PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}")
        if step % config.checkpoint_every == 0:
            self._require_finite()
            with self._going_on(f"the checkpoint of iteration {step}"):
                self._save_checkpoint()

    def finish(self) -> Metrics:
        """Save the end of the run, measure it, and write metrics.json and a picture.

        Where an earlier session was killed after its last test, that test is in TensorBoard already.
        """
        trainer = self.trainer
        self._require_finite()
        with self._needed():
            self._save_ply()
        if self.history and self.history[-1]["iteration"] == trainer.step:
            trainer.monitor.close()
            trainer.monitor = Monitor(None)
        metrics = trainer.evaluate(sheet=trainer.run.picture)
        self._remember(metrics)
        with self._needed():
            self._save_checkpoint()
        metrics |= {
            "iterations": trainer.step,
            "gaussians": trainer.model.num_gaussians,
            "skipped_steps": trainer.skipped,
            "seconds": {part: round(value, 3) for part, value in trainer.clock.read().items()},
            "peak_memory_bytes": peak_memory(trainer.device),
            "history": self.history,
        }
        if trainer.by_hand.history:
            metrics["by_hand"] = trainer.by_hand.history
        if trainer.ranks.first:
            write_json(trainer.run.metrics, metrics)
        return metrics

    def note_by_hand(self) -> None:
        """Write down what was done by hand so far; see `gsopt.by_hand`."""
        with self._going_on("by_hand.json"):
            write_json(self.trainer.run.by_hand, self.trainer.by_hand.history)

    def save(self) -> None:
        """A checkpoint and a PLY of now. Raises InputError: the model has diverged, the disk is full."""
        self._require_finite()
        with self._needed():
            self._save_checkpoint()
            self._save_ply()

    def skip_or_stop(self, trouble: NonFinite, progress: Progress) -> None:
        """Leave out the step that `trouble` is about, or end the run, as `--on-nan` says.

        A run ends also if its model has diverged, or if so many steps in a row are left out that every photo
        has had its turn: while nothing changes, nothing gets better.
        """
        self._require_finite()
        trainer = self.trainer
        in_a_row = self._in_a_row + 1 if self._last_skip == trainer.step else 1
        hopeless = in_a_row * trainer.views_per_step >= 2 * len(trainer.scene.train)
        if trainer.config.on_nan == "stop" or hopeless:
            remedy = "lower a learning rate" if hopeless else "leave such steps out by --on-nan skip"
            saved = self._save_last()
            raise InputError(f"{trouble}; nothing was changed by this step; {saved}: {remedy}") from trouble
        trainer.skip_step()
        self._in_a_row, self._last_skip = in_a_row, trainer.step
        trainer.monitor.scalars({"skipped_steps": trainer.skipped}, trainer.step)
        progress.say(f"{trouble}; step left out, the {trainer.skipped:,}. of this run")
        self._tell("skip", step=trainer.step, skipped=trainer.skipped, message=str(trouble))

    @contextlib.contextmanager
    def rescue(self) -> Iterator[None]:
        """Around training: if memory, disk or another process fails, a checkpoint is saved first, where the
        state is whole.

        Raises InputError then, which says what failed and what is saved.
        """
        try:
            yield
        except (MemoryError, RuntimeError, OSError, RankError) as error:
            trainer = self.trainer
            if isinstance(error, RankError):
                raise RankError(f"iteration {trainer.step}: {error}; {self._save_last()}") from error
            if is_out_of_memory(error):
                traceback.clear_frames(error.__traceback__)  # what they hold is needed for saving
                trouble = f"out of memory with {trainer.model.num_gaussians:,} Gaussians"
                remedy = "lower --resolution, --batch-size or --max-gaussians"
            elif isinstance(error, OSError):
                trouble = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                remedy = "check the path, its permissions and the free space"
            else:
                raise
            raise InputError(f"iteration {trainer.step}: {trouble}; {self._save_last()}: {remedy}") from error

    def _save_last(self) -> str:
        """Save a checkpoint before the run ends in an error; what has come of it, with how to go on."""
        trainer = self.trainer
        newest = checkpoint.latest(trainer.run.checkpoints)
        if not trainer.ranks.first:
            return f"process 0 saves; the newest checkpoint is {newest or 'none'}"
        if not trainer.whole:
            return f"this was in the middle of an update, the newest checkpoint is {newest or 'none'}"
        try:
            self._save_checkpoint()
        except (OSError, MemoryError, RuntimeError) as error:
            return f"no checkpoint could be saved ({error})"
        return f"saved after iteration {trainer.step}; go on with: gsopt train --resume {trainer.run.path}"

    def _recall(self) -> None:
        """The tests of earlier sessions, but for those after the checkpoint: they are done again.

        What was done by hand after it is not, and no longer told.
        """
        file = self.trainer.run.history
        if file.is_file():
            self.history = [entry for entry in read_json(file) if entry["iteration"] <= self.trainer.step]
        if self.trainer.run.by_hand.is_file():  # what came after the checkpoint is undone
            self.note_by_hand()

    def _unfinish(self) -> None:
        """A finished run that goes on for longer: what it was then gets the name of an older model's metrics.

        If it stayed, a run that is killed after its last checkpoint would pass for finished.
        """
        file = self.trainer.run.metrics
        if self.trainer.step < self.trainer.config.iterations and file.is_file():
            file.replace(file.with_name(f"metrics_{read_json(file)['iterations']}.json"))

    def _remember(self, metrics: Metrics) -> Metrics:
        """Put a test of now into the history, once; the means that it is about."""
        trainer = self.trainer
        mean = metrics["test" if trainer.scene.test else "train"]
        entry = {
            "iteration": trainer.step,
            "seconds": trainer.clock.read()["train"],
            "psnr": mean["psnr"],
            "ssim": mean["ssim"],
            "gaussians": trainer.model.num_gaussians,
        }
        self.history = [*(old for old in self.history if old["iteration"] != trainer.step), entry]
        self._tell(
            "eval",
            step=trainer.step,
            gaussians=entry["gaussians"],
            seconds=round(trainer.clock.read()["total"], 3),
            **{split: metrics[split] for split in ("test", "train")},
        )
        with self._going_on("history.json"):
            if trainer.ranks.first:
                write_json(trainer.run.history, self.history)
        return mean

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """A full disk costs this file, not the run. What was there before still is.

        Another failure of the disk, such as one that is read-only now, is for `rescue`.
        """
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            newest = checkpoint.latest(self.trainer.run.checkpoints)
            warnings.warn(
                f"{what} is not written ({error.strerror or error}); training goes on, make room for the "
                f"next. Newest checkpoint: {newest or 'none'}",
                stacklevel=2,
            )

    def _require_finite(self) -> None:
        """Nothing good is overwritten by a model that has diverged: the run ends here.

        So it does where it is another model in another process.
        """
        trainer = self.trainer
        trainer.ranks.check_same(trainer)
        if found := diverged(trainer.joint.named_parameters()):
            name, rows = found
            newest = checkpoint.latest(trainer.run.checkpoints)
            raise InputError(
                f"iteration {trainer.step}: {name} is not finite in {rows}, the training has diverged; "
                f"lower its learning rate (--groups.{name.removesuffix('.delta').replace('_', '-')}.lr). "
                f"Newest checkpoint: {newest or 'none'}"
            )

    def _report(self, result: StepResult, progress: Progress) -> None:
        """Numbers of this step for TensorBoard and the progress line: what a step itself never waits for."""
        trainer = self.trainer
        terms = {name: float(term) for name, term in result.terms.items()} | {"total": result.loss.item()}
        photo = result.photo / 255 if result.photo.dtype == torch.uint8 else result.photo
        seconds = trainer.clock.read()["train"]
        last_step, last_seconds = self._reported
        self._reported = (trainer.step, seconds)
        milliseconds = 1000 * (seconds - last_seconds) / (trainer.step - last_step)
        found = psnr(result.image, photo, result.mask).item()
        terms["psnr"] = found
        trainer.monitor.losses(terms, milliseconds, trainer.model.num_gaussians, trainer.step)
        trainer.monitor.groups(trainer.optimizer, trainer.step)
        total = sum(trainer.clock.seconds.values())
        progress.show(terms["total"], found, trainer.model.num_gaussians, milliseconds, total)

    @contextlib.contextmanager
    def _needed(self) -> Iterator[None]:
        """A full disk is an error where nothing comes after: InputError, with what there is to go on from."""
        trainer = self.trainer
        try:
            yield
        except OSError as error:
            newest = checkpoint.latest(trainer.run.checkpoints)
            raise InputError(
                f"{trainer.run.path}: iteration {trainer.step} cannot be saved "
                f"({error.strerror or error}); make room and go on with --resume {trainer.run.path}. "
                f"Newest checkpoint: {newest or 'none'}"
            ) from error

    def _save_ply(self) -> None:
        """The model, and beside it what else its pictures depend on, in world units."""
        trainer = self.trainer
        if not trainer.ranks.first:
            return
        train, test = trainer.scene.train, trainer.scene.test
        with trainer.clock("save"):
            ply = trainer.run.ply(trainer.step)
            trainer.joint.save_beside(
                ply,
                [view.camera.name for view in train],
                background=trainer.config.background_model_trainable,
            )
            world = trainer.scene.world
            trainer.model.moved(world and world.inverse()).save_ply(ply)
            self._tell("model", step=trainer.step, path=str(ply))
            if trainer.joint.poses is not None:
                refined = [trainer.joint.refined(view.camera, i) for i, view in enumerate(train)]
                cameras = [*(view.camera for view in test), *refined]
                write_json(trainer.run.refined_cameras, cameras_to_json(cameras, trainer.scene.world))

    def _save_checkpoint(self) -> None:
        """After all events so far: those that a killed run had not written yet would be in no session."""
        trainer = self.trainer
        if not trainer.ranks.first:
            return
        trainer.monitor.flush()
        with trainer.clock("save"):
            path = checkpoint.path_of(trainer.run.checkpoints, trainer.step)
            checkpoint.save(path, trainer.state_dict())
            checkpoint.prune(trainer.run.checkpoints, trainer.config.keep)
        self._tell("checkpoint", step=trainer.step, path=str(path))
