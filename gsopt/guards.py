"""What keeps a training from being spoilt: a look at every loss and gradient before anything is changed.

    with intact(trainer):                      # whatever goes wrong inside, all is as it was before
        loss.backward()
        check_finite(...)                      # NonFinite names the photo, the attributes and the rows

The look at all gradients is one pass of the CPU kernel: 0.07 ms for 30,000 Gaussians. Which rows are to
blame is found out only where something is. docs/guards.md
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsopt.errors import InputError
from gsopt.locks import locked_rows
from gsopt.model import GaussianModel
from gsopt.native import is_plain, library

if TYPE_CHECKING:
    from gsopt.trainer import Trainer

NAMED = 5  # rows named in a message


class NonFinite(InputError):
    """A loss or a gradient is NaN or infinite. Raised before anything has changed."""


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element of these tensors is finite.

    On the CPU one pass of the native kernel; :func:`all_finite_reference` is its slow twin.

    Args:
        tensors: floating point, of any shapes, on one device.
    """
    if not all(map(is_plain, tensors)):
        return all_finite_reference(tensors)
    count = len(tensors)
    arrays = (ctypes.c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
    lengths = (ctypes.c_int64 * count)(*(tensor.numel() for tensor in tensors))
    return bool(library().gsopt_finite(count, arrays, lengths))


def all_finite_reference(tensors: Sequence[Tensor]) -> bool:
    """:func:`all_finite` in plain PyTorch, for any floating dtype and device; waits for the device once.

    0 times a number is 0 only if that is finite, and a sum keeps what is not: no mask is made.
    """
    if not tensors:
        return True
    sums = [(tensor.detach() * 0).sum(dtype=torch.float32) for tensor in tensors]
    return bool((torch.stack(sums) == 0).all())


def bad_rows(tensor: Tensor) -> Tensor:
    """Rows, along the first dimension, that are not finite throughout. int64 [K], on the CPU"""
    finite = tensor.detach().isfinite()
    return torch.nonzero(~finite.reshape(len(finite), -1).all(dim=1)).flatten().cpu()


def name_rows(rows: Tensor, count: int) -> str:
    """Some rows of `count` in words: "rows 3, 17 (2 of 60)"."""
    named = ", ".join(map(str, rows[:NAMED].tolist())) + (", ..." if len(rows) > NAMED else "")
    return f"{'row' if len(rows) == 1 else 'rows'} {named} ({len(rows):,} of {count:,})"


@torch.no_grad()
def check_finite(
    where: str,
    loss: Tensor,
    optimizer: Optimizer,
    model: GaussianModel,
    projected: Tensor | None = None,
) -> None:
    """Look at a view's loss and at all gradients after its backward pass.

    Gradients of locked rows may be anything: they are not used. Groups without gradients are fine.

    Args:
        where: iteration and photo, for the message.
        loss: []
        optimizer: with named groups.
        model: whose locks count.
        projected: gradient by the projected centres, where statistics are to be made of it. [C, N, 2]

    Raises:
        NonFinite: the message names what is not finite, and its rows.
    """
    gradients = [
        (group["name"], parameter.grad)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if projected is not None:
        gradients.append(("means2d", projected))
    if all_finite([loss, *(gradient for _, gradient in gradients)]):
        return
    troubles = [] if loss.isfinite() else [f"the loss is {loss.item()}"]
    locked = locked_rows(model)
    if model.locked is not None:
        locked["means2d"] = torch.nonzero(model.locked).flatten()
    for name, gradient in gradients:
        gradient = gradient.transpose(0, 1) if name == "means2d" else gradient
        rows = bad_rows(gradient)
        rows = rows[~torch.isin(rows, locked[name].cpu())] if name in locked else rows
        if len(rows):
            troubles.append(f"the gradient of {name} is not finite in {name_rows(rows, len(gradient))}")
    if troubles:
        raise NonFinite(f"{where}: {'; '.join(troubles)}")


def diverged(parameters: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The first parameter that has values of no use, by name, and its rows in words; None where all is well.

    Scalings are logarithms: they are of no use where e^x is infinite.
    """
    for name, parameter in parameters:
        parameter = parameter.detach()
        used = parameter.exp() if name.endswith("scaling") else parameter  # e^x overflows before x does
        if not all_finite([used]):
            return name, name_rows(bad_rows(used), len(used))
    return None


class intact:
    """Around what a step does before it changes the model: if that fails, the trainer is as it was before.

    Step counter, random choices, the strategy's statistics and the gradients are put back; the model and its
    optimizer's state have not changed yet.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        trainer = self.trainer
        views, draws = trainer.views_per_step, trainer.config.background == "random"
        self.step = trainer.step
        self.order = trainer.order.before(views)
        self.generator = trainer.generator.get_state() if draws else None
        self.statistics = None
        if views > 1:  # a view is observed once it is known to be good: one needs no copy
            self.statistics = {key: value.clone() for key, value in trainer.strategy.state_dict().items()}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        trainer = self.trainer
        trainer.step = self.step
        self.order()
        if self.generator is not None:
            trainer.generator.set_state(self.generator)
        if self.statistics is not None:
            trainer.strategy.load_state_dict(self.statistics)
        trainer.optimizer.zero_grad(set_to_none=True)
        if hasattr(trainer.optimizer, "forget_visible"):
            trainer.optimizer.forget_visible()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out: Python's, the kernel's, or torch's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
