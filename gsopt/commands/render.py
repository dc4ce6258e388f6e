"""`gsopt render`: the views of a run or a PLY as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional

from gsopt import pictures
from gsopt.commands.flags import parse
from gsopt.commands.sources import SourceOptions, load_source
from gsopt.errors import InputError

ABOUT = "Render the test views of a run, or of a PLY with --scene DIR, as PNG."


@dataclass
class RenderConfig(SourceOptions):
    """Settings of `gsopt render`."""

    model: Positional[Path] = Path()
    """Folder of a run, or a PLY."""
    split: Literal["test", "train"] = "test"
    """Which views."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(RenderConfig, argv, "gsopt render", ABOUT))


@torch.no_grad()
def run(config: RenderConfig) -> list[Path]:
    """The files it wrote, in the order of the views."""
    source = load_source(config.model, config)
    views = getattr(source.scene, config.split)
    if not views:
        raise InputError(
            f"{source.scene.path}: no {config.split} views; give --split train, or --test-every N"
        )
    files = []
    for number, view in enumerate(views):
        image, _ = source.joint.render(
            view.camera,
            source.background,
            number if config.split == "train" else None,
            **source.config.render_options(),
        )
        files.append(source.folder.picture_of(config.split, view.camera.name))
        pictures.save_png(image, files[-1])
    print(f"{len(files)} pictures in {source.folder.renders / config.split}")
    return files
