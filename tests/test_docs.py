"""The documents: their Python works as it stands, their links lead somewhere, api.md is not stale."""

import os

import documents
import make_api
import pytest
import torch

import gsopt

# What a page's Python supposes to be there, and what would take long in it.
BEFORE = {
    "docs/batches.md": """
import gsopt, torch
model = gsopt.GaussianModel(5)
specs = gsopt.gaussian_specs(extent=1.0, iterations=100)
views = range(4)
loss = lambda view: model.xyz.square().sum()
""",
    "docs/monitoring.md": """
from pathlib import Path
import gsopt, torch
model = gsopt.GaussianModel(5)
opt = torch.optim.Adam(gsopt.build_groups(model, gsopt.gaussian_specs(1.0, 100)), lr=0.0)
folder, step = Path("events"), 50
""",
}
SMALLER = {
    "docs/joint.md": [("range(1000)", "range(2)"), ("resolution=320", "resolution=32")],
    "docs/results.md": [
        *(("range(33)", "range(4)"), ("[3:])[15]", "[3:])[0]")),
        *(("fox --resolution 480", "data/scene --resolution 64"), ("range(5)", "range(1)")),
    ],
}
PROGRAMS = ("docs/examples.md",)  # of which each block is a whole program
ELSEWHERE = ("docs/optimizers.md",)  # test_docs_optimizers.py


def with_python() -> list[str]:
    return [page for page in documents.pages() if documents.blocks(page, "python") and page not in ELSEWHERE]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that looks like the root of the repository, with the files that pages speak of."""
    (tmp_path / "data").symlink_to(documents.ROOT / "data")
    generator = torch.Generator().manual_seed(0)
    points, colors = torch.randn(500, 3, generator=generator) * 2, torch.rand(500, 3, generator=generator)
    for name in ("scene.ply", "room.ply"):
        gsopt.GaussianModel.from_points(points, colors).save_ply(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(documents.ROOT), prepend=os.pathsep)  # for what a page starts
    return tmp_path


@pytest.mark.parametrize("page", with_python())
def test_the_python_of_a_document_runs(page, workplace):
    """Its blocks one after another, from the root of the repository, as a reader would type them."""
    names: dict = {}
    exec(BEFORE.get(page, ""), names)
    for number, block in enumerate(documents.blocks(page, "python"), start=1):
        for text, shorter in SMALLER.get(page, ()):
            block = block.replace(text, shorter)
        exec(compile(block, f"{page}, block {number}", "exec"), {} if page in PROGRAMS else names)


def test_what_is_made_smaller_is_there():
    for page, changes in SMALLER.items():
        assert all(text in "".join(documents.blocks(page, "python")) for text, _ in changes), page
    assert {*BEFORE, *SMALLER, *PROGRAMS} <= set(with_python())


@pytest.mark.parametrize("page", documents.pages())
def test_links_between_documents_lead_somewhere(page):
    for link in documents.links(page):
        target, _, anchor = link.partition("#")
        path = (documents.ROOT / page).parent / target if target else documents.ROOT / page
        assert path.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in documents.anchors(str(path.resolve().relative_to(documents.ROOT))), (
                f"{page}: {link}"
            )


@pytest.mark.parametrize("page", [page for page in documents.pages() if page.startswith("docs/")])
def test_the_index_names_every_page(page):
    name = page.removeprefix("docs/")
    assert name == "README.md" or f"({name})" in documents.read("docs/README.md")


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("## Settings that scale", "settings-that-scale"),
        ("### For scripts: `--log-json`", "for-scripts---log-json"),
        ("## What [this](a.md) is", "what-this-is"),
        ("## `gsopt inspect`", "gsopt-inspect"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor, monkeypatch):
    monkeypatch.setattr(
        documents, "read", lambda page: f"# Page\n\n{heading}\n\n```\n# no heading\n```\n{heading}\n"
    )
    assert documents.anchors("any.md") == {"page", anchor, f"{anchor}-1"}


def test_the_api_page_is_that_of_the_docstrings():
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page(), "stale: python tests/make_api.py"


@pytest.mark.parametrize("name", make_api.public())
def test_what_is_public_has_a_docstring(name):
    thing = make_api.public()[name]
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{thing.__name__}("), (
        "a dataclass without docstring gets a made-up one"
    )
    for member, value in make_api.members(thing).items():
        assert value.__doc__, f"{name}.{member}"


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("What it is.", "What it is."),
        ("See :func:`freeze` and :class:`GroupSpec`.", "See `freeze` and `GroupSpec`."),
        ("A.\n\nArgs:\n    lr: rate,\n        0 or more.", "A.\n\n**Args**\n\n- `lr`: rate,\n  0 or more."),
        ("A.\n\nReturns:\n    A tuple of\n\n    - one", "A.\n\n**Returns**\n\nA tuple of\n\n- one"),
        ("A.\n\nRaises:\n    ValueError: no.\n\nAfter.", "A.\n\n**Raises**\n\n- `ValueError`: no.\n\nAfter."),
    ],
)
def test_docstrings_as_markdown(docstring, expected):
    assert make_api.markdown(docstring) == expected
