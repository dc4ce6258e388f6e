"""Memory for tensors that a training step makes anew each time: kept by the kernel's callers, not by malloc.

A fresh tensor of some megabytes comes from the operating system page by page, which costs more than to fill
it. Here a tensor that is asked for under a name gets the memory of an earlier one of that name, once nobody
holds that any more.
"""

import math
import sys
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_KEPT = 4  # blocks a name; more tensors at once than that are ordinary ones
_SPARE = 1.125  # room for a growing scene
_WASTE = 4  # a block this many times too large is given back
_ALIGNMENT = 64  # bytes: a cache line
_NUMPY = {torch.float32: np.float32, torch.int32: np.int32}
_FREE = 2  # references to a block that no tensor uses: the list's and getrefcount's own

_blocks: dict[str, list[np.ndarray]] = {}
_lock = threading.Lock()


def empty(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised CPU tensor, in memory that an earlier one of this name has left if there is such.

    The memory is the tensor's for as long as it, a view of it or the graph holds it.

    Args:
        name: of the purpose; tensors that are alive at the same time may share it.
        shape: of the tensor.
        dtype: float32 or int32.
    """
    # The tensor holds the array, and that the block, whose references say that it is in use. Made so, it is
    # no view: autograd would refuse to let users change a rendered picture in place.
    return torch.from_numpy(array(name, shape, _NUMPY[dtype]))


def array(name: str, shape: Sequence[int], dtype: type = np.float32) -> np.ndarray:
    """The same as an array of NumPy; tensors that are made of it by `torch.from_numpy` hold it."""
    count = math.prod(shape)
    with _lock:
        blocks = _blocks.setdefault(name, [])
        for index in range(len(blocks)):
            if sys.getrefcount(blocks[index]) == _FREE and count <= blocks[index].size <= _WASTE * count:
                return _slice(blocks[index], shape, dtype)
        # None fits: the free ones are of another size of scene or image.
        blocks[:] = [blocks[i] for i in range(len(blocks)) if sys.getrefcount(blocks[i]) > _FREE]
        if count == 0 or len(blocks) >= _KEPT:
            return np.empty(tuple(shape), dtype)
        blocks.append(_aligned(int(count * _SPARE)))
        return _slice(blocks[-1], shape, dtype)


def nbytes() -> int:
    """Memory kept, in use or not, in bytes."""
    with _lock:
        return sum(block.nbytes for blocks in _blocks.values() for block in blocks)


def clear() -> None:
    """Give back all memory; what tensors still hold goes with them."""
    with _lock:
        _blocks.clear()


def _aligned(count: int) -> np.ndarray:
    """`count` four-byte elements that begin on a cache line."""
    raw = np.empty(4 * count + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    # Through a buffer, so that slices of the block refer to it; those of a view refer to what that is of.
    return np.frombuffer(raw.data[first : first + 4 * count], np.float32)


def _slice(block: np.ndarray, shape: Sequence[int], dtype: type) -> np.ndarray:
    rows = block[: math.prod(shape)].reshape(shape)
    return rows if dtype == np.float32 else rows.view(dtype)
