"""What the bits of a run depend on beside its settings: versions of libraries, the processor."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

LIBRARIES = ("gsopt", "torch", "numpy")


def versions() -> dict[str, str]:
    """Of Python and the libraries that compute, and the instruction set that torch uses, by name."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def other_versions(saved: Mapping[str, str]) -> str:
    """What of `saved`, from `versions` at another time, is different now, as text; "" if nothing is."""
    now = versions()
    return ", ".join(
        f"{name} is {now[name]} (the checkpoint is of {saved[name]})"
        for name in now
        if name in saved and now[name] != saved[name]
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # scripts/train.py in a clone that is not installed
        return "not installed"
