"""What a run tells TensorBoard while it trains.

Tags are those of the original 3DGS where it has one; the others are ours. Writing is cheap enough to leave
on: losses every 10 steps as one event, norms every 50. docs/monitoring.md lists every tag, and the cost.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsopt import pictures
from gsopt.errors import is_disk_full

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NORMS_EVERY = 50  # steps between the events of norms: they read every parameter, gradient and moment
PICTURES = 4  # views of each split whose pictures are kept
HISTOGRAM_BINS = 64  # equal ones; those that the writer has by default take ten times as long


def wait_for_a_later_name(folder: Path) -> None:
    """Until a new event file has a later name than those in `folder`: a second at most.

    TensorBoard reads the files of a folder by name, in which the time is in whole seconds, then the number of
    the process. What an earlier session wrote must come first, or this session's steps look undone. Where the
    clock has been set back it would be a long wait: then a warning.
    """
    files = folder.glob("events.out.tfevents.*")
    newest = max((int(file.name.split(".")[3]) for file in files), default=0)
    while newest == int(time.time()):
        time.sleep(0.02)
    if newest > time.time():
        warnings.warn(
            f"{folder}: the clock was {newest - time.time():,.0f} seconds ahead when its events were "
            "written; TensorBoard may show steps twice",
            stacklevel=3,
        )


class Monitor:
    """TensorBoard events of one run. Without a folder it takes everything and writes nothing."""

    def __init__(self, folder: Path | None, first_step: int = 0) -> None:
        """Events of `first_step` and later that an interrupted run left in `folder` are disregarded.

        Where events cannot be written any more, because the disk is full, a warning says so, once.
        """
        self.writer: SummaryWriter | None = None
        self.pictured: set[str] = set()  # tags whose photo has been written
        if folder is not None:
            from torch.utils import tensorboard

            wait_for_a_later_name(folder)
            self.writer = tensorboard.SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One event with all these values: a tenth of the cost of one event each."""
        if self.writer is None or not values:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
        with self._writing():
            self.writer._get_file_writer().add_summary(Summary(value=entries), step)

    def losses(self, terms: Mapping[str, float], milliseconds: float, gaussians: int, step: int) -> None:
        """Loss terms of one step by name ("l1", "ssim", "total", ...), and how long a step takes."""
        values = {f"train_loss_patches/{LOSS_TAGS.get(name, name)}": value for name, value in terms.items()}
        self.scalars(values | {"iter_time": milliseconds, "total_points": gaussians}, step)

    def groups(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Learning rate of each group, and whether it is frozen (0 or 1)."""
        values = {}
        for group in optimizer.param_groups:
            values[f"lr/{group['name']}"] = float(group["lr"])
            values[f"frozen/{group['name']}"] = float(group.get("frozen", False))
        self.scalars(values, step)

    def norms(self, optimizer: torch.optim.Optimizer, step: int) -> AbstractContextManager[None]:
        """Around `optimizer.step()`: norms of each group's gradient, update and moments.

        `update_norm` is relative: norm of the change over norm of the parameter before; 0 where that is 0.
        `moment_norm` is that of the first moment (Adam's `exp_avg`, SGD's `momentum_buffer`), 0 where the
        optimizer has none.
        """
        due = self.writer is not None and step % NORMS_EVERY == 0
        return self._norms(optimizer, step) if due else contextlib.nullcontext()

    @contextlib.contextmanager
    def _norms(self, optimizer: torch.optim.Optimizer, step: int) -> Iterator[None]:
        groups = {group["name"]: group["params"] for group in optimizer.param_groups}
        values = {f"grad_norm/{name}": _norm(p.grad for p in params) for name, params in groups.items()}
        sizes = {name: _norm(params) for name, params in groups.items()}
        moving = [(name, p) for name, params in groups.items() for p in params if p.grad is not None]
        before = [parameter.detach().clone() for _, parameter in moving]  # all else stays as it is
        yield
        changes: dict[str, list[Tensor]] = {name: [] for name in groups}
        for (name, parameter), old in zip(moving, before, strict=True):
            changes[name].append(old.sub_(parameter.detach()))
        for name, params in groups.items():
            states = [optimizer.state.get(p, {}) for p in params]
            moments = (state.get("exp_avg", state.get("momentum_buffer")) for state in states)
            values[f"update_norm/{name}"] = _norm(changes[name]) / sizes[name] if sizes[name] else 0.0
            values[f"moment_norm/{name}"] = _norm(moments)
        self.scalars(values, step)

    def refinement(self, counts: Mapping[str, int], total: int, score: Tensor | None, step: int) -> None:
        """What densification did in this step: numbers of Gaussians by what became of them, and in all.

        `score` is what decided, of each Gaussian before: [N], 0 or more; shown as log10 where it is above 0.
        """
        if self.writer is None:
            return
        self.scalars(
            {f"gaussians/{name}": count for name, count in (*counts.items(), ("total", total))}, step
        )
        if score is not None and (shown := score[(score > 0) & score.isfinite()].log10()).numel():
            self.writer.add_histogram("gaussians/score_log10", shown, step)

    def evaluation(self, split: str, metrics: Mapping[str, float | None], step: int) -> None:
        """Mean metrics of a split, "test" or "train"."""
        known = {name: value for name, value in metrics.items() if value is not None}
        self.scalars(
            {f"{split}/loss_viewpoint - {LOSS_TAGS.get(name, name)}": v for name, v in known.items()}, step
        )

    def picture(self, split: str, name: str, render: Tensor, photo: Tensor, step: int) -> None:
        """A view as it is rendered now, [H, W, 3] in 0..1, and, once, its photo."""
        if self.writer is None:
            return
        tag = f"{split}_view_{Path(name).with_suffix('').as_posix().replace('/', '_')}"
        self._image(f"{tag}/render", render, step)
        if tag not in self.pictured:
            self.pictured.add(tag)
            self._image(f"{tag}/ground_truth", photo, step)

    def _image(self, tag: str, image: Tensor, step: int) -> None:
        if self.writer is None:  # the last event has shown the disk to be full
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width, _ = image.shape
        encoded = pictures.png(image)
        value = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        with self._writing():
            self.writer._get_file_writer().add_summary(
                Summary(value=[Summary.Value(tag=tag, image=value)]), step
            )

    def histograms(self, opacities: Tensor, scales: Tensor, step: int) -> None:
        """How opaque, 0..1, and how large, log10 of world units, the Gaussians are that have a size."""
        if self.writer is None or not len(opacities):
            return
        sizes = scales.amax(dim=-1).log10()
        shown = sizes[sizes.isfinite()]
        with self._writing():
            self.writer.add_histogram("scene/opacity_histogram", opacities, step, bins=HISTOGRAM_BINS)
            if len(shown):
                self.writer.add_histogram("scene/scale_histogram", shown, step, bins=HISTOGRAM_BINS)

    def text(self, tag: str, content: str) -> None:
        """A text shown once, such as the configuration."""
        if self.writer is not None:
            with self._writing():
                self.writer.add_text(tag, content)

    def flush(self) -> None:
        """Everything so far is on disk when this returns."""
        if self.writer is not None:
            with self._writing():
                self.writer.flush()

    def close(self) -> None:
        """Flush and end."""
        if self.writer is not None:
            with self._writing():
                self.writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk ends the events of this session, not the run."""
        try:
            yield
        except OSError as error:
            self.writer = None
            if not is_disk_full(error):
                raise
            warnings.warn(
                f"TensorBoard's events end here ({error.strerror or error}); training goes on, and so do the "
                "events once the run is resumed",
                stacklevel=4,
            )


LOSS_TAGS = {"l1": "l1_loss", "total": "total_loss"}  # ours -> the original's


def _norm(tensors: Iterable[Tensor | None]) -> float:
    """Euclidean norm of all of them together; None counts as zero."""
    norms = [torch.linalg.vector_norm(tensor.detach()).item() for tensor in tensors if tensor is not None]
    return math.hypot(*norms)
