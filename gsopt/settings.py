"""Dataclasses of settings to and from plain JSON values, and what differs between two."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from gsopt.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    DataclassInstance = object

Settings = TypeVar("Settings", bound=DataclassInstance)
Value = TypeVar("Value")

# A setting that is None only until it is checked or resolved, which refuses or fills it:
# `scene: Needed[Path] = LATER`. Read it afterwards, as what a type checker takes it for.
if TYPE_CHECKING:
    Needed = Annotated[Value, "None before"]
else:
    Needed = Value | None
LATER: Any = None


def to_json(settings: Any) -> Any:
    """Nested dataclasses as dicts, paths as strings, tuples as lists."""
    if dataclasses.is_dataclass(settings):
        return {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.init}
    if isinstance(settings, Path):
        return str(settings)
    if isinstance(settings, tuple | list):
        return [to_json(entry) for entry in settings]
    return settings


def from_json(kind: type[Settings], values: Any, where: str) -> Settings:
    """A dataclass of type `kind` from what `to_json` made of one; keys that are missing keep their default.

    `where` names the source in messages. Raises InputError for unknown keys and values of another type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected settings {{...}}, found {_shown(values)}; start the run anew")
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f", perhaps {near[0]!r} is meant" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{where}: no setting is called {name!r}{hint}")
    return kind(**{name: _typed(known[name], value, f"{where}: {name}") for name, value in values.items()})


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(flag, old value, new value) of each setting that differs, nested ones as "groups.xyz.lr"."""
    for entry in dataclasses.fields(old):
        before, after = getattr(old, entry.name), getattr(new, entry.name)
        if dataclasses.is_dataclass(before):
            yield from differences(before, after, f"{prefix}{entry.name}.")
        elif before != after:
            yield f"{prefix}{entry.name}".replace("_", "-"), before, after


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value`, read from JSON, as the type a field declares."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_json(kind, value, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _typed(next(entry for entry in inner if entry is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(inner[0], entry, where) for entry in value)
    if origin is typing.Literal and value in inner:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    expected = (
        " or ".join(map(repr, inner)) if origin is typing.Literal else getattr(kind, "__name__", str(kind))
    )
    raise InputError(f"{where}: expected {expected}, found {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
