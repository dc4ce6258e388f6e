"""Which device a run uses and why, as far as it can be told without CUDA; and `gsopt doctor`."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gsopt.commands import doctor, main
from gsopt.device import choose_device, has_fused_optimizers, moment, pinned, seconds_between
from gsopt.errors import InputError
from gsopt.native import build

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def machine(monkeypatch):
    """A function that lets torch see a CUDA device or not, and gsplat be there, missing or broken."""

    def make(card: bool, gsplat: str, built: str | None = "12.8") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.version, "hip", None)
        module = {"there": SimpleNamespace(), "missing": None}.get(gsplat)
        monkeypatch.setitem(sys.modules, "gsplat", module)
        if gsplat == "broken":

            def fail(name: str) -> None:
                raise ImportError("libcudart.so.12: cannot open shared object file")

            monkeypatch.setattr("gsopt.device.importlib.import_module", fail)

    return make


MISSING = 'gsplat is not installed: pip install "gsopt[cuda]"'
BROKEN = "gsplat cannot be imported (libcudart.so.12: cannot open shared object file)"


@pytest.mark.parametrize(
    ("name", "card", "gsplat", "backend", "device", "reason"),
    [
        ("auto", True, "there", "auto", "cuda", "not the CPU: --device auto takes CUDA where it can be used"),
        ("cuda", True, "there", "auto", "cuda", "not the CPU: --device cuda"),
        ("cpu", True, "there", "auto", "cpu", "not CUDA: --device cpu"),
        ("auto", True, "missing", "auto", "cpu", f"not CUDA: {MISSING}"),
        ("auto", True, "broken", "auto", "cpu", f"not CUDA: {BROKEN}"),
        ("auto", True, "missing", "reference", "cuda", "not the CPU: --device auto takes CUDA where it can"),
        ("auto", False, "there", "auto", "cpu", "not CUDA: torch finds no CUDA device here"),
        ("auto", False, "missing", "auto", "cpu", "not CUDA: torch finds no CUDA device here"),
    ],
)
def test_which_device_and_why_not_the_other(machine, name, card, gsplat, backend, device, reason):
    machine(card, gsplat)
    chosen = choose_device(name, backend)
    assert chosen.device.type == device
    assert chosen.reason.startswith(reason)


@pytest.mark.parametrize(
    ("card", "gsplat", "built", "message"),
    [
        (False, "there", "12.8", "torch finds no CUDA device here; use --device cpu"),
        (False, "there", None, "torch finds no CUDA device here; it is built without CUDA; use --device cpu"),
        (True, "missing", "12.8", f"{MISSING}; use --device cpu"),
        (True, "broken", "12.8", f"{BROKEN}; use --device cpu"),
    ],
)
def test_cuda_that_is_asked_for_and_cannot_be_used(machine, card, gsplat, built, message):
    machine(card, gsplat, built)
    with pytest.raises(InputError, match=f"^--device cuda: {re.escape(message)}$"):
        choose_device("cuda")


def test_a_machine_without_a_card_never_imports_gsplat(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("gsopt.device.importlib.import_module", lambda name: pytest.fail(f"imports {name}"))
    assert choose_device().device.type == "cpu"


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("cuda", True), ("meta", False)])
def test_where_optimizers_are_fused(device, fused):
    assert has_fused_optimizers(torch.device(device)) == fused


def test_on_the_cpu_moments_are_seconds_and_nothing_is_pinned():
    device, photo = torch.device("cpu"), torch.zeros(3)
    begin = moment(device)
    assert seconds_between(begin, moment(device)) >= 0
    assert pinned(photo, device) is photo


# ---- doctor


def test_doctor_says_what_a_run_would_use(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    words = "gsopt cpu torch CUDA nvcc gsplat compiler kernel photos extras uses"
    assert [line.split()[0] for line in text.splitlines()] == words.split()
    assert f"torch     {torch.__version__}" in text


def test_doctor_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == doctor.examine()
    assert found["kernel"]["variant"] in found["kernel"]["variants"]
    assert found["uses"]["device"] == choose_device().device.type


def test_doctor_with_a_card_and_without_a_compiler(machine, monkeypatch):
    machine(True, "missing")
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)

    def no_compiler() -> list[str]:
        raise build.NoCompiler("no C compiler was found")

    monkeypatch.setattr(build, "find_compiler", no_compiler)
    text = "\n".join(doctor.lines(doctor.examine()))
    assert "CUDA      NVIDIA H100 (80 GiB, compute capability 9.0)" in text
    assert "compiler  no C compiler was found" in text
    assert f"(not CUDA: {MISSING})" in text


def test_doctor_with_a_kernel_that_does_not_load(monkeypatch):
    def broken() -> None:
        raise InputError("GSOPT_ISA: expected one of avx2, found 'mmx'")

    monkeypatch.setattr("gsopt.native.library", broken)
    text = "\n".join(doctor.lines(doctor.examine()))
    assert "kernel    GSOPT_ISA: expected one of avx2, found 'mmx'" in text


def test_doctor_knows_every_extra():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = re.search(r"^EXTRAS = \{(.*?)^\}", text, re.MULTILINE | re.DOTALL).group(1)
    named = set(re.findall(r'^    "(\w+)": \[', block, re.MULTILINE))
    assert named - {"test", "scene"} == set(doctor.EXTRAS)  # those two are for work on gsopt itself
    for extra, package in doctor.EXTRAS.items():
        assert re.search(rf'"{extra}": \["{package}[>=]', block), extra
