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
_AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mlzcnt", "-mmovbe")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
# Features one by one: gcc before 11 does not know -march=x86-64-v3 and -v4. src/cpu.c asks for all.
_X86 = {"avx512": _AVX2 + _AVX512, "avx2": _AVX2, "baseline": ()}
# zig compiles for the processor it runs on unless told one, and knows features by processors best.
_ZIG_CPUS = {"avx512": "x86_64_v4", "avx2": "x86_64_v3", "baseline": "x86_64"}
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


class CompilerFailed(RuntimeError):
    """The compiler could not be run or refused the sources; the message has its command and its output."""


def variants() -> dict[str, tuple[str, ...]]:
    """Instruction sets this machine's architecture is compiled for, best first, with their compiler flags."""
    return _X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": ()}


def source_hash() -> str:
    """First 12 hex digits of a hash over the kernel's sources, its flags and the kind of machine."""
    built_for = (sys.platform, platform.machine(), _FLAGS, sorted(variants().items()))
    digest = hashlib.sha256(repr(built_for).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def library_name(isa: str) -> str:
    return f"libgsopt-{isa}-{source_hash()}.so"


def cache_folder() -> Path:
    """Where kernels compiled at first use are kept: $GSOPT_CACHE, or gsopt in the user's cache folder."""
    if os.environ.get("GSOPT_CACHE"):
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
        CompilerFailed: the compiler cannot be run or fails.
        OSError: the folder cannot be written.
    """
    target = Path(folder) / library_name(isa)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that the linker gives the file the usual permissions; then one rename.
    with tempfile.TemporaryDirectory(dir=target.parent) as draft_folder:
        draft = Path(draft_folder) / target.name
        compiler = find_compiler()
        flags = [*_FLAGS, *_processor(compiler, isa), f"-DGSOPT_ISA={isa}", *extra_flags]
        sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
        _run([*compiler, *flags, *sources, "-o", str(draft), "-lm", "-pthread"])
        os.replace(draft, target)
    return target


def _processor(compiler: list[str], isa: str) -> tuple[str, ...]:
    """Flags that let the compiler use the instructions of a variant, and no others."""
    if not any("zig" in Path(word).name for word in compiler):
        return variants()[isa]
    return ("-mcpu=" + (_ZIG_CPUS[isa] if variants() is _X86 else "generic"),)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerFailed(
            f"the C compiler {command[0]} cannot be run ({error.strerror}); see $CC"
        ) from None
    if done.returncode:
        raise CompilerFailed(f"compiling the CPU kernel failed: {shlex.join(command)}\n{done.stderr}")


def compile_all(folder: Path) -> list[Path]:
    """Compile every variant of this architecture, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda isa: compile_kernel(folder, isa), variants()))
