"""Finding and building the kernel, and what is said where that does not work."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gsopt.native import available_isas, build

PACKAGE = Path(build.__file__).parent
SHOW = "from gsopt.native import library; print(library().gsopt_isa().decode())"


def python(program: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh process that finds no kernel beside the package: as after an install without a compiler."""
    hide = "import gsopt.native as native, pathlib; native.__file__ = '/nowhere/__init__.py'; "
    return subprocess.run(
        [sys.executable, "-c", hide + program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_first_use_builds_into_the_cache_and_later_ones_take_it(tmp_path):
    cache = tmp_path / "cache"
    done = python(SHOW, GSOPT_CACHE=str(cache), GSOPT_ISA="baseline")
    assert done.stdout.split() == ["baseline"], done.stderr
    (built,) = cache.iterdir()
    assert built.name == build.library_name("baseline")
    made = built.stat().st_mtime_ns
    assert python(SHOW, GSOPT_CACHE=str(cache), GSOPT_ISA="baseline", CC="/no/such/compiler").returncode == 0
    assert built.stat().st_mtime_ns == made


def test_without_kernel_and_compiler_one_error_names_both_remedies(tmp_path):
    done = python(SHOW, GSOPT_CACHE=str(tmp_path), PATH="", CC="")
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "gsopt.errors.InputError: the CPU kernel is not built and no C compiler was found"
    )
    assert "apt install gcc" in message
    assert 'pip install "gsopt[compiler]"' in message


def test_a_failing_compiler_is_shown_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", f"{sys.executable} -c 'import sys; sys.exit(\"sorry\")'")
    with pytest.raises(build.CompilerFailed, match=r"(?s)compiling the CPU kernel failed: .*-o .*sorry"):
        build.compile_kernel(tmp_path, "baseline")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"CC": "/no/such/cc"},
            "the C compiler /no/such/cc cannot be run (No such file or directory); see $CC",
        ),
        ({"GSOPT_CACHE": "/dev/null"}, "/dev/null: the CPU kernel cannot be built there"),
    ],
)
def test_what_cannot_be_built_is_an_input_error(tmp_path, environment, message):
    done = python(SHOW, **{"GSOPT_CACHE": str(tmp_path)} | environment)
    assert done.stderr.strip().splitlines()[-1].startswith(f"gsopt.errors.InputError: {message}")


def test_a_damaged_library_is_named(tmp_path):
    (tmp_path / build.library_name("baseline")).write_bytes(b"not a library")
    done = python(SHOW, GSOPT_CACHE=str(tmp_path))
    assert "InputError" in done.stderr
    assert f"{tmp_path / build.library_name('baseline')}: not a library that can be loaded" in done.stderr


def test_others_may_read_what_was_built(tmp_path):
    built = build.compile_kernel(tmp_path, "baseline", extra_flags=("-O0",))
    usual = tmp_path / "usual"
    usual.touch()
    assert built.stat().st_mode & 0o444 == usual.stat().st_mode & 0o444


def test_the_name_of_a_library_follows_its_sources(tmp_path, monkeypatch):
    before = build.library_name("baseline")
    for path in build.SOURCES.glob("*.[ch]"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.library_name("baseline") == before
    (tmp_path / "pool.c").write_text("/* other */")
    assert build.library_name("baseline") != before


def test_the_compiler_asked_for_is_taken(monkeypatch):
    monkeypatch.setenv("CC", "my-cc --flag 'a b'")
    assert build.find_compiler() == ["my-cc", "--flag", "a b"]


def test_every_machine_runs_the_baseline():
    assert available_isas()[-1] == "baseline"


@pytest.mark.parametrize(
    ("compiler", "isa", "flags"),
    [
        (["/usr/bin/cc"], "baseline", ()),
        (["/usr/bin/cc"], "avx2", build.variants().get("avx2")),
        (["python", "-m", "ziglang", "cc"], "avx512", ("-mcpu=x86_64_v4",)),
        (["/opt/zig", "cc"], "avx2", ("-mcpu=x86_64_v3",)),
        (["/opt/zig", "cc"], "baseline", ("-mcpu=x86_64",)),  # it would take the building machine's processor
    ],
)
def test_a_variant_has_its_processors_instructions_and_no_others(compiler, isa, flags):
    if isa not in build.variants():
        pytest.skip("of another architecture")
    if platform.machine().lower() not in ("x86_64", "amd64") and len(compiler) > 1:
        flags = ("-mcpu=generic",)
    assert build._processor(compiler, isa) == flags
