"""The one progress display of a sweep: how many runs are done, and what each process is at."""

from collections.abc import Sequence


class SweepProgress:
    """A bar of runs, with a line for each process under it.

    Where stderr is not a terminal there is only a line of text after each run.
    """

    def __init__(self, total: int, done: int, jobs: int, quiet: bool = False) -> None:
        """`total` runs, of which `done` were done before; so many `jobs` at once."""
        from tqdm import tqdm

        self.total, self.done, self.quiet = total, done, quiet
        hidden = quiet or None  # None: where it is not a terminal
        self.bar = tqdm(
            total=total, initial=done, unit="run", disable=hidden, dynamic_ncols=True, smoothing=0
        )
        self.lines = [
            tqdm(bar_format="{desc}", position=1 + index, leave=False, disable=hidden, dynamic_ncols=True)
            for index in range(jobs)
        ]

    def show(self, states: Sequence[str]) -> None:
        """What each process is at, a line each."""
        for index, line in enumerate(self.lines):
            line.set_description_str(f"  {states[index]}" if index < len(states) else "")
        self.bar.refresh()

    def advance(self, text: str) -> None:
        """One more run has ended: `text` says how."""
        self.done += 1
        self.bar.update()
        if not self.quiet:
            self.bar.write(f"[{self.done}/{self.total}] {text}")

    def close(self) -> None:
        """End the display."""
        for line in reversed(self.lines):
            line.close()
        self.bar.close()
