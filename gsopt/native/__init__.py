"""The native CPU kernel: finding, building and calling it. Knows pointers and sizes, nothing of autograd."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gsopt.errors import InputError
from gsopt.native import build

ABI = 6
_TOO_MANY = 2  # GSOPT_TOO_MANY
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


class Camera(ctypes.Structure):
    """`gsopt_camera` of src/gsopt.h."""

    _fields_ = (
        ("rotation", _FLOAT * 9),
        ("translation", _FLOAT * 3),
        *((name, _FLOAT) for name in ("fx", "fy", "cx", "cy")),
        *((name, ctypes.c_int32) for name in ("width", "height")),
        *((name, _FLOAT) for name in ("near_plane", "far_plane", "radius_clip", "eps2d")),
        *((name, ctypes.c_int32) for name in ("antialiased", "raw")),
    )


class SplatRows(NamedTuple):
    """Where the kernel has put what its other functions read of the splats of one camera: addresses."""

    count: int  # type: ignore[assignment]  # N; nobody counts in these tuples
    radii: int  # int32 [N, 2]
    gradient: int | None  # by means2d, pixels. float32 [N, 2]
    absolute: int | None  # the same of absolute values
    to_ndc: tuple[float, float]  # factors on the gradient's x and y


class View(ctypes.Structure):
    """`gsopt_view` of src/gsopt.h."""

    _fields_ = (
        ("n", _LONG),
        *((name, ctypes.c_int32) for name in ("degree", "bands", "height", "width")),
        *((name, _POINTER) for name in ("means", "quats", "scales", "opacities", "dc", "rest", "background")),
        *((name, _POINTER) for name in ("target", "target8", "mask")),
        *((name, _POINTER) for name in ("radii", "means2d", "cov2d", "depths", "splat_opacities", "colors")),
        *((name, _POINTER) for name in ("image", "v_image", "v_means2d", "v_absolute", "v_cov2d")),
        *((name, _POINTER) for name in ("v_colors", "v_splat_opacities", "v_means", "v_quats", "v_scales")),
        *((name, _POINTER) for name in ("v_opacities", "v_dc", "v_rest")),
        ("weight", ctypes.c_double),
        ("loss", _POINTER),
        ("finite", ctypes.c_int32),
    )


class AdamTensor(ctypes.Structure):
    """`gsopt_adam_tensor` of src/gsopt.h."""

    _fields_ = (
        *(
            (name, _POINTER)
            for name in ("parameter", "gradient", "average", "square", "count", "steps", "visible")
        ),
        *((name, _LONG) for name in ("n", "rows")),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        *((name, ctypes.c_int32) for name in ("decoupled", "maximize", "uncorrected")),
    )


# Result and argument types of each function of src/gsopt.h, in its order.
_SIGNATURES = {
    "gsopt_abi": (_INT, []),
    "gsopt_isa": (ctypes.c_char_p, []),
    "gsopt_cpu_runs": (_INT, [ctypes.c_char_p]),
    "gsopt_set_threads": (None, [_INT]),
    "gsopt_get_threads": (_INT, []),
    "gsopt_stages": (_INT, []),
    "gsopt_stage_name": (ctypes.c_char_p, [_INT]),
    "gsopt_stage_seconds": (None, [_POINTER]),
    "gsopt_fma_peak": (_INT, [ctypes.c_double, ctypes.POINTER(ctypes.c_double)]),
    "gsopt_frame_new": (_POINTER, []),
    "gsopt_frame_free": (None, [_POINTER]),
    "gsopt_frame_bytes": (_LONG, [_POINTER]),
    "gsopt_frame_work": (None, [_POINTER, _POINTER]),
    "gsopt_project": (_INT, [_POINTER, ctypes.POINTER(Camera), _LONG, *[_POINTER] * 9]),
    "gsopt_project_backward": (_INT, [ctypes.POINTER(Camera), _LONG, *[_POINTER] * 14]),
    "gsopt_sh": (_INT, [ctypes.POINTER(Camera), _LONG, _INT, _INT, *[_POINTER] * 5]),
    "gsopt_sh_backward": (_INT, [ctypes.POINTER(Camera), _LONG, _INT, _INT, *[_POINTER] * 10]),
    "gsopt_set_colors": (_INT, [_POINTER, _INT, _POINTER]),
    "gsopt_rasterize": (_INT, [_POINTER, _INT, *[_POINTER] * 3]),
    "gsopt_rasterize_backward": (_INT, [_POINTER, _INT, *[_POINTER] * 8]),
    "gsopt_photometric": (_INT, [_POINTER, _INT, _INT, *[_POINTER] * 4, ctypes.c_double, *[_POINTER] * 2]),
    "gsopt_view_gradients": (_INT, [_POINTER, ctypes.POINTER(Camera), ctypes.POINTER(View)]),
    "gsopt_statistics": (_INT, [_LONG, _POINTER, _POINTER, _FLOAT, _FLOAT, _POINTER, _POINTER]),
    "gsopt_rows_below": (_LONG, [_LONG, _POINTER, _FLOAT, _POINTER, _POINTER]),
    "gsopt_perturb": (_INT, [_LONG, *[_POINTER] * 5, *[_FLOAT] * 3, _POINTER]),
    "gsopt_finite": (_INT, [_INT, _POINTER, _POINTER]),
    "gsopt_adam": (_INT, [_INT, ctypes.POINTER(AdamTensor)]),
}


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(
            f"{path}: not a library that can be loaded ({error}); delete it, it is built anew"
        ) from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.gsopt_abi() != ABI:
        raise RuntimeError(f"{path}: expected kernel interface {ABI}, found {library.gsopt_abi()}")
    return library


def _locate(isa: str) -> Path:
    """The library of one variant: beside this file, in the user's cache, or compiled into that now."""
    name, cache_folder = build.library_name(isa), build.cache_folder()
    for folder in (Path(__file__).parent, cache_folder):
        if (folder / name).is_file():
            return folder / name
    print(f"gsopt: compiling the CPU kernel ({isa}) into {cache_folder}, once", file=sys.stderr)
    try:
        return build.compile_kernel(cache_folder, isa)
    except (build.NoCompiler, build.CompilerFailed) as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(
            f"{cache_folder}: the CPU kernel cannot be built there ({error.strerror}); "
            "set GSOPT_CACHE to a folder that can be written"
        ) from None


@cache
def library() -> ctypes.CDLL:
    """The kernel: that of $GSOPT_ISA, or of the best instruction set that this processor runs.

    Raises:
        InputError: the instruction set is unknown here or this processor lacks it; or the kernel is not built
            and cannot be.
    """
    known = list(build.variants())
    asked = os.environ.get("GSOPT_ISA")
    if asked and asked not in known:
        raise InputError(f"GSOPT_ISA: expected one of {', '.join(known)}, found {asked!r}")
    probe = _open(_locate("baseline"))
    runs = [name for name in known if probe.gsopt_cpu_runs(name.encode())]
    if asked and asked not in runs:
        raise InputError(f"GSOPT_ISA: this processor runs {', '.join(runs)}, found {asked!r}")
    chosen = asked or runs[0]
    return probe if chosen == "baseline" else _open(_locate(chosen))


def available_isas() -> list[str]:
    """Instruction sets of this architecture that this processor runs, best first."""
    probe = _open(_locate("baseline"))
    return [name for name in build.variants() if probe.gsopt_cpu_runs(name.encode())]


def set_num_threads(threads: int) -> None:
    """Number of threads that the kernel uses. Results do not depend on it."""
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    library().gsopt_set_threads(threads)


def get_num_threads() -> int:
    return library().gsopt_get_threads()


def stage_seconds() -> dict[str, float]:
    """Seconds spent in each stage of the kernel since it was loaded, by name, in the order of a step."""
    kernel = library()
    seconds = (ctypes.c_double * kernel.gsopt_stages())()
    kernel.gsopt_stage_seconds(seconds)
    return {kernel.gsopt_stage_name(i).decode(): value for i, value in enumerate(seconds)}


def fma_peak(seconds: float = 0.1) -> float:
    """The most floating-point operations a second that the kernel's threads could do; a multiply-add is two.

    Measured anew at each call, for about `seconds` (above 0), with the instructions of the variant in use.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0, found {seconds}")
    found = ctypes.c_double()
    check(library().gsopt_fma_peak(seconds, found))
    return found.value


def pointer(tensor: Tensor | None, index: int = 0) -> int | None:
    """Address of `tensor[index]`; it must be in the CPU's memory, contiguous, and outlive the call."""
    if tensor is None:
        return None
    if not (tensor.is_cpu and tensor.is_contiguous()):
        raise ValueError(f"the kernel needs contiguous tensors on the CPU, found one on {tensor.device}")
    address = tensor.data_ptr()
    return address + index * tensor.stride(0) * tensor.itemsize if index else address


def is_plain(tensor: Tensor) -> bool:
    """Whether the kernel can read it: contiguous float32 in the memory of the CPU."""
    return (
        tensor.is_cpu
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
    )


def check(status: int) -> None:
    """Turn what a kernel function returns into an exception.

    Raises:
        MemoryError: the kernel found no memory for its buffers, or there is more than it can count.
    """
    if status == _TOO_MANY:
        raise MemoryError(
            "more than 4 billion pairs of Gaussian and tile: the Gaussians are too large for the image"
        )
    if status:
        raise MemoryError("the CPU kernel found no memory for its buffers")


class Frame:
    """Buffers of one rendering (`gsopt_frame`). A few that were dropped are kept for the next to use."""

    MAX_IDLE = 4
    _idle: list[int] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self) -> None:
        self.handle = None
        try:
            self.handle = self._idle.pop()
        except IndexError:
            self.handle = library().gsopt_frame_new()
        if not self.handle:
            raise MemoryError("the CPU kernel found no memory for a frame")

    def __del__(self) -> None:
        if not self.handle:
            return
        if len(self._idle) < self.MAX_IDLE:
            self._idle.append(self.handle)
        else:
            library().gsopt_frame_free(self.handle)

    @classmethod
    def free_idle(cls) -> None:
        """Give back the memory of the frames that are kept for the next to use."""
        while cls._idle:
            library().gsopt_frame_free(cls._idle.pop())

    @classmethod
    def idle_bytes(cls) -> int:
        """Size of the buffers of the frames that are kept for the next to use."""
        return sum(library().gsopt_frame_bytes(handle) for handle in cls._idle)

    @classmethod
    def idle_work(cls) -> dict[str, int]:
        """`work` of the idle frame that was dropped last after a backward pass; empty where there is none."""
        each = (_work(handle) for handle in reversed(cls._idle))
        return next((work for work in each if work["backward_blocks"]), {})

    @property
    def work(self) -> dict[str, int]:
        """Size of the last rendering: what counts for its time."""
        return _work(self.handle)

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes."""
        return library().gsopt_frame_bytes(self.handle)


def _work(handle: int | None) -> dict[str, int]:
    counts = (_LONG * 4)()
    library().gsopt_frame_work(handle, counts)
    return dict(zip(("visible", "pairs", "forward_blocks", "backward_blocks"), counts, strict=True))
