"""The examples of docs/optimizers.md run as they are written."""

import re
from pathlib import Path

import pytest
import torch

from gsopt.native import get_num_threads, set_num_threads

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "optimizers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number, capsys):
    before = torch.get_num_threads(), get_num_threads()
    try:
        smaller = EXAMPLES[number].replace("100_000, 0.3, 60", "1_000, 0.3, 2")
        exec(compile(smaller, f"docs/optimizers.md, example {number}", "exec"), {})
    finally:
        torch.set_num_threads(before[0])
        set_num_threads(before[1])
    if "print(" in smaller:
        assert "adam" in capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) == 3
