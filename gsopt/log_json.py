"""What a run tells scripts, with `--log-json`: one JSON object a line. docs/monitoring.md has the fields."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsopt.progress import ProgressOptions
    from gsopt.trainer import Trainer

VERSION = 1  # of the objects below: a field that goes or changes its meaning raises it, a new one does not
EVENTS = {  # "event": its other fields, in order; of all steps are optimizer steps, seconds of the whole run
    "start": (
        *("version", "run", "scene", "format", "device", "train_views", "test_views", "width", "height"),
        *("gaussians", "step", "iterations"),
    ),
    "progress": (*("step", "iterations", "loss", "psnr", "gaussians", "step_ms", "seconds", "eta_seconds"),),
    "refine": (*("step", "gaussians", "cloned", "split", "pruned", "relocated", "added", "opacity_reset"),),
    "eval": ("step", "gaussians", "seconds", "test", "train"),
    "model": ("step", "path"),
    "checkpoint": ("step", "path"),
    "skip": ("step", "skipped", "message"),
    "end": ("status", "message", "run", "step", "gaussians", "test", "train", "seconds"),
}


def tell(event: str, **fields: Any) -> None:
    """Print an event as one line of JSON; numbers that are not finite become null.

    Raises ValueError for fields other than those of `EVENTS`.
    """
    if tuple(fields) != EVENTS[event]:
        raise ValueError(f"{event}: expected the fields {EVENTS[event]}, found {tuple(fields)}")
    print(json.dumps(_finite({"event": event} | fields), allow_nan=False), flush=True)


def nothing(event: str, **fields: Any) -> None:
    """Instead of `tell`, where nobody wants to know."""


def teller(options: "ProgressOptions") -> Callable[..., None]:
    """What is to be called with every event of a run."""
    return tell if options.log_json else nothing


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def told(config: "ProgressOptions") -> Iterator[None]:
    """A run that ends early ends with an object of --log-json, too; stderr has the message for a person."""
    try:
        yield
    except KeyboardInterrupt as stop:
        tell_end(config, "interrupted", str(stop))
        raise
    except Exception as error:
        tell_end(config, "failed", str(error))
        raise


def tell_start(trainer: "Trainer") -> None:
    """The first object of --log-json."""
    scene, camera = trainer.scene, trainer.scene.train[0].camera
    teller(trainer.config)(
        "start",
        version=VERSION,
        run=str(trainer.run.path),
        scene=str(scene.path),
        format=scene.format,
        device=str(trainer.device),
        train_views=len(scene.train),
        test_views=len(scene.test),
        width=camera.width,
        height=camera.height,
        gaussians=trainer.model.num_gaussians,
        step=trainer.step,
        iterations=trainer.config.iterations,
    )


def tell_end(
    config: "ProgressOptions",
    status: str,
    message: str,
    run: Path | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """The last object of --log-json: "done", "interrupted" or "failed"; null for what is not known."""
    found = metrics or {}
    teller(config)(
        "end",
        status=status,
        message=" ".join(message.split()),
        run=None if run is None else str(run),
        step=found.get("iterations"),
        gaussians=found.get("gaussians"),
        **{split: found.get(split) for split in ("test", "train")},
        seconds=found.get("seconds"),
    )
