"""The panel of a run while it trains: what it is doing, and switches that ask `gsopt.by_hand` for changes."""

import math
import time
from typing import TYPE_CHECKING

from gsopt.by_hand import ByHand
from gsopt.viewer.box import Box

if TYPE_CHECKING:
    import viser

    from gsopt.progress import Progress
    from gsopt.trainer import Trainer

STATUS_SECONDS = 1.0  # between two lines of numbers
RATE_SECONDS = 0.4  # a slider must rest so long before its rate is asked for
DECADES = 2.0  # of a rate's factor, up and down


class Panel:
    """Everything in the panel of `server` that is about the training of `trainer`."""

    def __init__(self, server: "viser.ViserServer", trainer: "Trainer") -> None:
        self.server = server
        self.hand: ByHand = trainer.by_hand
        gui = server.gui
        self.status = gui.add_markdown("waiting for the first steps")
        self.pause = gui.add_button("Pause", hint="after the step that is being done")
        self.pause.on_click(lambda _: self._toggle())
        self.step = gui.add_button("One step", disabled=True)
        self.step.on_click(lambda _: self.hand.one_step())
        gui.add_button("Save", hint="a checkpoint and a PLY").on_click(lambda _: self.hand.save())
        names = [group["name"] for group in trainer.optimizer.param_groups]
        self._known = frozen_groups(trainer)
        self._told = 0.0  # when the status was last written
        self._resting: dict[str, tuple[float, float]] = {}  # group: factor to come, and since when
        with gui.add_folder("Freeze"):
            self.frozen = {name: gui.add_checkbox(name, self._known[name]) for name in names}
        with gui.add_folder("Learning rates", expand_by_default=False):
            gui.add_markdown("log10 of a factor on the scheduled rate: 0 is the schedule, -1 a tenth of it.")
            self.rates = {name: self._slider(name) for name in names}
        with gui.add_folder("Lock", expand_by_default=False):
            self.box = Box(server, trainer.model.xyz)
            self._button("Lock what is inside", lambda: self.hand.lock(self.box.region))
            self._button("Lock what is outside", lambda: self.hand.lock(f"outside:{self.box.region}"))
            self._button("Unlock all", self.hand.unlock)
        for name, checkbox in self.frozen.items():
            checkbox.on_update(self._freezer(name))

    def look(self, trainer: "Trainer", progress: "Progress") -> None:
        """Show how far the run is; ask for the rates whose sliders have come to rest."""
        now = time.perf_counter()
        for name, (factor, since) in list(self._resting.items()):
            if now - since >= RATE_SECONDS:
                del self._resting[name]
                self.hand.rate(name, factor)
        frozen = frozen_groups(trainer)
        if frozen != self._known:
            self._known = frozen
            self._show_frozen()
        paused = self.hand.paused
        if paused == self.step.disabled:
            self.step.disabled, self.pause.label = not paused, "Go on" if paused else "Pause"
            self._told = 0.0
        if now - self._told >= STATUS_SECONDS:
            self._told = now
            self.status.content = status_of(trainer, progress, paused)

    def told(self, text: str, *, failed: bool) -> None:
        """Say in every browser what has come of a request."""
        for client in self.server.get_clients().values():
            client.add_notification(
                "Not done" if failed else "Done",
                text,
                auto_close_seconds=10.0,
                color="red" if failed else None,
            )
        if failed:
            self._show_frozen()

    def _show_frozen(self) -> None:
        for name, checkbox in self.frozen.items():
            checkbox.value = self._known[name]

    def _toggle(self) -> None:
        (self.hand.go_on if self.hand.paused else self.hand.pause)()

    def _button(self, label: str, ask) -> None:
        self.server.gui.add_button(label).on_click(lambda _: ask())

    def _freezer(self, name: str):
        def changed(event: "viser.GuiEvent") -> None:
            if event.client is not None:  # a person, not `_show_frozen`
                self.hand.freeze(name, event.target.value)

        return changed

    def _slider(self, name: str) -> "viser.GuiSliderHandle":
        value = round(math.log10(self.hand.factors.get(name, 1.0)), 2)
        slider = self.server.gui.add_slider(
            f"{name} rate",
            min=-DECADES,
            max=DECADES,
            step=0.05,
            initial_value=min(DECADES, max(-DECADES, value)),
        )

        def changed(event: "viser.GuiEvent") -> None:
            self._resting[name] = (10**event.target.value, time.perf_counter())

        slider.on_update(changed)
        return slider


def frozen_groups(trainer: "Trainer") -> dict[str, bool]:
    """Which groups are frozen now."""
    return {group["name"]: bool(group["frozen"]) for group in trainer.optimizer.param_groups}


def status_of(trainer: "Trainer", progress: "Progress", paused: bool) -> str:
    """How far a run is, as Markdown."""
    lines = [
        f"**iteration {trainer.step:,}** of {trainer.config.iterations:,}{' (paused)' if paused else ''}"
    ]
    if progress.loss is not None:
        lines.append(f"loss {progress.loss:.4f}")
        lines.append(f"PSNR {progress.psnr:.2f} dB (training views)")
    lines.append(f"{trainer.model.num_gaussians:,} Gaussians")
    if trainer.model.locked is not None:
        lines.append(f"{int(trainer.model.locked.sum()):,} locked")
    return "  \n".join(lines)
