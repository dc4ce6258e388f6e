"""Someone who acts by hand on a run, at iterations that a test says; and how two runs are compared."""

from collections.abc import Callable

import torch
from torch import Tensor

from gsopt.by_hand import ByHand
from gsopt.trainer import Trainer


class Acting:
    """A watcher that asks for `plan[k]` so that it is done after iteration k, and keeps what it is told."""

    def __init__(self, plan: dict[int, Callable[[ByHand], None]] | None = None) -> None:
        self.plan = plan or {}
        self.done: list[str] = []
        self.failed: list[str] = []
        self.looks = 0

    def look(self, trainer, progress) -> None:
        self.looks += 1
        # What is asked for now is done after the next step; a run that is paused does it at once.
        act = self.plan.pop(trainer.step if trainer.by_hand.paused else trainer.step + 1, None)
        if act is not None:
            act(trainer.by_hand)

    def told(self, text: str, *, failed: bool) -> None:
        (self.failed if failed else self.done).append(text)


def watched(trainer: Trainer, watcher: Acting) -> Trainer:
    """The trainer, with the watcher."""
    trainer.by_hand.watcher = watcher
    return trainer


def bits(trainer: Trainer) -> dict[str, Tensor]:
    """Every parameter, and every moment, by name."""
    found = dict(trainer.model.state_dict())
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state.get(parameter, {})
        found |= {f"{name} {key}": torch.as_tensor(value) for key, value in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
