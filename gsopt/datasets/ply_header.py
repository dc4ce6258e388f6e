"""What a PLY file's header says of its size, before a parser believes it and allocates as much."""

from pathlib import Path

from gsopt.errors import InputError

LONGEST = 1 << 20  # bytes of a header; that of a splat has 1,500
_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}


def check_size(path: Path) -> None:
    """Raise InputError where a file is too short for the rows that its header announces.

    What is wrong with a header otherwise is left to the parser. OSError where the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        header, found, _ = stream.read(LONGEST).partition(b"end_header")
    if not found:
        raise InputError(
            f"{path}: not a complete PLY file (no end_header in its first {min(size, LONGEST):,} bytes); "
            "write or download it again"
        )
    text = False
    needed = len(header) + len(found)  # bytes, at least
    element, count = "", 0
    for line in header.decode("latin-1").splitlines():
        match line.split():
            case ["format", kind, *_]:
                text = kind == "ascii"
            case ["element", element, number] if number.isdecimal() and len(number) <= 18:
                count = int(number)
                needed += count if text else 0  # the end of the line
            case ["property", "list", kind, *_]:  # of a list, its length
                needed += count * (1 if text else _SIZES.get(kind, 1))
            case ["property", kind, *_]:
                needed += count * (1 if text else _SIZES.get(kind, 1))
        if needed > size + 1:  # the last line may lack its end
            raise InputError(
                f"{path}: not a complete PLY file ({size:,} bytes are too few for the {count:,} rows of its "
                f"element {element}); write or download it again"
            )
