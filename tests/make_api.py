"""Writes docs/api.md from the docstrings of the public interface: `python tests/make_api.py`.

A test says when the page is stale. Types are left to the docstrings, which give shapes and units.
"""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import gsopt
from gsopt import strategy, surgery

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
TOP = """# The library

Made from the docstrings by `python tests/make_api.py`. Shapes are in brackets: N Gaussians, C cameras,
V views. What is not here may change from version to version.
"""
OF_STRATEGY = ("Strategy", "Refinement", "movable", "row_names")
OF_SURGERY = ("keep", "append", "resize", "overwrite", "per_row_state")
FLAGS = ("TrainConfig",)  # whose arguments are the flags of a command
SECTIONS = ("Args:", "Returns:", "Raises:")


def public() -> dict[str, Any]:
    """Everything on the page, by the name that a program says, in its order."""
    found = {f"gsopt.{name}": getattr(gsopt, name) for name in gsopt.__all__}
    found |= {f"gsopt.strategy.{name}": getattr(strategy, name) for name in OF_STRATEGY}
    return found | {f"gsopt.surgery.{name}": getattr(surgery, name) for name in OF_SURGERY}


def members(owner: Any) -> dict[str, Any]:
    """Public methods and properties that a class defines itself; those that torch asks for are not public."""
    if not inspect.isclass(owner):
        return {}
    kinds = (property, classmethod, staticmethod)
    return {
        name: member
        for name, member in vars(owner).items()
        if not name.startswith("_")
        and name != "extra_repr"
        and (isinstance(member, kinds) or inspect.isfunction(member))
    }


def call(name: str, thing: Any) -> str:
    """`thing` as it is called, with its defaults; a property or an error is its bare name."""
    if isinstance(thing, property) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return name
    if name.rpartition(".")[2] in FLAGS:
        return f"{name}(...)"
    bound = isinstance(thing, classmethod | staticmethod)
    signature = inspect.signature(thing.__func__ if bound else thing)
    arguments = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    if arguments and arguments[0].name in ("self", "cls"):
        del arguments[0]
    return textwrap.fill(name + str(inspect.Signature(arguments)), 100, subsequent_indent=" " * 4)


def markdown(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections become lists, roles become code."""
    text = re.sub(r":(?:func|class|meth|attr):`([^`]*)`", r"`\1`", docstring)
    lines, section = [], ""
    for line in text.splitlines():
        if line in SECTIONS:
            section = line
            lines += [f"**{line.removesuffix(':')}**", ""]
        elif not section or not line.strip():
            lines.append(line)
        elif not line.startswith("    "):  # a paragraph after the sections
            section = ""
            lines.append(line)
        elif section == "Returns:":
            lines.append(line.removeprefix("    "))
        elif line.startswith("        "):  # an entry goes on
            lines.append(f"  {line.strip()}")
        else:
            name, colon, about = line.strip().partition(": ")
            lines.append(f"- `{name}`: {about}" if colon else f"- {line.strip()}")
    return "\n".join(lines)


def page() -> str:
    """All of docs/api.md."""
    things = public()
    parts = [TOP, " · ".join(f"[{name}](#{re.sub('[.]', '', name).lower()})" for name in things) + "\n"]
    for name, thing in things.items():
        parts += [
            f"## {name}\n",
            f"```\n{call(name, thing)}\n```\n",
            markdown(inspect.getdoc(thing) or "") + "\n",
        ]
        for key, member in members(thing).items():
            short = f"{name.rpartition('.')[2]}.{key}"
            parts += [f"### {short}\n", f"```\n{call(short, member)}\n```\n"]
            parts += [markdown(inspect.getdoc(member) or "") + "\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
