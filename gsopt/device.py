"""Which device a run uses, and what is done in another way on CUDA: memory, clocks, copies.

The one place beside `render.cuda` that names CUDA. Everything else says `.to(device)`.
"""

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gsopt.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda"]
_FUSED = ("cpu", "cuda")  # types of devices for which torch has fused optimizers


@dataclass(frozen=True)
class Choice:
    """A device, and in words why it is not the other one."""

    device: torch.device
    reason: str  # "not CUDA: torch finds no CUDA device here"


def choose_device(name: str = "auto", backend: str = "auto") -> Choice:
    """The device called `name`: "cpu", "cuda", or "auto" (CUDA where it can be used, else the CPU).

    CUDA can be used where torch sees a device and gsplat can be imported; the "reference" backend needs no
    gsplat.

    Raises InputError where CUDA is asked for and cannot be used.
    """
    if name == "cpu":
        return Choice(torch.device("cpu"), "not CUDA: --device cpu")
    trouble = why_no_cuda(needs_gsplat=backend == "auto")
    if not trouble:
        reason = "--device cuda" if name == "cuda" else "--device auto takes CUDA where it can be used"
        return Choice(torch.device("cuda"), f"not the CPU: {reason}")
    if name == "cuda":
        raise InputError(f"--device cuda: {trouble}; use --device cpu")
    return Choice(torch.device("cpu"), f"not CUDA: {trouble}")


def pick_device(name: str = "auto", backend: str = "auto") -> torch.device:
    """The device of :func:`choose_device`."""
    return choose_device(name, backend).device


def why_no_cuda(needs_gsplat: bool = True) -> str:
    """Why CUDA cannot be used here, with what to do; "" where it can."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return f"torch finds no CUDA device here{'' if built else '; it is built without CUDA'}"
    return why_no_gsplat() if needs_gsplat else ""


def why_no_gsplat() -> str:
    """Why gsplat cannot be imported, with what to do; "" where it can. Only on request: it takes a second."""
    try:
        importlib.import_module("gsplat")
    except ImportError as error:
        if getattr(error, "name", None) == "gsplat":
            return 'gsplat is not installed: pip install "gsopt[cuda]"'
        return f"gsplat cannot be imported ({error})"
    return ""


def has_fused_optimizers(device: torch.device) -> bool:
    """Whether torch's fused optimizers run on it: one pass over a parameter and its moments."""
    return device.type in _FUSED


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

    if sys.platform == "linux":  # getrusage would begin with what the parent of this process held
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            found = [line for line in status if line.startswith("VmHWM:")]
        if found:
            return int(found[0].split()[1]) * 1024
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


def moment(device: torch.device) -> Any:
    """Now, on the device's own clock: an event behind all that was asked of it so far, on CUDA.

    Nothing waits. Two of them make :func:`seconds_between`, after `synchronize`.
    """
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begin: Any, end: Any) -> float:
    """Seconds from one :func:`moment` of a device to another; on CUDA both have to be over."""
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3


class Uploader:
    """Copies tensors from the CPU to a device while that computes something else; does nothing on the CPU.

    On CUDA they should be :func:`pinned`: only then does a copy run beside kernels, on a stream of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun: tuple[Tensor, Tensor] | None = None  # on the CPU, on the device

    def begin(self, tensor: Tensor) -> None:
        """Let the copy of a tensor begin, which `take` will soon be asked for. One at a time."""
        if self.device.type == "cpu":
            return
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            self._begun = tensor, tensor.to(self.device, non_blocking=True)

    def take(self, tensor: Tensor) -> Tensor:
        """The copy that has begun of this very tensor, or one made now. The device waits for it, not we."""
        if self.device.type == "cpu":
            return tensor
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not tensor:
            return tensor.to(self.device, non_blocking=True)
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            begun[1].record_stream(current)  # its memory is not given to others before it has been used
        return begun[1]


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory that a CUDA device reads by itself; as it is for other devices."""
    if device.type != "cuda" or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


def cuda_report() -> dict[str, Any]:
    """What there is of CUDA: torch's version of it, the devices, and why it cannot be used."""
    found = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    properties = [torch.cuda.get_device_properties(index) for index in found]
    return {
        "torch_cuda": torch.version.cuda,
        "devices": [
            {
                "name": device.name,
                "memory_bytes": device.total_memory,
                "capability": f"{device.major}.{device.minor}",
            }
            for device in properties
        ],
        "trouble": why_no_cuda() or None,
    }


def collective_backends() -> str:
    """What torch.distributed exchanges tensors by: gloo on the CPU, nccl between cards if there are any."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def use_card(device: torch.device, number: int) -> None:
    """Let "cuda" mean the card of this number from now on; nothing for another device."""
    if device.type == "cuda":
        torch.cuda.set_device(number)
