"""Files of Gaussians of every program, in and out: `read` and `write`.

| file | in | out |
|---|---|---|
| `.ply` of any trainer, also compressed | yes | layout of the original 3DGS; `.compressed.ply` |
| `.splat` | yes | yes |
| `.spz` | versions 2, 3, 4 | version 3 |
| `chkpntN.pth` of the original 3DGS | with moments | with moments |
| `ckpt_N_rankR.pt` of gsplat | yes | yes |
| `step-N.ckpt` of nerfstudio's splatfacto | with moments | no |
| our own checkpoint | with moments | no |

Inputs are told apart by ending, checkpoints by content. Nothing in a checkpoint is executed.
"""

from pathlib import Path

import numpy as np
import torch

from gsopt import checkpoint
from gsopt.datasets.ply import read_elements, replace_file, splat_of_vertices, write_elements, write_splat
from gsopt.errors import InputError
from gsopt.formats import compressed_ply, gsplat_trainer, original, own, splatfacto
from gsopt.formats.antimatter import read_splat_file, splat_file
from gsopt.formats.losses import losses
from gsopt.formats.splat import SHAPES, Splat
from gsopt.formats.spz import read_spz, spz

__all__ = ["INPUTS", "OUTPUTS", "Splat", "check_output", "files_of", "most_degree", "read", "write"]

_CHECKPOINTS = (own, original, gsplat_trainer, splatfacto)
_TORCH = (".pth", ".pt", ".ckpt")
_COMPRESSED = ".compressed.ply"
INPUTS = (".ply", ".splat", ".spz", *_TORCH)
OUTPUTS = (".ply", _COMPRESSED, ".splat", ".spz", ".pth", ".pt")


def read(path: Path) -> Splat:
    """The Gaussians in a file.

    Raises:
        InputError: an ending that no format has, or a file that is missing, damaged, or of another content.
    """
    suffix = path.suffix.lower()
    if suffix == ".ply":
        return _read_ply(path)
    if suffix == ".splat":
        return Splat(_tensors(read_splat_file(path)), ".splat")
    if suffix == ".spz":
        return _finite(path, Splat(_tensors(read_spz(path)), ".spz"))
    if suffix in _TORCH:
        return gsplat_trainer.joined([_read_checkpoint(part) for part in files_of(path)])
    raise InputError(f"{path}: no format has this ending; expected one of {', '.join(INPUTS)}")


def files_of(path: Path) -> list[Path]:
    """The files that :func:`read` reads for `path`: of a run of gsplat on several GPUs there are several."""
    return gsplat_trainer.ranks(path) if path.suffix.lower() == ".pt" else [path]


def write(path: Path, splat: Splat, extent: float | None = None) -> list[str]:
    """Write a file in the format of its ending, at once or not at all; what was lost, in words.

    Args:
        path: of the file; its folder is created, what is there is replaced.
        splat: what to write.
        extent: size of the scene, for a checkpoint of the original 3DGS; default: the splat's own.

    Raises:
        InputError: an ending that no format has, something the format has no room for, or no extent.
        OSError: the file cannot be written; what was at the path before is still there.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if splat.count == 0:
        raise InputError(f"{path}: no Gaussians are left to write; check --crop")
    lost = []
    if suffix != ".splat" and splat.sh_degree > most_degree(path):  # of that, `losses` tells
        splat, before = splat.with_degree(most_degree(path)), len(splat.notes)
        lost += splat.notes[before:]
    if splat.moments and not (suffix == ".pth" and original.keeps_moments(splat)):
        lost.append("the optimizer's moments are left out")
    if suffix == ".pth":
        return lost + _write_original(path, splat, extent)
    if suffix == ".pt":
        _save(path, gsplat_trainer.to_content(splat))
        return lost
    return lost + _write_values(path, splat)


def most_degree(path: Path) -> int:
    """The highest band of harmonics that the format of a file to write has room for, 0 to 4."""
    suffix = path.suffix.lower()
    if suffix == ".splat":
        return 0
    return 4 if suffix == ".ply" and not _is_compressed(path) else 3


def check_output(path: Path) -> None:
    """Raise InputError for an ending that cannot be written."""
    suffix = path.suffix.lower()
    if suffix in (".ckpt", ".sog", ".ksplat"):
        raise InputError(f"{path}: {suffix} is not written; expected one of {', '.join(OUTPUTS)}")
    if not path.name.lower().endswith(OUTPUTS):
        raise InputError(f"{path}: no format has this ending; expected one of {', '.join(OUTPUTS)}")


def _read_ply(path: Path) -> Splat:
    elements = read_elements(path)
    if compressed_ply.is_compressed(elements):
        return _finite(path, Splat(_tensors(compressed_ply.from_elements(path, elements)), "compressed PLY"))
    arrays = splat_of_vertices(path, elements["vertex"])
    if len(arrays["xyz"]) == 0:
        raise InputError(f"{path}: expected at least one Gaussian, found none; give a file that has some")
    return Splat(_tensors(arrays), "PLY")


def _finite(path: Path, splat: Splat) -> Splat:
    """A splat whose file is damaged if unpacking it gives anything but numbers."""
    if not all(torch.isfinite(value).all() for value in splat.tensors.values()):
        raise InputError(f"{path}: not all numbers are finite; write or download it again")
    return splat


def _read_checkpoint(path: Path) -> Splat:
    content = checkpoint.read(path)
    for kind, is_this in zip(
        _CHECKPOINTS,
        (own.is_own, original.is_original, gsplat_trainer.is_gsplat, splatfacto.is_splatfacto),
        strict=True,
    ):
        if is_this(content):
            splat = kind.from_content(path, content)
            if splat.count == 0:
                raise InputError(f"{path}: no Gaussians in it, expected at least one; give another file")
            return splat
    raise InputError(
        f"{path}: expected a checkpoint of gsopt, the original 3DGS, gsplat or nerfstudio's splatfacto, "
        f"found {_described(content)}; export a PLY with the program that wrote it"
    )


def _write_original(path: Path, splat: Splat, extent: float | None) -> list[str]:
    extent = extent or splat.extent
    if extent is None:
        raise InputError(
            f"{path}: a checkpoint of 3DGS holds the scene's extent, which is not known here; give --extent "
            "E (1.1 x the largest distance of a camera from the middle of all, world units)"
        )
    _save(path, original.to_content(splat, extent))
    return ["its tensors are on the CPU: 3DGS reads them by torch.load(path, map_location='cuda')"]


def _write_values(path: Path, splat: Splat) -> list[str]:
    arrays = {name: value.numpy() for name, value in splat.tensors.items()}
    suffix = path.suffix.lower()
    if suffix == ".ply" and not _is_compressed(path):
        write_splat(path, arrays)
        return []
    order: np.ndarray | slice = slice(None)
    if _is_compressed(path):
        elements, order = compressed_ply.to_elements(arrays)
        write_elements(path, elements)
        written = compressed_ply.from_elements(path, elements)
    else:
        content = splat_file(arrays) if suffix == ".splat" else spz(arrays)
        replace_file(path, lambda stream: stream.write(content))
        written = read_splat_file(path) if suffix == ".splat" else read_spz(path)
    lost = losses({name: value[order] for name, value in arrays.items()}, written)
    return [*lost, *(["the Gaussians are in another order"] if _is_compressed(path) else [])]


def _save(path: Path, content: object) -> None:
    replace_file(path, lambda stream: torch.save(content, stream))


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in SHAPES}


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(_COMPRESSED)


def _described(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict with {', '.join(map(str, list(content)[:6])) or 'nothing'}"
    return f"a {type(content).__name__}"
