"""Memory that a training step takes beyond what a training holds anyway."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gsopt import native
from gsopt.bench.measure import Timer


class LiveTensors(TorchDispatchMode):
    """Inside, keeps account of the tensors that operations make; `peak` is the most bytes alive at once."""

    def __init__(self, known: Iterable[int]) -> None:
        """`known`: addresses of memory that does not count."""
        super().__init__()
        self.peak = 0
        self._known = frozenset(known)
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak = max(self.peak, self._count())
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address and address not in self._known:  # a view, or made before: the same entry again
            self._alive[address] = (StorageWeakRef(storage), storage.nbytes())

    def _count(self) -> int:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(nbytes for _, nbytes in self._alive.values())


def step_bytes(timer: Timer) -> int:
    """Bytes of one step beyond parameters, gradients, moments and photos: for a warmed-up trainer on a CPU.

    The kernel's buffers as they are after the step, what is kept from step to step (`DirectView.kept`), and
    the most that was alive at once of other tensors, less the gradients. Not by the process's size: what the
    allocator keeps for later is not in it.
    """
    trainer = timer.trainer
    known = [*trainer.model.parameters(), *(view.image for view in trainer.scene.train)]
    known += [value for state in trainer.optimizer.state.values() for value in state.values()]
    addresses = [tensor.untyped_storage().data_ptr() for tensor in known if isinstance(tensor, Tensor)]
    kept = trainer.direct.kept if trainer.direct else {}
    with LiveTensors([*addresses, *kept]) as tensors:
        timer.warm_up(1)
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"] if p.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    return native.Frame.idle_bytes() + max(0, sum(kept.values()) + tensors.peak - gradients)
