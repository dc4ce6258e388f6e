"""What someone does to a run while it trains: asked for from any thread, done between two steps.

    hand = trainer.by_hand
    hand.freeze("xyz", True)  # from the thread of a viewer; the next step leaves xyz alone

The thread that trains does everything itself, between steps (`between_steps`), so a run in which nothing is
asked for has the same bits with a viewer as without. What changes the training is kept: in checkpoints, in
the run's by_hand.json, and in its metrics.json. docs/viewer.md says what a resume makes of it.
"""

import math
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gsopt.errors import InputError
from gsopt.groups import GroupSpec, freeze, unfreeze
from gsopt.locks import check_something_moves, lock, unlock

if TYPE_CHECKING:
    from gsopt.progress import Progress
    from gsopt.recorder import Recorder
    from gsopt.runtime import StopSignals
    from gsopt.trainer import Trainer

LARGEST_FACTOR = 1000.0  # on a learning rate; the smallest is 1 over it
_NAP = 0.1  # seconds after which a paused run looks whether it is to end


class Watcher(Protocol):
    """Who looks on, such as a viewer. Both are called on the thread that trains."""

    def look(self, trainer: "Trainer", progress: "Progress") -> None:
        """Between two steps, and while the run is paused."""

    def told(self, text: str, *, failed: bool) -> None:
        """Something that was asked for is done, or could not be."""


class ByHand:
    """What is asked of one run, and what has come of it.

    `frozen` has the groups whose freezing is decided by hand, `factors` the factors on learning rates that
    are not 1, `locked` whether Gaussians were locked or unlocked by hand, `history` what was done: entries
    {"iteration", "what"}, done after so many iterations.
    """

    def __init__(self) -> None:
        self.frozen: dict[str, bool] = {}
        self.factors: dict[str, float] = {}
        self.locked = False
        self.history: list[dict[str, Any]] = []
        self.paused = False
        self.watcher: Watcher | None = None
        self.wake = threading.Event()  # set it to be looked at soon, also while the run is paused
        self._asked: queue.SimpleQueue[Callable[[Trainer, Recorder], str | None]] = queue.SimpleQueue()
        self._steps = 0  # to do although it is paused

    # ----------------------------------------------------------------------------- asking, from any thread

    def pause(self) -> None:
        """Stop before the next step, until `go_on`."""
        self._ask(partial(self._set_paused, True))

    def go_on(self) -> None:
        """End a pause."""
        self._ask(partial(self._set_paused, False))

    def one_step(self) -> None:
        """One step of a run that is paused."""
        self._ask(self._one_step)

    def save(self) -> None:
        """A checkpoint and a PLY of now."""
        self._ask(self._save)

    def freeze(self, name: str, frozen: bool) -> None:
        """Freeze or thaw a group from the next step on, to the end of the run, in place of its windows."""
        self._ask(partial(self._freeze, name, frozen))

    def rate(self, name: str, factor: float) -> None:
        """Multiply the learning rate of a group, as its schedule has it, by a factor from now on."""
        self._ask(partial(self._rate, name, factor))

    def lock(self, region: str) -> None:
        """Lock the Gaussians that are in a region now, in the units of the model; see `gsopt.regions`."""
        self._ask(partial(self._lock, region))

    def unlock(self) -> None:
        """Unlock all Gaussians."""
        self._ask(self._unlock)

    def _ask(self, action: "Callable[[Trainer, Recorder], str | None]") -> None:
        self._asked.put(action)
        self.wake.set()

    # ------------------------------------------------------------------------ doing, on the training thread

    def between_steps(
        self, trainer: "Trainer", recorder: "Recorder", progress: "Progress", stop: "StopSignals"
    ) -> None:
        """Do what was asked for; while the run is paused, wait for more, until `stop` is asked for, too."""
        if self.watcher is None and self._asked.empty() and not self.paused:
            return
        self._do_all(trainer, recorder, progress)
        if not self.paused or trainer.step >= trainer.config.iterations:
            return
        with trainer.clock("paused"):
            while self.paused and not self._steps and not stop.asked:
                self.wake.wait(_NAP)
                self.wake.clear()
                self._do_all(trainer, recorder, progress)
        self._steps = max(0, self._steps - 1)

    def _do_all(self, trainer: "Trainer", recorder: "Recorder", progress: "Progress") -> None:
        while not self._asked.empty():
            failed = False
            try:
                text = self._asked.get()(trainer, recorder)
            except InputError as error:  # of a request; the run goes on as it was
                text, failed = str(error), True
            if text is not None:
                progress.say(f"by hand   {text}")
                if self.watcher is not None:
                    self.watcher.told(text, failed=failed)
        if self.watcher is not None:
            self.watcher.look(trainer, progress)

    def _set_paused(self, paused: bool, trainer: "Trainer", _: "Recorder") -> str | None:
        if paused == self.paused:
            return None
        self.paused, self._steps = paused, 0
        return f"{'paused' if paused else 'going on'} after iteration {trainer.step:,}"

    def _one_step(self, trainer: "Trainer", _: "Recorder") -> None:
        if self.paused:
            self._steps += 1

    def _save(self, trainer: "Trainer", recorder: "Recorder") -> str:
        recorder.save()
        return f"checkpoint and PLY of iteration {trainer.step:,} saved in {trainer.run.path}"

    def _freeze(self, name: str, frozen: bool, trainer: "Trainer", recorder: "Recorder") -> str:
        moving = {group["name"] for group in trainer.optimizer.param_groups if not group["frozen"]}
        if frozen and moving <= {name}:
            raise InputError(f"freeze {name}: nothing else is trained; thaw another first, or pause")
        (freeze if frozen else unfreeze)(trainer.optimizer, name)
        trainer.specs = {**trainer.specs, name: _decided(trainer.specs[name], frozen)}
        self.frozen[name] = frozen
        return self._note(f"{name} {'frozen' if frozen else 'thawed'}", trainer, recorder)

    def _rate(self, name: str, factor: float, trainer: "Trainer", recorder: "Recorder") -> str | None:
        if name not in {group["name"] for group in trainer.optimizer.param_groups}:
            raise InputError(f"rate of {name}: there is no such group")
        if not (math.isfinite(factor) and 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR):
            raise InputError(
                f"rate of {name}: expected a factor of {1 / LARGEST_FACTOR:g} to {LARGEST_FACTOR:g}, "
                f"found {factor:g}"
            )
        if factor == self.factors.get(name, 1.0):
            return None
        trainer.scheduler.scale(name, factor)
        self.factors[name] = factor
        if factor == 1.0:
            del self.factors[name]
        return self._note(f"rate of {name} x{factor:g}", trainer, recorder)

    def _lock(self, region: str, trainer: "Trainer", recorder: "Recorder") -> str:
        before = trainer.model.locks
        lock(trainer.model, region)
        try:
            still = [name for name, spec in trainer.specs.items() if spec.frozen or not spec.optimize]
            check_something_moves(trainer.model, still)
        except InputError:
            trainer.model.locks = before
            raise
        return self._locks_changed(f"locked {region}", trainer, recorder)

    def _unlock(self, trainer: "Trainer", recorder: "Recorder") -> str | None:
        if trainer.model.locks is None:
            return None
        unlock(trainer.model)
        return self._locks_changed("unlocked all", trainer, recorder)

    def _locks_changed(self, what: str, trainer: "Trainer", recorder: "Recorder") -> str:
        self.locked = True
        count = 0 if trainer.model.locked is None else int(trainer.model.locked.sum())
        trainer.monitor.scalars({"gaussians/locked": count}, trainer.step)
        return self._note(f"{what}: {count:,} Gaussians are locked", trainer, recorder)

    def _note(self, what: str, trainer: "Trainer", recorder: "Recorder") -> str:
        self.history = [*self.history, {"iteration": trainer.step, "what": what}]
        recorder.note_by_hand()
        return f"{what}, after iteration {trainer.step:,}"

    # ------------------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the run depends on; locks are in the model."""
        return {
            "frozen": dict(self.frozen),
            "factors": dict(self.factors),
            "locked": self.locked,
            "history": [dict(entry) for entry in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any], specs: Mapping[str, GroupSpec]) -> None:
        """Take over what was done before a checkpoint, as far as it is about groups in `specs`."""
        there = {name for name, spec in specs.items() if spec.optimize}
        self.frozen = {name: frozen for name, frozen in state["frozen"].items() if name in there}
        self.factors = {name: factor for name, factor in state["factors"].items() if name in there}
        self.locked, self.history = state["locked"], list(state["history"])

    def forget_locks(self) -> bool:
        """Whether there were any changes of locks by hand; from now on there are none."""
        there, self.locked = self.locked, False
        return there

    def decided(self, specs: Mapping[str, GroupSpec]) -> dict[str, GroupSpec]:
        """Specs of groups with what was decided by hand about their freezing."""
        return {**specs, **{name: _decided(specs[name], frozen) for name, frozen in self.frozen.items()}}


def _decided(spec: GroupSpec, frozen: bool) -> GroupSpec:
    return replace(spec, frozen=frozen, freeze=())
