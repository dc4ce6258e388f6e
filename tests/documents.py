"""The documents: README.md, docs/ and data/README.md, taken apart for the tests that check them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pages() -> list[str]:
    """All documents a reader is led to, as paths from the root of the repository."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
    return [str(path.relative_to(ROOT)) for path in found]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """What stands between ```language and ```, one after another."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


def shell(page: str) -> list[str]:
    """What a reader types: its blocks of bash, and the lines of its transcripts that begin with a $."""
    transcripts = ("\n".join(re.findall(r"^\$ (.*)$", block, re.MULTILINE)) for block in blocks(page, ""))
    return [*blocks(page, "bash"), *filter(None, transcripts)]


def prose(page: str) -> str:
    """The document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """Targets of its links and pictures, without those to the web."""
    return re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page))


def anchors(page: str) -> set[str]:
    """What `page#anchor` may say: its headings as GitHub writes them in addresses."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link's text alone
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found
