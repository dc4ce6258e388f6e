"""What the terminal shows of a run while it trains: one line, with the time that is left."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gsopt.errors import InputError
from gsopt.eta import Eta
from gsopt.log_json import tell

if TYPE_CHECKING:
    from gsopt.trainer import Trainer

LOSSES_EVERY = 10  # steps between reports: events of losses, learning rates, counts, and the progress line
PSNR_MEMORY = 0.9  # weight of the past in the running PSNR, one training view every LOSSES_EVERY steps
ETA_EVERY = 0.5  # seconds between estimates of the time left


@dataclass(kw_only=True)
class ProgressOptions:
    """How much a session tells: a part of `TrainConfig`."""

    quiet: bool = False
    """Print warnings and errors and, at the end, one line."""
    log_json: bool = False
    """Print one JSON object a line, and on stdout nothing else: for scripts, see docs/monitoring.md."""
    log_every: int = 100
    """Iterations between the "progress" objects of --log-json; a multiple of 10."""

    @property
    def talks(self) -> bool:
        """Whether there is text for a person on stdout."""
        return not (self.quiet or self.log_json)

    def check_progress(self) -> None:
        """Raise InputError, naming the flag, for values that cannot be used."""
        if self.quiet and self.log_json:
            raise InputError("--quiet: one line of text is no JSON object; leave --quiet or --log-json away")
        if self.log_every < 1 or self.log_every % LOSSES_EVERY:
            raise InputError(f"--log-every {self.log_every}: expected a multiple of {LOSSES_EVERY}")


class Progress:
    """The progress line: iterations, time left, loss, running PSNR, Gaussians, iterations per second.

    Where stderr is not a terminal it is a line of text after every tenth of the run instead.
    """

    def __init__(
        self,
        first: int,
        last: int,
        quiet: bool = False,
        *,
        eta: Eta | None = None,
        log_every: int = 0,
    ) -> None:
        """`log_every`: iterations between objects on stdout, which there are instead of text; 0 for text."""
        from tqdm import tqdm

        self.quiet, self.log_every = quiet or log_every > 0, log_every
        self.bar = tqdm(
            total=last,
            initial=first,
            unit="it",
            disable=self.quiet or None,  # None: where it is not a terminal
            dynamic_ncols=True,
            smoothing=0.05,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self.done, self.last, self.eta = first, last, eta
        self.loss: float | None = None
        self.psnr: float | None = None
        self._tenths = 10 * first // last  # of the run, already told
        self._left: list[str] = []  # the time left in words
        self._again = 0.0  # when it is worked out again

    @classmethod
    def of(cls, trainer: "Trainer") -> "Progress":
        """That of a run which is about to train."""
        config = trainer.config
        log_every = config.log_every if config.log_json else 0
        eta = None if config.quiet else Eta.of(trainer)
        return cls(trainer.step, config.iterations, config.quiet, eta=eta, log_every=log_every)

    def advance(self) -> None:
        """One more iteration is done."""
        self.done += 1
        self.bar.update()

    def show(self, loss: float, psnr: float, gaussians: int, milliseconds: float, seconds: float) -> None:
        """New values for the line, every LOSSES_EVERY iterations.

        Args:
            loss: of this iteration.
            psnr: of a training view, dB; what is shown is a running mean.
            gaussians: how many there are.
            milliseconds: an iteration has taken since the last report.
            seconds: the run has taken.
        """
        self.loss = loss
        old = psnr if self.psnr is None else self.psnr
        self.psnr = PSNR_MEMORY * old + (1 - PSNR_MEMORY) * psnr
        if self.eta is not None:
            self.eta.report(self.done, milliseconds, gaussians)
        state = f"loss {loss:.4f}  PSNR {self.psnr:.2f}  {gaussians:,} Gaussians"
        if not self.bar.disable:
            speed = f"{1000 / max(milliseconds, 1e-9):.1f} it/s"
            self.bar.set_postfix_str("  ".join([*self._time_left(), speed, state]), refresh=False)
        elif self.log_every and self.done % self.log_every == 0:
            left = None if self.eta is None else self.eta.seconds()
            tell(
                "progress",
                step=self.done,
                iterations=self.last,
                loss=loss,
                psnr=self.psnr,
                gaussians=gaussians,
                step_ms=round(milliseconds, 3),
                seconds=round(seconds, 3),
                eta_seconds=left if left is None else round(left, 1),
            )
        elif not self.quiet and (tenths := 10 * self.done // self.last) > self._tenths:
            self._tenths = tenths
            done = f"iteration {self.done:,} of {self.last:,}"
            self.say("  ".join([done, state, *self._time_left()]))

    def say(self, line: str) -> None:
        """A line of text, above the progress line where there is one."""
        if not self.quiet:
            self.bar.write(line)

    def close(self) -> None:
        """End the line."""
        self.bar.close()

    def _time_left(self) -> list[str]:
        """At most so often that it costs nothing."""
        now = time.monotonic()
        if self.eta is not None and now >= self._again:
            left, self._again = self.eta.seconds(), now + ETA_EVERY
            self._left = [] if left is None else [f"{clock_text(left)} left"]
        return self._left


def clock_text(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
