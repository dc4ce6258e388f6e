"""The machine: what it is, and how fast it is at this moment.

A shared machine drifts by tens of percent within minutes, so its speed is measured again and again between
the steps that are timed, by work that every machine knows: a matrix product, a copy, multiply-adds.
"""

import datetime
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gsopt import native
from gsopt.device import cpu_count, describe, synchronize
from gsopt.native import build
from gsopt.runtime import torch_threads

MATMUL_SIDE = 4096  # float32 matrices of so many rows and columns
COPY_BYTES = 256 << 20
PEAK_SECONDS = 0.05
CPU_INFO = Path("/proc/cpuinfo")  # on Linux


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What a measurement depends on: processor, instruction set, threads, versions, date (UTC)."""
    on_cpu = device.type == "cpu"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": describe(device, threads),
        "cpu": cpu_model(),
        "cores": cpu_count(),
        "threads": threads,
        "isa": native.library().gsopt_isa().decode() if on_cpu else None,
        "kernel": build.source_hash() if on_cpu else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gsopt": _version(),
    }


def cpu_model() -> str:
    """The processor's name for itself."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version() -> str:
    try:
        return importlib.metadata.version("gsopt")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Speed:
    """The machine at one moment."""

    matmul_seconds: float  # of a float32 product of MATMUL_SIDE x MATMUL_SIDE, all threads
    copy_bytes_per_second: float  # read and written, of COPY_BYTES, all threads
    fma_flops_per_second: float | None  # the peak of the kernel's variant on its threads; None on CUDA


class Probes:
    """Measures `Speed`. Holds 3 matrices and 2 copies (about 700 MiB) while it lives."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        shape, floats = (MATMUL_SIDE, MATMUL_SIDE), COPY_BYTES // 4
        generator = torch.Generator("cpu").manual_seed(0)
        first = torch.rand(shape, generator=generator, device="cpu").to(device)
        self.factors = (first, first.flip(0).contiguous())
        self.product = torch.empty(shape, device=device)
        self.source, self.target = (torch.zeros(floats, device=device) for _ in range(2))
        with torch_threads(threads):
            self._copy()

    def measure(self) -> Speed:
        """The speed now; takes about a second on two cores."""
        with torch_threads(self.threads):
            copy = statistics.median(self._seconds(self._copy) for _ in range(3))
            matmul = self._seconds(lambda: torch.mm(*self.factors, out=self.product))
        moved = 2 * self.source.nbytes
        peak = native.fma_peak(PEAK_SECONDS) if self.device.type == "cpu" else None
        return Speed(matmul, moved / copy, peak)

    def _copy(self) -> None:
        self.target.copy_(self.source)

    def _seconds(self, work: Callable[[], Any]) -> float:
        synchronize(self.device)
        begin = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - begin
