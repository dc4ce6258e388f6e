"""Windows of optimizer steps in which something is frozen, and their text form ``xyz@0:500``.

A window is told in optimizer steps done, as a schedule is: in ``0:500`` the first 500 updates do not happen,
which are the iterations 1 to 500 of a run, and iteration 501 is the first that moves the parameter.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gsopt.errors import InputError


def _check_bound(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number, at least {least}, found {value!r}")


@dataclass(frozen=True)
class FreezeWindow:
    """Frozen from `start` optimizer steps done until `end` are: ``step in FreezeWindow(0, 500)``.

    Args:
        start: 0 or more.
        end: more than `start`; None is for ever.

    Raises:
        ValueError: a bound is no whole number or out of range, or the window is empty.
    """

    start: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        _check_bound("start", self.start, 0)
        if self.end is not None:
            _check_bound("end", self.end, self.start + 1)

    def __contains__(self, step: int) -> bool:
        return self.start <= step and (self.end is None or step < self.end)

    def __str__(self) -> str:
        return f"{self.start}:{'' if self.end is None else self.end}"

    @property
    def iterations(self) -> str:
        """Which iterations of a run it covers, in words."""
        if self.end is None:
            return f"from iteration {self.start + 1:,} on" if self.start else "throughout"
        return f"in iterations {self.start + 1:,} to {self.end:,}"


ALWAYS = FreezeWindow()


def check_apart(windows: Iterable[FreezeWindow]) -> None:
    """Raise ValueError where two windows overlap; that one ends where the next begins is fine."""
    ordered = sorted(windows, key=lambda window: window.start)
    for first, second in pairwise(ordered):
        if second.start in first:
            raise ValueError(f"windows {first} and {second} overlap; make one of them")


def parse_freezes(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[FreezeWindow, ...]]:
    """The windows of each name in the values of ``--freeze``.

    Args:
        texts: ``NAME`` for the whole run or ``NAME@START:END``, where START is 0 and END the end of the run
            if left out; a name may come several times. ``feature-rest`` is feature_rest.
        names: that there are.

    Raises:
        InputError: a name that there is not, or a window that is none, empty, or overlaps another.
    """
    found: dict[str, tuple[FreezeWindow, ...]] = {}
    for text in texts:
        written, at, bounds = text.partition("@")
        name = written.replace("-", "_")
        if name not in names:
            raise InputError(
                f"--freeze {text}: no attribute is called {written!r}; there are {', '.join(names)}"
            )
        try:
            window = _parse_window(bounds) if at else ALWAYS
            check_apart((*found.get(name, ()), window))
        except ValueError as error:
            raise InputError(f"--freeze {text}: {error}") from None
        found[name] = (*found.get(name, ()), window)
    return found


def check_in_run(windows: Mapping[str, Sequence[FreezeWindow]], iterations: int) -> None:
    """Raise InputError where a window begins when a run of so many iterations is over."""
    for name, of_name in windows.items():
        for window in of_name:
            if window.start >= iterations:
                raise InputError(
                    f"--freeze {name}@{window}: begins after the last of {iterations} iterations; "
                    "begin earlier or leave it out"
                )


def idle_steps(
    windows: Mapping[str, Sequence[FreezeWindow]], names: Iterable[str], iterations: int
) -> range | None:
    """The first steps (as counted when done) of a run in which all `names` are frozen; None if none."""
    names = list(names)
    bounds = {b for of_name in windows.values() for w in of_name for b in (w.start, w.end) if b is not None}
    inside = sorted(bound for bound in bounds | {0} if bound < iterations)

    def all_frozen(step: int) -> bool:
        return all(any(step in window for window in windows.get(name, ())) for name in names)

    first = next((bound for bound in inside if all_frozen(bound)), None)
    if first is None:
        return None
    ends = (bound for bound in inside if bound > first and not all_frozen(bound))
    return range(first, next(ends, iterations))


def _parse_window(text: str) -> FreezeWindow:
    start, colon, end = text.partition(":")
    if not colon:
        raise ValueError(f'expected a window START:END after "@", found "{text}"')
    bounds = []
    for word in (start, end):
        try:
            bounds.append(int(word) if word else None)
        except ValueError:
            raise ValueError(f'"{word}" is not a whole number of steps; expected START:END') from None
    return FreezeWindow(bounds[0] or 0, bounds[1])
