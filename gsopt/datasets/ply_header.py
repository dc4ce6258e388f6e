"""What a PLY file's header says of its size, before a parser believes it and allocates as much."""

import re
from pathlib import Path

from gsopt.errors import InputError

LONGEST = 1 << 20  # bytes of a header; that of a splat has 1,500
_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}


def check_header(path: Path) -> None:
    """Raise InputError where a file is too short for the rows that its header announces, or these are empty.

    Rows of no property have no size, which NumPy divides by: that ends the process. What is wrong with a
    header otherwise is left to the parser. OSError where the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        found = re.match(rb"(?s).*?[\r\n][ \t]*end_header[ \t]*[\r\n]", stream.read(LONGEST))
    if not found:
        raise InputError(
            f"{path}: not a complete PLY file (no end_header in its first {min(size, LONGEST):,} bytes); "
            "write or download it again"
        )
    lines = [line.split() for line in found[0].decode("latin-1").splitlines()]
    text = any(words[:2] == ["format", "ascii"] for words in lines)
    needed = len(found[0])  # bytes, at least
    for name, count, row in _elements(lines, text):
        if count < 0:
            raise InputError(
                f"{path}: not a complete PLY file ({count} rows of element {name}); write it again"
            )
        if not row:
            raise InputError(f"{path}: element {name} has no property, expected one or more; write it again")
        needed += count * (row + text)  # a line of text has an end
        if needed > size + 1:  # the last line may lack its end
            raise InputError(
                f"{path}: not a complete PLY file ({size:,} bytes are too few for the {count:,} rows of its "
                f"element {name}); write or download it again"
            )


def _elements(lines: list[list[str]], text: bool) -> list[tuple[str, int, int]]:
    """Name, number of rows and least bytes of a row of each element."""
    elements: list[tuple[str, int, int]] = []
    for words in lines:
        match words:
            case ["element", name, number] if re.fullmatch(r"[+-]?\d+(_\d+)*", number):
                elements.append((name, int(number), 0))
            case ["property", "list", kind, *_] | ["property", kind, *_] if elements:  # of a list, its length
                name, count, row = elements[-1]
                elements[-1] = name, count, row + (1 if text else _SIZES.get(kind, 1))
    return elements
