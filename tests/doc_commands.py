"""The commands that documents tell to type: found by bash itself, held against the programs they name.

commands = recorded("gsopt train --scene DIR  # a run", folder)     # [["gsopt", "train", "--scene", "DIR"]]
fill(folder)                    # DIR, fox, scene.ply, output/RUN and whatever else documents speak of
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import scenes
import splats
import torch

import gsopt

PROGRAMS = ("gsopt", "python", "pip", "torchrun", "jq", "sha256sum", "timeout")
STUB = '#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" $\'\\x1e\' >>"$RECORD"\n'
SCENES = ("DIR", "fox", "lego", "brighton_aerial")


def recorded(block: str, folder: Path) -> list[list[str]]:
    """The programs that bash starts for a block, with their arguments; none of them does anything."""
    (folder / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        (folder / "bin" / name).write_text(STUB)
        (folder / "bin" / name).chmod(0o755)
    record = folder / "record"
    record.touch()
    env = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RECORD": str(record)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=env, check=True, timeout=60)
    found = [words.split("\0") for words in record.read_text().split("\x1e\0")[:-1]]
    return [words[:-1] for words in found]


def as_gsopt(words: list[str]) -> list[str] | None:
    """The arguments of gsopt in a command that is one, as the scripts are, also under torchrun; else None."""
    if words[0] == "timeout":  # -s KILL SECONDS
        words = words[4:]
    if words[0] == "gsopt":
        return words[1:]
    for position, word in enumerate(words):
        if found := re.fullmatch(r"scripts/(\w+)\.py", word):
            return [found[1], *words[position + 1 :]]
    return None


def fill(folder: Path) -> None:
    """Make the files that documents speak of, tiny ones: scenes, splats, clouds, checkpoints and a run."""
    tiny = scenes.write_colmap(folder / "tiny", views=24, points=300)
    for kind in ("masks", "people"):
        (tiny / kind).mkdir()
        shutil.copy(tiny / "images" / "0001.png", tiny / kind / "0001.png")
    (tiny / "depths").mkdir()
    np.save(tiny / "depths" / "0001.npy", scenes.depth(scenes.orbit(24)[1]))
    shutil.copytree(tiny, folder / "SCENE")
    for name in SCENES:
        (folder / name).symlink_to(tiny)
    for name in ("data", "scripts", "tests"):
        (folder / name).symlink_to(Path(gsopt.__file__).resolve().parents[1] / name)
    shutil.copy(Path(gsopt.__file__).resolve().parents[1] / "constraints.txt", folder)
    _splats(folder)
    _run(folder)


def _splats(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    points, colors = torch.randn(3000, 3, generator=generator) * 2, torch.rand(3000, 3, generator=generator)
    model = gsopt.GaussianModel.from_points(points, colors)
    for name in ("scene", "b", "NAME", "FILE", "SPLAT"):
        model.save_ply(folder / f"{name}.ply")
    model.save_ply(folder / "PLY")
    gsopt.GaussianModel.from_points(points[:100], colors[:100]).save_ply(folder / "keep.ply")
    many = torch.randn(41_000, 3, generator=generator)
    for name in ("a", "point_cloud"):
        gsopt.GaussianModel.from_points(many, many.sigmoid()).save_ply(folder / f"{name}.ply")
    scenes.write_points(folder / "scan.ply", *scenes.ball_points(400))
    for name in ("rows.npy", "NAME.ply.locked.npy"):
        np.save(folder / name, np.arange(3000) < 50)
    tensors = splats.random_tensors(50)
    for name in ("chkpnt7000.pth", "chkpnt30000.pth"):
        torch.save(splats.original_checkpoint(tensors), folder / name)
    torch.save(splats.gsplat_checkpoint(tensors), folder / "ckpt_29999_rank0.pt")


def _run(folder: Path) -> None:
    """output/RUN, and copies of it and of its checkpoint under the other names of documents."""
    run = folder / "output" / "RUN"
    config = gsopt.TrainConfig(
        scene=folder / "DIR", output=run, iterations=6, resolution=32, device="cpu", quiet=True
    )
    gsopt.Trainer(config).train()
    newest = run / "checkpoints" / "step_00000006.pt"
    shutil.copytree(run, folder / "output" / "DIR-DATE")
    shutil.copytree(run, folder / "RUN")
    shutil.copytree(run, folder / "killed")
    for copy in (run / "checkpoints" / "step_00030000.pt", folder / "A", folder / "B"):
        shutil.copy(newest, copy)
    shutil.copy(run / "cameras.json", folder)
