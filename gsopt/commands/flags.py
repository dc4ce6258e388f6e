"""Command-line flags from a dataclass (by tyro), with every mistake told in one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from gsopt.errors import InputError

Settings = TypeVar("Settings")


def parse(
    settings: type[Settings], argv: Sequence[str], prog: str, about: str, default: Settings | None = None
) -> Settings:
    """The dataclass `settings` filled from `argv`; what is not given there comes from `default`.

    Prints help and exits with 0 for --help. Raises InputError, naming the flag, for anything unusable.
    """
    import tyro

    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(settings, args=list(argv), prog=prog, description=about, **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(complaint.getvalue(), prog)) from None


def _one_line(text: str, prog: str) -> str:
    """tyro's box (title, rule, message, rule, hints) as "message; perhaps you meant ...; see ...".

    A box has its title in the upper border on a terminal, and on a line of its own elsewhere.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m|[│┃|]", " ", re.sub(r"[╭┌].*?[╮┐]", "", text))
    parts = [" ".join(part.split()) for part in re.split(r"[─-]{8,}|[╰└╯┘]", plain)]
    parts = [part for part in parts if part]
    hints = [part for part in parts if part.startswith("Perhaps you meant")]
    known = [part for part in parts if not part.startswith(("Perhaps", "For full", "Argument help"))]
    message = next((part for part in known if " " in part and len(part.split()) > 2), " ".join(known))
    near = re.findall(r"--[\w.-]+", hints[0]) if hints else []
    meant = f"; perhaps you meant {' or '.join(dict.fromkeys(near))}" if near else ""
    return f"{message.rstrip('.')}{meant}; see {prog} --help"
