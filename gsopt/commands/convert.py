"""`gsopt convert`: files of Gaussians of every program into each other, cropped, moved, joined."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from gsopt.commands.flags import parse
from gsopt.commands.pruning import PruneOptions, prune
from gsopt.editing import crop, merge, parse_transform, transform
from gsopt.errors import InputError
from gsopt.formats import INPUTS, OUTPUTS, Splat, check_output, files_of, most_degree, read, write
from gsopt.regions import parse_region

ABOUT = (
    "Convert files of Gaussians: gsopt convert IN... OUT. The formats are those of the endings. "
    f"In: {' '.join(INPUTS)}, compressed PLY, checkpoints of gsopt, the original 3DGS, gsplat, splatfacto. "
    f"Out: {' '.join(OUTPUTS)}; .pth is a checkpoint of 3DGS, .pt one of gsplat."
)

_WITH_VALUE = (
    *("--crop", "--transform", "--merge", "--sh-degree", "--extent", "--prune-opacity", "--prune-count"),
    *("--scene", "--resolution", "--images", "--test-every", "--background", "--threads"),
)


@dataclass
class ConvertConfig:
    """Settings of `gsopt convert`, applied in the order they are listed here."""

    files: Positional[tuple[Path, ...]] = ()
    """One or more files to read, which are joined, and the file to write."""
    pruning: PruneOptions = field(default_factory=PruneOptions)
    crop: UseAppendAction[tuple[str, ...]] = ()
    """Keep the Gaussians in a region: box:x0,y0,z0,x1,y1,z1, sphere:x,y,z,r, FILE.npy, outside:REGION; may be
    repeated."""
    transform: UseAppendAction[tuple[str, ...]] = ()
    """Move them: scale:2, euler:0,90,0, quaternion:w,x,y,z, translate:x,y,z, matrix:...; may be repeated."""
    merge: UseAppendAction[tuple[Path, ...]] = ()
    """A file to add after that, as it is; may be repeated."""
    sh_degree: int | None = None
    """Drop the harmonics above this degree, 0 to 3, or add zeros up to it."""
    extent: float | None = None
    """Size of the scene in world units, for .pth where the inputs do not tell it."""
    overwrite: bool = False
    """Replace the file to write if it is there."""


def main(argv: Sequence[str]) -> None:
    """Parse, then run."""
    run(parse(OmitArgPrefixes[ConvertConfig], _files_last(argv), "gsopt convert", ABOUT))


def _files_last(argv: Sequence[str]) -> list[str]:
    """Flags first, then what is none: file names may stand on both sides of flags, but not for the parser."""
    flags, files = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            files.append(word)
            continue
        flags.append(word)
        if word.replace("_", "-") in _WITH_VALUE:
            flags += [value for value in [next(words, None)] if value is not None]
    return flags + files


def run(config: ConvertConfig) -> Splat:
    """Read, change, write, report; what was written, before the losses of its format."""
    inputs, output = _checked(config)
    regions = [parse_region(text, "--crop") for text in config.crop]
    move = parse_transform(config.transform)
    splats = [_read(path) for path in inputs]
    splat = merge(splats)
    if config.pruning.asked:
        splat = prune(splat, config.pruning)
    for region in regions:
        splat = crop(splat, region)
        print(f"crop      {splat.count:,} Gaussians are in {region}")
    if config.transform:
        splat = transform(splat, move)
    splat = merge([splat, *(_read(path) for path in config.merge)])
    if config.sh_degree is not None:
        splat = splat.with_degree(config.sh_degree)
    lost = write(output, splat, config.extent)
    degree = min(splat.sh_degree, most_degree(output))
    size = output.stat().st_size
    print(f"wrote     {output}: {splat.count:,} Gaussians, SH degree {degree}, {size:,} bytes")
    for note in dict.fromkeys([*splat.notes, *lost]):
        print(f"note      {note}")
    return splat


def _checked(config: ConvertConfig) -> tuple[list[Path], Path]:
    """The files to read, each once, and the one to write. Raises InputError, naming the flag."""
    if len(config.files) < 2:
        raise InputError(
            f"gsopt convert: expected IN... OUT, found {len(config.files)} file names; give both"
        )
    config.pruning.check()
    *inputs, output = config.files
    check_output(output)
    if output.exists() and not config.overwrite:
        raise InputError(f"{output}: there is something here already; give another name, or --overwrite")
    if config.sh_degree is not None and not 0 <= config.sh_degree <= 3:
        raise InputError(f"--sh-degree {config.sh_degree}: expected 0, 1, 2 or 3")
    if config.extent is not None and not 0 < config.extent < float("inf"):
        raise InputError(f"--extent {config.extent:g}: expected a length above 0, in world units")
    known: set[Path] = set()
    chosen = []
    for path in inputs:
        parts = {part.absolute() for part in files_of(path)}
        if not parts & known:
            chosen.append(path)
        known |= parts
    return chosen, output


def _read(path: Path) -> Splat:
    splat = read(path)
    parts = [f"{splat.count:,} Gaussians", f"SH degree {splat.sh_degree}"]
    parts += [] if splat.step is None else [f"{splat.step:,} steps"]
    parts += [f"moments of {len(splat.moments)} attributes"] if splat.moments else []
    print(f"read      {path}: {splat.kind}, {', '.join(parts)}")
    for note in splat.notes:
        print(f"note      {note}")
    return replace(splat, notes=[])
