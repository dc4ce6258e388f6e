"""Compile the CPU kernel, at install time or at its first use.

Stands alone (standard library only), because `setup.py` loads it before the package has its dependencies.
One variant is compiled for each instruction set; a file's name carries a hash of the sources, so that a
library built from other sources is never loaded.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
_X86 = {
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
    "baseline": ("-march=x86-64",),
}
# Fused multiply-adds and vectorised sqrt and compare need these; -ffast-math would break the NaN checks.
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
)


class NoCompiler(RuntimeError):
    """No C compiler was found; the message names both remedies."""


def variants() -> dict[str, tuple[str, ...]]:
    """Instruction sets this machine's architecture is compiled for, best first, with their compiler flags."""
    return _X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": ()}


def source_hash() -> str:
    """First 12 hex digits of a hash over the kernel's sources and compiler flags."""
    digest = hashlib.sha256(repr((_FLAGS, sorted(variants().items()))).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def library_name(isa: str) -> str:
    return f"libgsopt-{isa}-{source_hash()}.so"


def cache_folder() -> Path:
    """Where kernels compiled at first use are kept: $GSOPT_CACHE, or gsopt in the user's cache folder."""
    if "GSOPT_CACHE" in os.environ:
        return Path(os.environ["GSOPT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gsopt"


def find_compiler() -> list[str]:
    """Command of a C compiler: $CC, cc, gcc, clang, or zig from the package `ziglang`.

    Raises:
        NoCompiler: there is none.
    """
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise NoCompiler(
        "the CPU kernel is not built and no C compiler was found: install one "
        '(Debian and Ubuntu: apt install gcc), or pip install "gsopt[compiler]"'
    )


def compile_kernel(folder: Path, isa: str, *, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile one variant into `folder`; the file appears whole or not at all.

    Raises:
        NoCompiler: no compiler was found.
        RuntimeError: the compiler failed; the message has its command and its output.
    """
    target = Path(folder) / library_name(isa)
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = variants()[isa]
    compiler = find_compiler()
    if "ziglang" in compiler:  # zig spells the levels of x86-64 with an underscore
        flags = tuple(flag.replace("-march=x86-64-", "-march=x86_64_") for flag in flags)
        flags = tuple("-march=x86_64" if flag == "-march=x86-64" else flag for flag in flags)
    handle, draft = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    command = [*compiler, *_FLAGS, *flags, f"-DGSOPT_ISA={isa}", *extra_flags, *sources]
    command += ["-o", draft, "-lm", "-pthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"compiling the CPU kernel failed: {shlex.join(command)}\n{done.stderr}")
        os.replace(draft, target)
    finally:
        Path(draft).unlink(missing_ok=True)
    return target


def compile_all(folder: Path) -> list[Path]:
    """Compile every variant of this architecture, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda isa: compile_kernel(folder, isa), variants()))
