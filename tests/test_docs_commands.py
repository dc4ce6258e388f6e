"""Every command of the documents: read by the program's own parser, and, if slow tests are asked for, run."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys

import doc_commands
import documents
import pytest

from gsopt import commands
from gsopt.commands.flags import parse
from gsopt.config import TrainConfig

BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in documents.pages()
    for number, block in enumerate(documents.shell(page), start=1)
]
# What stands for a choice of the reader's, or would only wait, as a regular expression.
CHOSEN = {r"--optimizer OPTIMIZER": "--optimizer adam", r"--iterations N": "--iterations 60"}
WAITING = {r"KILL_AFTER\(\) \{.*\}": "KILL_AFTER() { wait; }"}
# What is not run, and why.
NOT_RUN = {
    r"^(python -m )?pip install": "needs the network; what the README begins with is run on a clean clone",
    r"^python -m pytest": "would run itself",
    r"^python data/make_scene.py": "takes 20 minutes, and Mitsuba",
    r"^python tests/": "takes long, and 10 GB or a browser",
    r"^(jq|sha256sum) ": "of the system",
    r"^gsopt view ": "stays until Ctrl-C: test_view_command.py",
    r"^gsopt prepare ": "needs photos that COLMAP can match: test_prepare.py",
    r"--lpips": "downloads weights: test_perceptual.py",
    r"--device cuda": "needs CUDA",
    r"--growth": "takes 2 GB: test_bench.py",
}

HEREDOC = re.compile(r"<<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)


def extras() -> set[str]:
    tree = ast.parse((documents.ROOT / "setup.py").read_text(encoding="utf-8"))
    found = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "EXTRAS")
    return {key.value for key in found.keys}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    doc_commands.fill(folder)
    return folder


@pytest.fixture
def place(filled, tmp_path, monkeypatch):
    """A copy of what documents speak of, as working folder."""
    folder = tmp_path / "place"
    shutil.copytree(filled, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def typed(block, tmp_path):
    for changes in (CHOSEN, WAITING):
        for text, instead in changes.items():
            block = re.sub(text, instead, block)
    return doc_commands.recorded(block, tmp_path / "shell")


def parsed(argv, monkeypatch):
    """Hand arguments to the command, which stops where it would begin to work."""
    seen = []
    module = importlib.import_module(f"gsopt.commands.{argv[0].replace('-', '_')}")
    with monkeypatch.context() as patch:
        if hasattr(module, "Sweep"):
            patch.setattr(module.Sweep, "run", lambda sweep: seen.append(sweep.config))
        else:
            patch.setattr(module, "run", lambda config, *_: seen.append(config))
        assert commands.main(argv) == 0, argv
    (config,) = seen
    if hasattr(config, "check"):
        config.check()
    if argv[0] == "train-blocks" and "--" in argv:
        parse(TrainConfig, argv[argv.index("--") + 1 :], "gsopt train", "")
    for training in getattr(config, "trainings", ()):
        flags = [part for word in training.split(",") for part in f"--{word}".split("=")]
        parse(TrainConfig, flags, "gsopt train", "")


@pytest.mark.parametrize("block", BLOCKS)
def test_a_command_is_understood(block, place, tmp_path, monkeypatch, capsys):
    for words in typed(block, tmp_path):
        argv = doc_commands.as_gsopt(words)
        if argv is not None:
            parsed(argv, monkeypatch)
        elif "pip" in words[:3]:
            named = {name for word in words for name in re.findall(r"\[(\w+)\]", word)}
            assert named <= extras(), words
        elif words[0] == "python" and words[1] not in ("-", "-m"):
            assert (place / words[1]).is_file(), words
    assert "warning" not in capsys.readouterr().err


def reason_not_to_run(words):
    line = " ".join(words)
    return next((reason for text, reason in NOT_RUN.items() if re.search(text, line)), None)


def test_what_is_not_run_is_there(tmp_path):
    lines = "\n".join(
        " ".join(words)
        for number, block in enumerate(BLOCKS)
        for words in typed(block.values[0], tmp_path / str(number))
    )
    unused = [text for text in NOT_RUN if not re.search(text, lines, re.MULTILINE)]
    assert not unused


def smaller(argv):
    """The same command with less to do, where its page asks for what takes minutes on a real scene."""
    line = " ".join(argv)
    if argv[0] == "train" and "--resume" not in argv:
        begins = max([int(n) for n in re.findall(r"@(\d+):|--start-step (\d+)", line) for n in n if n] or [0])
        few = ["--iterations", str(begins + 6)] if "--iterations" not in argv else []
        argv = [word for word in argv if word != "--viewer-stay"]  # until Ctrl-C
        return [*argv, *few, *(["--viewer-port", "0"] if "--viewer" in argv else [])]
    if argv[0] == "bench":
        sizes = [] if "--scene" in argv else ["--sizes", "300@48x32"]
        swapped = re.sub(
            r"--sizes [a-z ]*[a-z]", "", re.sub(r"--iterations \d+", "--iterations 60", line)
        ).split()
        if "--strategies" in argv and "--iterations" not in argv:
            sizes += ["--iterations", "60"]
        return [*swapped, *sizes, "--rounds", "1", "--steps", "1"]
    return argv


def own_environment():
    return os.environ | {"PYTHONPATH": str(documents.ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_command_runs(block, place, tmp_path, monkeypatch, small_probes):
    """One after another on tiny scenes: each ends well, or is in NOT_RUN."""
    if "--compare before.json" in block:
        assert commands.main(smaller(["bench", "--json", "before.json"])) == 0
    for words in typed(block, tmp_path):
        if reason_not_to_run(words):
            continue
        if words[0] == "timeout":  # which may kill it at any moment
            subprocess.run([*words[:4], sys.executable, "-m", *words[4:]], env=own_environment(), check=False)
            continue
        if words[0] == "gsopt":
            assert commands.main(smaller(words[1:])) == 0, words
            continue
        program = (
            [sys.executable, "-m", "torch.distributed.run"] if words[0] == "torchrun" else [sys.executable]
        )
        data = HEREDOC.search(block)
        done = subprocess.run(
            [*program, *words[1:], *(["--iterations", "6"] if words[0] == "torchrun" else [])],
            input=data[1].replace("10000000", "100000").replace("range(100)", "range(1)") if data else None,
            env=own_environment(),
            **{"text": True, "capture_output": True, "timeout": 600},
        )
        assert done.returncode == 0, (words, done.stderr)
