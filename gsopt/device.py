"""Which device a run uses. The one place outside `render.cuda` that asks for CUDA."""

import contextlib
import os
from collections.abc import Iterator

import torch

from gsopt.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cpu", "cuda", or "auto" (CUDA where there is one, else the CPU).

    Raises InputError where CUDA is asked for and torch finds none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(
            "--device cuda: torch finds no CUDA device here; "
            "use --device cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def cpu_count() -> int:
    """Processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


def describe(device: torch.device, threads: int) -> str:
    """The device in words: "CPU, 2 threads" or the name of the graphics card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {threads} thread{'s' * (threads != 1)}"


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held so far, on the card for CUDA, else resident in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now; on a CPU it always counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextlib.contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Inside, if asked for, torch uses algorithms that give the same bits each time, where it has such.

    Where it has none it warns. All settings are as before afterwards, but for cuBLAS's: it reads
    `CUBLAS_WORKSPACE_CONFIG` once, when CUDA starts, so that is set here only where nobody else has.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn_before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def collective_backends() -> str:
    """What torch.distributed exchanges tensors by: gloo on the CPU, nccl between cards if there are any."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def use_card(device: torch.device, number: int) -> None:
    """Let "cuda" mean the card of this number from now on; nothing for another device."""
    if device.type == "cuda":
        torch.cuda.set_device(number)
