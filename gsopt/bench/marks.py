"""Stages of a step where no kernel of ours counts them: on CUDA, from events on the device's own clock.

A mark ends a stage that began at the mark before it. Marks wait for nothing, so a step with them does what it
would without.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsopt.device import moment, seconds_between, synchronize
from gsopt.trainer import Trainer

STAGES = ("photo", "render", "loss", "backward", "statistics", "optimizer", "refine")


class Marks:
    """Marks in the steps of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._begun: Any = None
        self._marks: list[tuple[str, Any]] = []

    def begin(self) -> None:
        """A step begins: all before is forgotten."""
        self._begun, self._marks = moment(self.device), []

    def mark(self, stage: str) -> None:
        """The stage of this name ends here."""
        self._marks.append((stage, moment(self.device)))

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order of `STAGES`; of stages that came several times, their sum."""
        synchronize(self.device)
        found = dict.fromkeys(STAGES, 0.0)
        before = self._begun
        for stage, now in self._marks:
            found[stage] += seconds_between(before, now)
            before = now
        return found


class TrainerMarks(Marks):
    """Marks in the steps of a trainer. Use it as a context.

    "loss" ends where its gradient by the picture is known; "backward" is the rest of the backward pass and
    the look at the gradients; "optimizer" begins with averaging and locks.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer.device)
        self.trainer = trainer
        self._wrapped: list[tuple[Any, str]] = []

    def __enter__(self) -> "TrainerMarks":
        trainer = self.trainer
        self._wrap(trainer.feed, "take", after=lambda _: self.mark("photo"))
        self._wrap(trainer.joint, "render", after=self._rendered)
        self._wrap(
            trainer.strategy,
            "observe",
            before=lambda: self.mark("backward"),
            after=lambda _: self.mark("statistics"),
        )
        self._wrap(
            trainer.strategy,
            "refine",
            before=lambda: self.mark("optimizer"),
            after=lambda _: self.mark("refine"),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name in self._wrapped:
            delattr(owner, name)
        self._wrapped = []

    def _rendered(self, result: tuple[Tensor, Any]) -> None:
        self.mark("render")
        if result[0].requires_grad:
            result[0].register_hook(lambda _: self.mark("loss"))

    def _wrap(
        self,
        owner: Any,
        name: str,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[Any], None],
    ) -> None:
        """Put a function around a method of one object."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def marked(*args: Any, **kwargs: Any) -> Any:
            before()
            result = method(*args, **kwargs)
            after(result)
            return result

        setattr(owner, name, marked)
        self._wrapped.append((owner, name))
