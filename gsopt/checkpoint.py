"""Checkpoints: one versioned file per step, written atomically and read without running code from it.

What is in a checkpoint is for the trainer to say; here is how it gets to disk and back. A checkpoint is a
tree of dicts and lists whose leaves are tensors, numbers, strings, booleans and None.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsopt.errors import InputError

FORMAT = "gsopt checkpoint"
VERSION = 1
_REMEDY = "delete it, and --resume goes on from the one before it"
_NAME = re.compile(r"step_(\d{8,})\.pt")


def path_of(folder: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step is kept: ``FOLDER/step_00001000.pt``."""
    return Path(folder) / f"step_{step:08d}.pt"


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that at every moment the path holds a complete one or none.

    It is written to a temporary file beside it, flushed to the disk and moved to its name. Its folder is
    created.

    Args:
        path: of the file.
        state: dicts with string or integer keys and lists, of tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: something in `state` could not be loaded again; the message says where it is.
        OSError: the file cannot be written; what was at the path before is still there.
    """
    path = Path(path)
    content = {"format": FORMAT, "version": VERSION, "state": _plain(state, "state")}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save` wrote, with all tensors on the CPU. Nothing in the file is executed.

    Raises:
        InputError: the file is missing, damaged, no checkpoint, or of a later version than this program
            reads.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:  # which is what torch writes, with a checksum for each part
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{path}: the checksum of {damaged} is wrong; {_REMEDY}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: damaged or no checkpoint ({reason}); {_REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected a {FORMAT}, found another kind of file; give one that gsopt wrote"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: expected version {VERSION} of the format, found {content.get('version')}; "
            "use the version of gsopt that wrote it"
        )
    return content["state"]


def find(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a folder, from the earliest step to the latest; none if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: str | os.PathLike[str]) -> int:
    """The step in a checkpoint's file name.

    Raises:
        ValueError: the name is not that of a checkpoint.
    """
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        raise ValueError(f"{path}: expected a name like step_00001000.pt")
    return int(match.group(1))


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the latest step in a folder, None if it has none."""
    found = find(folder)
    return found[-1] if found else None


def prune(folder: str | os.PathLike[str], keep: int) -> list[Path]:
    """Delete all but the last `keep` checkpoints of a folder, and what interrupted writing left behind.

    Returns:
        The checkpoints that were deleted.

    Raises:
        ValueError: `keep` is less than 1, which would delete the only way back.
    """
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, found {keep}")
    doomed = find(folder)[:-keep]
    for path in (*doomed, *Path(folder).glob("step_*.pt.tmp")):
        path.unlink(missing_ok=True)
    return doomed


def _plain(value: Any, place: str) -> Any:
    """A copy of the tree `value` that `load` can read, with tensors that store no more than they show."""
    if isinstance(value, Tensor):
        value = value.detach()
        own = value.numel() * value.element_size()
        return value.clone() if value.untyped_storage().nbytes() > own else value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"checkpoint: {place}: expected keys of type str or int, found {key!r}")
        return {key: _plain(entry, f"{place}.{key}") for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(entry, f"{place}[{i}]") for i, entry in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise TypeError(
        f"checkpoint: {place}: expected a tensor, number, string, list or dict, "
        f"found {type(value).__name__}; convert it"
    )


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry for a new file; only POSIX systems can open a folder for it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
