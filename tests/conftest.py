"""Fixtures that every test file may use."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Tests work on tiny tensors, for which a second thread of torch costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real scenes and splat files beside the repository; what needs it is skipped without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "scenes").is_dir():
        pytest.skip(f"no folder of real scenes at {folder}")
    return folder


@pytest.fixture(scope="session")
def builtin_scene() -> Path:
    """The scene that ships with the repository."""
    return ROOT / "data" / "scene"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Photos of tests do not stay in the user's cache; a kernel that was compiled into that is used."""
    from gsopt.native import build

    folder, users = tmp_path_factory.mktemp("cache"), build.cache_folder()
    for kernel in users.glob("libgsopt-*.so"):
        (folder / kernel.name).symlink_to(kernel)
    before = os.environ.get("GSOPT_CACHE")
    os.environ["GSOPT_CACHE"] = str(folder)
    yield
    os.environ.pop("GSOPT_CACHE")
    if before is not None:
        os.environ["GSOPT_CACHE"] = before


@pytest.fixture
def small_probes(monkeypatch):
    """The machine is measured with next to nothing, and kernel threads are as they were afterwards."""
    from gsopt import native
    from gsopt.bench import machine

    monkeypatch.setattr(machine, "MATMUL_SIDE", 64)
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.001)
    threads = native.get_num_threads()
    yield
    native.set_num_threads(threads)
