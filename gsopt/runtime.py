"""What surrounds the training loop: clocks, threads, signals, the order of the views."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gsopt.device import synchronize


class Stopwatch:
    """Seconds by part of a run. Parts exclude each other: an inner part pauses the one around it.

    >>> with clock("train"):
    ...     with clock("evaluate"):     # not counted as "train"
    ...         ...
    """

    def __init__(
        self, device: torch.device | None = None, seconds: Mapping[str, float] | None = None
    ) -> None:
        """`device` is waited for at every change of part; `seconds` are those spent in earlier sessions."""
        self.seconds: dict[str, float] = dict(seconds or {})
        self.device = device or torch.device("cpu")
        self._part: str | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside to `part`."""
        outer = self._part
        self._turn_to(part)
        try:
            yield
        finally:
            self._turn_to(outer)

    def read(self) -> dict[str, float]:
        """Seconds of each part so far, and their "total"."""
        self._turn_to(self._part)
        return self.seconds | {"total": sum(self.seconds.values())}

    def _turn_to(self, part: str | None) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._part is not None:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now


class ViewOrder:
    """Endless random order of views, each once before any comes again (random without replacement)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.queue: list[int] = []  # of this pass, last is next

    def next(self) -> int:
        """Index of the next view."""
        if not self.queue:
            self.queue = torch.randperm(self.count, generator=self.generator, device="cpu").tolist()
        return self.queue.pop()

    @property
    def following(self) -> int | None:
        """Index that `next` will give; None where that is not drawn yet."""
        return self.queue[-1] if self.queue else None

    def before(self, views: int) -> Callable[[], None]:
        """A function that takes the next `views` back; call it before any more are asked for."""
        queue = list(self.queue)
        state = self.generator.get_state() if len(queue) < views else None

        def undo() -> None:
            self.queue = queue
            if state is not None:
                self.generator.set_state(state)

        return undo

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the order depends on."""
        return {"count": self.count, "queue": list(self.queue), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises ValueError where that was over another number of views."""
        if state["count"] != self.count:
            raise ValueError(f"the order was over {state['count']} views, there are {self.count} now")
        self.queue = list(state["queue"])
        self.generator.set_state(state["generator"])


class StopSignals:
    """Inside, Ctrl-C and SIGTERM ask for an end (`asked`) instead of making it; a second one makes it.

    Outside the main thread Python delivers no signals, so there `asked` stays None.

    Args:
        patient: a second signal changes nothing. torchrun hands on to its processes what they had already.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.asked: str | None = None  # name of the signal that came
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.asked is not None and not self.patient:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}, nothing saved since the first")
        self.asked = signal.Signals(number).name


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Plain torch operations run on `count` threads inside."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_kernel_threads(count: int, device: torch.device, backend: str) -> None:
    """Let the CPU rasterizer use `count` threads; nothing where it is not in use ("auto" on a CPU is)."""
    if device.type == "cpu" and backend == "auto":
        from gsopt.native import set_num_threads  # at call time: it may have to compile the kernel first

        set_num_threads(count)


def spread(items: Sequence, count: int) -> list:
    """`count` of the items, evenly over them; all where there are no more."""
    if count >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
