"""Checkpoints: one versioned file per step, written atomically and read without running code from it.

What is in a checkpoint is for the trainer to say; here is how it gets to disk and back. A checkpoint is a
tree of dicts and lists whose leaves are tensors, numbers, strings, booleans and None. The file is one of
`torch.save` with {"format", "version", "state", "sha256"}; the last is the checksum of the state, which files
written before there was one lack.
"""

import errno
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gsopt.errors import InputError

FORMAT = "gsopt checkpoint"
VERSION = 1
DAMAGED = ".damaged"  # what the names of damaged checkpoints get
_OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # begins files of torch.save before 1.6
_REMEDY = "delete it, and --resume goes on from the one before it"
_NAME = re.compile(r"step_(\d{8,})\.pt")


class DamagedError(InputError):
    """A file that is not, or no longer, what was written."""


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
    state = _plain(state, "state")
    content = {"format": FORMAT, "version": VERSION, "state": state, "sha256": digest(state)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            _save_to(stream, content)
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
    return unpack(path, read(path, _REMEDY))


def unpack(path: str | os.PathLike[str], content: Any) -> dict[str, Any]:
    """The state in a checkpoint's content, as :func:`read` found it at `path`.

    Raises:
        InputError: it is no checkpoint, of a later version than this program reads, or its checksum is wrong.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected a {FORMAT}, found another kind of file; give one that gsopt wrote"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: expected version {VERSION} of the format, found {content.get('version')}; "
            "use the version of gsopt that wrote it"
        )
    if "sha256" in content and content["sha256"] != digest(content.get("state")):
        raise DamagedError(f"{path}: the checksum of its state is wrong; {_REMEDY}")
    return content["state"]


def digest(tree: Any) -> str:
    """SHA-256 of a tree as `save` takes it: of keys in their order, values, types, shapes and bits. Hex."""
    sha = hashlib.sha256()
    _digest_into(sha, tree)
    return sha.hexdigest()


def _digest_into(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"tensor {value.dtype} {list(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        sha.update(f"dict {len(value)} ".encode())
        for key, entry in value.items():
            _digest_into(sha, key)
            _digest_into(sha, entry)
    elif isinstance(value, list | tuple):
        sha.update(f"{type(value).__name__} {len(value)} ".encode())
        for entry in value:
            _digest_into(sha, entry)
    else:  # the repr of a float is all of it
        sha.update(f"{type(value).__name__} {value!r} ".encode())


def read(path: str | os.PathLike[str], remedy: str = "give a file that torch.save wrote") -> Any:
    """Read any file of `torch.save`, with all tensors on the CPU. Nothing in the file is executed.

    Beside tensors and plain values it may hold NumPy's numbers, which learning rates often are.

    Args:
        path: of the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        InputError: the file is missing, damaged, of another kind, or holds objects of Python that only
            running their code would restore.
    """
    path = Path(path)
    try:
        _check_kind(path, remedy)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_numbers()):
            warnings.simplefilter("ignore")  # about old pickles: what cannot be read is an error anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a checkpoint") from None
    except OSError as error:
        if error.errno == errno.EIO:  # this part of the disk is worn out; others may not be
            raise DamagedError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # damage can break the reader in any way
        raise DamagedError(f"{path}: {_trouble(error)}; {remedy}") from error


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


def load_latest(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]] | None:
    """The latest checkpoint of a folder that is whole, and what it holds; None if there are none at all.

    Damaged ones are reported by a warning and renamed to NAME.damaged, so that none of them counts among the
    last that `prune` keeps.

    Raises:
        InputError: all checkpoints there are damaged, or the latest is whole but cannot be used. Then no file
            is renamed.
    """
    reports = {}
    for path in reversed(find(folder)):
        try:
            state = load(path)
        except DamagedError as error:
            reports[path] = str(error).removesuffix(f"; {_REMEDY}")
            continue
        for damaged, report in reports.items():
            damaged.rename(damaged.with_name(damaged.name + DAMAGED))
            warnings.warn(f"{report}; renamed to *{DAMAGED}, going on from {path.name}", stacklevel=2)
        return path, state
    if reports:
        raise InputError(f"{'; '.join(reports.values())}; no other is left: delete to start at iteration 0")
    return None


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


def _save_to(stream: IO[bytes], content: Any) -> None:
    """`torch.save`, with the file's own error where it cannot be written, which torch would replace."""
    failed: list[OSError] = []

    def write(data: Any) -> int:
        try:
            return stream.write(data)
        except OSError as error:
            failed.append(error)
            raise

    try:
        torch.save(content, SimpleNamespace(write=write, flush=stream.flush))
    except Exception as error:
        raise failed[0] if failed else error from None


def _check_kind(path: Path, remedy: str) -> None:
    """Raise InputError unless a file is of torch and, where it has checksums, undamaged."""
    with path.open("rb") as stream:
        start = stream.read(len(_OLD_FORMAT))
    if start == _OLD_FORMAT:
        return
    if start.startswith(b"\x80"):
        raise InputError(
            f"{path}: a bare pickle, which cannot be read without running code from it; "
            "let torch.save write the tensors"
        )
    with zipfile.ZipFile(path) as archive:  # which is what torch writes, with a checksum for each part
        damaged = archive.testzip()
    if damaged is not None:
        raise DamagedError(f"{path}: the checksum of {damaged} is wrong; {remedy}")


def _trouble(error: Exception) -> str:
    """What is wrong with a file, from the error of reading it."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if found:
        return (
            f"holds {found[1]}, which only running code from the file would restore, so it is not read "
            "(state_dicts of tensors and numbers are)"
        )
    reason = str(error).strip().split("\n")[0]
    return f"damaged or no checkpoint ({reason or type(error).__name__})"


def _numpy_numbers() -> list[Any]:
    """What torch's unpickler needs for numbers of NumPy, under the names of its versions 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.float64, np.float32, np.int64)
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *{type(np.dtype(kind)) for kind in kinds}]


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
