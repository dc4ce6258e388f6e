"""Tables of text for the terminal."""

from collections.abc import Iterator, Sequence

GAP = "  "


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a message: the first `most`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        GAP.join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def narrow_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The same in at most `width` characters: what does not fit goes on in another table below.

    Each has the first column. Cells longer than a third of the width lose their middle.
    """
    rows = [[shortened(cell, width // 3) for cell in row] for row in rows]
    columns = list(zip(header, *rows, strict=True))
    lines: list[str] = []
    for part in _parts([max(map(len, column)) for column in columns], width):
        head, *body = zip(columns[0], *(columns[index] for index in part), strict=True)
        lines += [*([""] if lines else []), *table(head, body)]
    return lines


def _parts(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Columns after the first, in as many parts as it takes for each to fit beside the first."""
    part: list[int] = []
    used = widths[0]
    for index, wide in enumerate(widths[1:], start=1):
        if part and used + len(GAP) + wide > width:
            yield part
            part, used = [], widths[0]
        part.append(index)
        used += len(GAP) + wide
    yield part


def shortened(text: str, longest: int) -> str:
    """`text` in at most so many characters, with "..." for its middle."""
    if len(text) <= longest:
        return text
    head = (longest - 3) // 2
    return f"{text[:head]}...{text[head + 3 - longest :]}"
