"""`gsopt doctor`: what there is on this machine to train with, and what a run would use."""

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gsopt import native
from gsopt.bench.machine import cpu_model
from gsopt.commands.flags import parse
from gsopt.device import choose_device, cpu_count, cuda_report, describe
from gsopt.errors import InputError
from gsopt.native import build
from gsopt.render.cuda import SUPPORTED

ABOUT = "What there is to train with (torch, CUDA, gsplat, compiler, kernel, extras), and what a run uses."
EXTRAS = {  # of setup.py, with the package that each brings
    **{"cuda": "gsplat", "compiler": "ziglang", "plots": "matplotlib", "spz": "zstandard"},
    **{"video": "imageio-ffmpeg", "lpips": "torchmetrics", "viewer": "viser"},
}


@dataclass
class DoctorConfig:
    """Settings of `gsopt doctor`."""

    json: bool = False
    """Print JSON instead."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(DoctorConfig, argv, "gsopt doctor", ABOUT))


def run(config: DoctorConfig) -> dict[str, Any]:
    """Look, print, and return what was found."""
    found = examine()
    print(json.dumps(found, indent=2) if config.json else "\n".join(lines(found)))
    return found


def examine() -> dict[str, Any]:
    """All that there is, as plain values; None for what is missing. Compiles the kernel where it has to."""
    chosen = choose_device("auto")
    return {
        "gsopt": _version("gsopt"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "threads": cpu_count(),
        "torch": torch.__version__,
        "cuda": cuda_report() | {"nvcc": shutil.which("nvcc")},
        "gsplat": {"version": _version("gsplat"), "supported": SUPPORTED},
        "compiler": _compiler(),
        "kernel": _kernel(),
        "extras": {extra: _version(package) for extra, package in EXTRAS.items()},
        "uses": {
            "device": chosen.device.type,
            "name": describe(chosen.device, cpu_count()),
            "reason": chosen.reason,
        },
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same as text."""
    cuda, gsplat, kernel, compiler = (found[name] for name in ("cuda", "gsplat", "kernel", "compiler"))
    cards = ", ".join(
        f"{card['name']} ({card['memory_bytes'] / 2**30:.0f} GiB, compute capability {card['capability']})"
        for card in cuda["devices"]
    )
    built = f"CUDA {cuda['torch_cuda']}" if cuda["torch_cuda"] else "the CPU"
    extras = (f"{name} {number or 'not installed'}" for name, number in found["extras"].items())
    uses = found["uses"]
    return [
        f"gsopt     {found['gsopt'] or 'not installed'}, Python {found['python']}, {found['system']}",
        f"cpu       {found['cpu']}, {found['threads']} threads",
        f"torch     {found['torch']}, built for {built}",
        f"CUDA      {cards or cuda['trouble']}",
        f"nvcc      {cuda['nvcc'] or 'none (gsplat needs it where its kernels are not built yet)'}",
        f"gsplat    {gsplat['version'] or 'not installed'} (supported: {gsplat['supported']})",
        f"compiler  {compiler['command'] or compiler['trouble']}",
        f"kernel    {kernel['trouble'] or kernel['variant'] + ', sources ' + kernel['sources']}",
        f"extras    {', '.join(extras)}",
        f"uses      {uses['name']} ({uses['reason']})",
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compiler() -> dict[str, str | None]:
    """The C compiler that would build the CPU kernel."""
    try:
        return {"command": " ".join(build.find_compiler()), "trouble": None}
    except build.NoCompiler as error:
        return {"command": None, "trouble": str(error)}


def _kernel() -> dict[str, Any]:
    """The variant of the CPU kernel that runs here, and all that would."""
    nothing = {"variant": None, "variants": [], "forced": os.environ.get("GSOPT_ISA")}
    try:
        variant = native.library().gsopt_isa().decode()
        known = native.available_isas()
    except InputError as error:
        return nothing | {"sources": build.source_hash(), "trouble": str(error)}
    return nothing | {
        "variant": variant,
        "variants": known,
        "sources": build.source_hash(),
        "trouble": None,
    }
