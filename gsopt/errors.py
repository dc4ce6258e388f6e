"""The errors a user is meant to read."""


class InputError(ValueError):
    """Something the user gave is not usable.

    The message is one line that names the file (and element, row or flag), says what was expected, what was
    found and what to do about it. The commands print it on stderr and exit with code 2.
    """


class MissingExtra(InputError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f'{needed_for} needs the package {package}: pip install "gsopt[{extra}]"')
