"""The text form of schedules, as it is written on the command line: ``"warmup:100,cosine:0.01"``.

    schedule = part, or several with " then " between them: one after another
    part     = factor, or several with "," between them: multiplied; then, maybe, @STEPS: how long it lasts
    factor   = KIND:ARGUMENT:... as in the table of `parse_schedule`, or a schedule in parentheses

Every part but the last has a length; a part that is just a warm-up has its own. `exp` and `cosine` end with
the part they are in. The last part ends with the run, unless it has a length: then its `exp` and `cosine`
end there, and stay where they are.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from gsopt.errors import InputError
from gsopt.schedules import (
    Constant,
    Cosine,
    Exponential,
    LogLinear,
    MultiStepDecay,
    Product,
    Schedule,
    Sequential,
    StepDecay,
    WarmUp,
)

# One row a kind: how it is written, how many arguments it takes at least and at most, and what it makes of
# them and of the length of its part.
_KINDS: dict[str, tuple[str, int, float, Callable[[list[float], int], Schedule]]] = {
    "constant": ("constant[:FACTOR]", 0, 1, lambda args, length: Constant(*args)),
    "exp": (
        "exp:FINAL_FACTOR[:DELAY_STEPS[:DELAY_FACTOR]]",
        1,
        3,
        lambda args, length: LogLinear(args[0], length, *_whole(args[1:2]), *args[2:]),
    ),
    "gamma": ("gamma:FACTOR_OF_A_STEP", 1, 1, lambda args, length: Exponential(*args)),
    "step": ("step:STEP_SIZE:GAMMA", 2, 2, lambda args, length: StepDecay(_whole(args[:1])[0], args[1])),
    "multistep": (
        "multistep:MILESTONE[:MILESTONE...]:GAMMA",
        2,
        math.inf,
        lambda args, length: MultiStepDecay(tuple(_whole(args[:-1])), args[-1]),
    ),
    "cosine": ("cosine:FINAL_FACTOR", 1, 1, lambda args, length: Cosine(args[0], length)),
    "warmup": (
        "warmup:STEPS[:START_FACTOR]",
        1,
        2,
        lambda args, length: WarmUp(*_whole(args[:1]), *args[1:]),
    ),
}
_SPANNING = ("exp", "cosine")  # kinds that end with their part
_TOKEN = re.compile(r"[(),@]|[^\s(),@]+")


def parse_schedule(text: str, iterations: int) -> Schedule:
    """A schedule from its text form, for example ``"exp:0.01"``: log-linear to 1/100 at the end of the run.

    | text | schedule |
    |---|---|
    | `constant[:FACTOR]` | :class:`Constant` |
    | `exp:FINAL_FACTOR[:DELAY_STEPS[:DELAY_FACTOR]]` | :class:`LogLinear` over its part |
    | `cosine:FINAL_FACTOR` | :class:`Cosine` over its part |
    | `gamma:FACTOR_OF_A_STEP` | :class:`Exponential` |
    | `step:STEP_SIZE:GAMMA` | :class:`StepDecay` |
    | `multistep:MILESTONE[:MILESTONE...]:GAMMA` | :class:`MultiStepDecay` |
    | `warmup:STEPS[:START_FACTOR]` | :class:`WarmUp` |
    | `cosine:0.01,warmup:100` | :class:`Product` |
    | `warmup:100 then constant@500 then cosine:0.01` | :class:`Sequential`: 100 steps, 500, the rest |
    | `exp:0.1@1000` | :class:`LogLinear` over 1,000 steps |

    Steps are optimizer steps, taken as they are given. For every schedule of these kinds ``parse_schedule(
    str(schedule), iterations) == schedule``, whatever the iterations.

    Args:
        text: of the grammar at the top of this file.
        iterations: length of the run in optimizer steps, at least 1.

    Raises:
        InputError: text that is not of the grammar, an argument that is missing, superfluous, no number or
            out of range, or a part without the length that it needs; the message quotes the bad part.
    """
    try:
        return _build(_Reader(text).read(), iterations)
    except ValueError as error:
        raise InputError(f'schedule "{text}": {error}') from None
    except RecursionError:
        raise InputError(f'schedule "{text[:40]}...": parentheses in too many parentheses') from None


@dataclass
class _Part:
    """Factors as written, each a word or the parts in parentheses, and the length, if there is one."""

    factors: list["str | list[_Part]"] = field(default_factory=list)
    length: int | None = None

    def __str__(self) -> str:
        words = (
            word if isinstance(word, str) else f"({' then '.join(map(str, word))})" for word in self.factors
        )
        return ",".join(words) + (f"@{self.length}" if self.length else "")


class _Reader:
    """From text to parts."""

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)

    def read(self) -> list[_Part]:
        if not self.tokens:
            raise ValueError(_not_a_kind(""))
        parts = self._schedule()
        if self.tokens:
            raise ValueError(f'"{self.tokens[0]}": expected ",", "@", "then" or the end before it')
        return parts

    def _take(self, token: str) -> bool:
        found = self.tokens[:1] == [token]
        del self.tokens[: int(found)]
        return found

    def _schedule(self) -> list[_Part]:
        parts = [self._part()]
        while self._take("then"):
            parts.append(self._part())
        return parts

    def _part(self) -> _Part:
        part = _Part([self._factor()])
        while self._take(","):
            part.factors.append(self._factor())
        if self._take("@"):
            word = self.tokens.pop(0) if self.tokens else ""
            if not (word.isdecimal() and int(word) > 0):
                raise ValueError(f'"{part}@{word}": expected a number of steps after "@", found "{word}"')
            part.length = int(word)
        return part

    def _factor(self) -> "str | list[_Part]":
        if self._take("("):
            parts = self._schedule()
            if not self._take(")"):
                found = f'"{self.tokens[0]}"' if self.tokens else "the end"
                raise ValueError(f'"({" then ".join(map(str, parts))}": expected ")", found {found}')
            return parts
        if not self.tokens or self.tokens[0] in ("then", *"(),@"):
            found = f'"{self.tokens[0]}"' if self.tokens else "the end"
            raise ValueError(f"expected a schedule, found {found}")
        return self.tokens.pop(0)


def _build(parts: list[_Part], rest: int) -> Schedule:
    """The schedule of `parts`, the last of which ends after `rest` steps from the beginning of the first."""
    built, lengths = [], []
    for part in parts[:-1]:
        length = part.length or _own_length(part)
        built.append(_product(part, length))
        lengths.append(length)
    last, begin = parts[-1], sum(lengths)
    if last.length and not _spans(last):
        raise ValueError(
            f'"{last}": "@{last.length}" has no effect; leave it out, or say what follows: "then ..."'
        )
    if _spans(last) and not last.length and begin >= rest:
        raise ValueError(
            f'"{last}": would begin at step {begin} of {rest}; give its length too, as in "{last}@STEPS"'
        )
    built.append(_product(last, last.length or max(rest - begin, 1)))
    return Sequential(tuple(built), tuple(lengths)) if lengths else built[0]


def _spans(part: _Part) -> bool:
    """Whether something in `part` ends with it."""
    return any(
        word.split(":")[0] in _SPANNING if isinstance(word, str) else not word[-1].length and _spans(word[-1])
        for word in part.factors
    )


def _own_length(part: _Part) -> int:
    """The length of a part that has none written: that of a warm-up."""
    (word, *others) = part.factors
    if not others and isinstance(word, str) and word.split(":")[0] == "warmup":
        warmup = _factor(word, 1)
        assert isinstance(warmup, WarmUp)
        return warmup.steps
    raise ValueError(f'"{part}": how long does it last? write "{part}@STEPS then ..."')


def _product(part: _Part, length: int) -> Schedule:
    factors = [_factor(w, length) if isinstance(w, str) else _build(w, length) for w in part.factors]
    schedule = Product(tuple(factors)) if len(factors) > 1 else factors[0]
    try:
        is_finite = math.isfinite(schedule(length))
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise ValueError(f'"{part}": grows beyond all numbers in {length} steps; give smaller factors')
    return schedule


def _factor(text: str, length: int) -> Schedule:
    """One schedule of a kind from its word, where its part has this length."""
    kind, *words = text.split(":")
    if kind not in _KINDS:
        raise ValueError(_not_a_kind(kind))
    usage, fewest, most, build = _KINDS[kind]
    if not fewest <= len(words) <= most:
        raise ValueError(f'"{text}": expected {usage}, found {len(words)} arguments')
    args = []
    for word in words:
        try:
            args.append(float(word))
        except ValueError:
            raise ValueError(f'"{word}" is not a number; expected {usage}') from None
    try:
        return build(args, length)
    except ValueError as error:
        raise ValueError(f'"{text}": {error}; expected {usage}') from None


def _not_a_kind(word: str) -> str:
    choices = ", ".join(usage for usage, *_ in _KINDS.values())
    return f'"{word}" is not a schedule; choose from {choices}'


def _whole(args: list[float]) -> list[int]:
    for value in args:
        if not value.is_integer():
            raise ValueError(f"steps: expected a whole number, found {value:g}")
    return [int(value) for value in args]
