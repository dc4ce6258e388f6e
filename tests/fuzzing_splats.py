"""Files of Gaussians of all programs, for `fuzzing`.

Compressed files have checksums, behind which nearly all damage ends. So for each there is a second case,
"... inside", in which what is compressed is damaged and packed again.
"""

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

ROWS = 20


def written(name: str, degree: int = 1) -> Callable[[Path], Path]:
    """A file that `gsopt convert` writes."""

    def build(folder: Path) -> Path:
        from splats import random_splat

        from gsopt.formats import write

        write(folder / name, random_splat(ROWS, degree))
        return folder / name

    return build


def checkpoint_of(program: str) -> Callable[[Path], Path]:
    """A checkpoint with moments where the program keeps them there."""

    def build(folder: Path) -> Path:
        import splats
        import torch

        name = {"original": "chkpnt7.pth", "gsplat": "ckpt_6_rank0.pt", "splatfacto": "step-7.ckpt"}[program]
        torch.save(
            getattr(splats, f"{program}_checkpoint")(splats.random_tensors(ROWS, degree=1)), folder / name
        )
        return folder / name

    return build


def of_a_run(folder: Path) -> Path:
    """Our own checkpoint, of a short run."""
    import scenes

    from gsopt import checkpoint
    from gsopt.config import TrainConfig
    from gsopt.trainer import Trainer

    scene = scenes.write_nerf_synthetic(folder / "ball", points=ROWS)
    trainer = Trainer(TrainConfig(scene=scene, output=folder / "run", iterations=2, device="cpu", quiet=True))
    trainer.train()
    return checkpoint.path_of(trainer.run.checkpoints, 2)


def spz_4(folder: Path) -> Path:
    from test_formats import spz4_bytes

    (folder / "a.spz").write_bytes(spz4_bytes())
    return folder / "a.spz"


def inside_gzip(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """What is compressed in a file, as a file beside it."""

    def unpacked(folder: Path) -> Path:
        path = build(folder)
        inside = path.with_name(path.name + ".inside")
        inside.write_bytes(gzip.decompress(path.read_bytes()))
        return inside

    return unpacked


def inside_torch(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The pickle in a file of torch, as a file beside it."""

    def unpacked(folder: Path) -> Path:
        path = build(folder)
        inside = path.with_name(path.name + ".inside")
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            inside.write_bytes(archive.read(name))
        path.rename(path.with_name(path.name + ".whole"))
        return inside

    return unpacked


def read_gzip(path: Path) -> None:
    whole = path.with_suffix("")
    whole.write_bytes(gzip.compress(path.read_bytes(), 1))
    read(whole)


def read_torch(path: Path) -> None:
    """Packs the pickle together with the tensors' bytes, with checksums that are right."""
    packed = path.with_suffix("")
    with (
        zipfile.ZipFile(packed.with_name(packed.name + ".whole")) as archive,
        zipfile.ZipFile(packed, "w") as out,
    ):
        for name in archive.namelist():
            out.writestr(name, path.read_bytes() if name.endswith("/data.pkl") else archive.read(name))
    read(packed)


def read(path: Path) -> None:
    """As `gsopt convert` and `--init` do: what comes back has finite numbers, and can be trained."""
    import torch

    from gsopt import formats
    from gsopt.groups import build_groups, gaussian_specs
    from gsopt.warm_start import load_moments, model_of

    splat = formats.read(path).with_degree(1)
    for name, value in splat.tensors.items():
        assert len(value) == splat.count, name
        assert value.isfinite().all(), name
    model = model_of(splat)
    optimizer = torch.optim.Adam(build_groups(model, gaussian_specs(extent=1.0, iterations=10)), lr=0.0)
    load_moments(optimizer, splat)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None]]] = {
    ".splat": (written("a.splat", degree=0), read),
    ".spz": (written("a.spz"), read),
    ".spz inside": (inside_gzip(written("a.spz")), read_gzip),
    ".spz version 4": (spz_4, read),
    "compressed PLY": (written("a.compressed.ply"), read),
    **{
        name: (build, read)
        for name, build in (
            ("3DGS", checkpoint_of("original")),
            ("gsplat", checkpoint_of("gsplat")),
            ("splatfacto", checkpoint_of("splatfacto")),
            ("gsopt", of_a_run),
        )
    },
    **{
        f"{name} inside": (inside_torch(build), read_torch)
        for name, build in (
            ("3DGS", checkpoint_of("original")),
            ("gsplat", checkpoint_of("gsplat")),
            ("splatfacto", checkpoint_of("splatfacto")),
            ("gsopt", of_a_run),
        )
    },
}
