"""The errors a user is meant to read, and which of the system's leave room for going on."""

import errno

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # EFBIG: a limit to a file's size


class InputError(ValueError):
    """Something the user gave is not usable.

    The message is one line that names the file (and element, row or flag), says what was expected, what was
    found and what to do about it. The commands print it on stderr and exit with code 2.
    """


class MissingExtra(InputError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f'{needed_for} needs the package {package}: pip install "gsopt[{extra}]"')


def is_disk_full(error: OSError) -> bool:
    """Whether there is no room for a file, which may change; not: the folder cannot be written."""
    return error.errno in DISK_FULL
