"""Options of an optimizer as they are written on the command line: ``momentum=0.9 betas=0.9,0.99``."""

from collections.abc import Mapping, Sequence
from typing import Any

from gsopt.errors import InputError

_WORDS = {"true": True, "false": False}


def parse_options(texts: Sequence[str], flag: str, elsewhere: Mapping[str, str]) -> dict[str, Any]:
    """Options by name from texts ``NAME=VALUE``.

    A value is a number (an int where it is written as one), `true`, `false`, or several numbers separated by
    commas, which make a tuple. Whether the optimizer has such an option is for it to say.

    Args:
        texts: the values of `flag`.
        flag: is named in messages.
        elsewhere: options that are not set here, and where they are instead.

    Raises:
        InputError: a text that is not ``NAME=VALUE``, an option twice or one that is set elsewhere.
    """
    options: dict[str, Any] = {}
    for text in texts:
        written, equals, value = text.partition("=")
        name = written.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(f"{flag} {text}: expected NAME=VALUE, such as momentum=0.9")
        if name in elsewhere:
            raise InputError(f"{flag} {text}: {name} is set elsewhere: {elsewhere[name]}; leave it out here")
        if name in options:
            raise InputError(f"{flag} {text}: {name} is given twice; leave one out")
        try:
            options[name] = _value(value.strip())
        except ValueError:
            raise InputError(
                f'{flag} {text}: expected a number, true, false or numbers with commas, found "{value}"'
            ) from None
    return options


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_number(word) for word in text.split(","))
    return _WORDS[text] if text in _WORDS else _number(text)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
