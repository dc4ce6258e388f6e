"""Files as tensors that take memory only while they are looked at."""

import ctypes
import mmap
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)  # None: this system cannot be told


def map_file(path: Path, size: int) -> Tensor:
    """The first `size` bytes of a file as uint8 [size]; writing to it changes the tensor alone.

    No file descriptor stays open (as one of `mmap.mmap` and `numpy.memmap` does): there are scenes of more
    photos than a process may have.

    Raises OSError where it cannot be mapped.
    """
    with path.open("rb"):  # torch's error has no errno
        pass
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise OSError(None, " ".join(str(error).split()), str(path)) from None


def let_go(tensor: Tensor) -> None:
    """Give the memory of a tensor in a mapped file back; the file is read again when it is looked at next."""
    if _DONTNEED is None:
        return
    start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
    if _libc().madvise(start, size, _DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise refused to give mapped memory back")


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return library
