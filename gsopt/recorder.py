"""A run while it trains: files, checkpoints and tests, and what TensorBoard and the terminal show."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsopt import checkpoint
from gsopt.cameras import camera_to_json
from gsopt.device import peak_memory
from gsopt.errors import InputError
from gsopt.evaluation import Metrics
from gsopt.metrics import psnr
from gsopt.monitor import LOSSES_EVERY, Monitor, Progress
from gsopt.rundir import read_json, write_json
from gsopt.strategy import Refinement

if TYPE_CHECKING:
    from gsopt.trainer import Trainer


@dataclass
class StepResult:
    """What one step leaves for the reports. Tensors stay on the device; nothing has waited for them."""

    loss: Tensor  # [], mean over the views of the step
    terms: dict[str, Tensor]  # what the loss is made of, by name, each [], means over the views
    image: Tensor  # [H, W, 3] of the step's last view, before the update
    photo: Tensor  # [H, W, 3] of the same view, float32 in 0..1 or uint8
    refined: Refinement  # what became of how many Gaussians


class Recorder:
    """Records what `trainer` does. Nothing here changes what is trained."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.history: list[Metrics] = []  # a test of the run each
        self._reported = (trainer.step, trainer.clock.read().get("train", 0.0))  # at the last report

    def begin(self) -> None:
        """The run's folder and its first files."""
        trainer = self.trainer
        if trainer.config.resume:
            trainer.run.make()
            self._recall()
        else:
            trainer.run = trainer.run.claim()
        config = dataclasses.replace(trainer.config, resume=None, output=trainer.run.path)
        write_json(trainer.run.config, config.to_json())
        cameras = [view.camera for view in (*trainer.scene.train, *trainer.scene.test)]
        write_json(trainer.run.cameras, [camera_to_json(camera, i) for i, camera in enumerate(cameras)])
        trainer.monitor = Monitor(trainer.run.path, first_step=trainer.step + 1)
        if (locked := trainer.model.locked) is not None:
            trainer.monitor.scalars({"gaussians/locked": int(locked.sum())}, trainer.step)
        if trainer.step == 0:
            trainer.monitor.text("config", f"```json\n{trainer.run.config.read_text()}```")

    def after(self, result: StepResult, progress: Progress) -> None:
        """Reports, files and tests that are due after this step."""
        trainer, refined = self.trainer, result.refined
        config, step = trainer.config, trainer.step
        if any(refined.counts.values()) or refined.score is not None:
            count = trainer.model.num_gaussians
            trainer.monitor.refinement(refined.counts, count, refined.score, step)
            if not count:
                raise InputError(f"iteration {step}: every Gaussian was pruned; lower the learning rates")
        if step % LOSSES_EVERY == 0:
            self._report(result, progress)
        if step == config.iterations:
            return  # `finish` does the rest
        if step % config.checkpoint_every == 0:
            self._require_finite()
            self._save_checkpoint()
        if step in config.save_iterations:
            self._require_finite()
            self._save_ply()
        if step in config.test_iterations:
            self._require_finite()
            mean = self._remember(trainer.evaluate())
            progress.say(f"iteration {step:,}: PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}")

    def finish(self) -> Metrics:
        """Save the end of the run, measure it, and write metrics.json and a picture."""
        trainer = self.trainer
        self.save()
        metrics = trainer.evaluate(sheet=trainer.run.picture)
        self._remember(metrics)
        metrics |= {
            "iterations": trainer.step,
            "gaussians": trainer.model.num_gaussians,
            "seconds": {part: round(value, 3) for part, value in trainer.clock.read().items()},
            "peak_memory_bytes": peak_memory(trainer.device),
            "history": self.history,
        }
        write_json(trainer.run.metrics, metrics)
        return metrics

    def save(self) -> None:
        """A PLY and a checkpoint of now. Raises InputError where the model has diverged."""
        self._require_finite()
        self._save_ply()
        self._save_checkpoint()

    def _recall(self) -> None:
        """The tests of earlier sessions, but for those after the checkpoint: they are done again."""
        file = self.trainer.run.history
        if file.is_file():
            self.history = [entry for entry in read_json(file) if entry["iteration"] <= self.trainer.step]

    def _remember(self, metrics: Metrics) -> Metrics:
        """Put a test of now into the history; the means that it is about."""
        trainer = self.trainer
        mean = metrics["test" if trainer.scene.test else "train"]
        self.history.append(
            {
                "iteration": trainer.step,
                "seconds": trainer.clock.read()["train"],
                "psnr": mean["psnr"],
                "ssim": mean["ssim"],
                "gaussians": trainer.model.num_gaussians,
            }
        )
        write_json(trainer.run.history, self.history)
        return mean

    def _require_finite(self) -> None:
        """Nothing good is overwritten by a model that has diverged: the run ends here."""
        trainer = self.trainer
        for name, parameter in trainer.joint.named_parameters():
            used = parameter.exp() if name.endswith("scaling") else parameter  # e^x overflows before x does
            if not used.isfinite().all():
                newest = checkpoint.latest(trainer.run.checkpoints)
                raise InputError(
                    f"iteration {trainer.step}: {name} is not finite, the training has diverged; "
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
        trainer.monitor.losses(terms, milliseconds, trainer.model.num_gaussians, trainer.step)
        trainer.monitor.groups(trainer.optimizer, trainer.step)
        progress.show(terms["total"], psnr(result.image, photo).item(), trainer.model.num_gaussians)

    def _save_ply(self) -> None:
        """The model, and beside it what else its pictures depend on."""
        trainer = self.trainer
        train, test = trainer.scene.train, trainer.scene.test
        with trainer.clock("save"):
            ply = trainer.run.ply(trainer.step)
            trainer.joint.save_beside(
                ply,
                [view.camera.name for view in train],
                background=trainer.config.background_model_trainable,
            )
            trainer.model.save_ply(ply)
            if trainer.joint.poses is not None:
                refined = [trainer.joint.refined(view.camera, i) for i, view in enumerate(train)]
                cameras = [*refined, *(view.camera for view in test)]
                write_json(
                    trainer.run.refined_cameras,
                    [camera_to_json(camera, i) for i, camera in enumerate(cameras)],
                )

    def _save_checkpoint(self) -> None:
        trainer = self.trainer
        with trainer.clock("save"):
            path = checkpoint.path_of(trainer.run.checkpoints, trainer.step)
            checkpoint.save(path, trainer.state_dict())
            checkpoint.prune(trainer.run.checkpoints, trainer.config.keep)
