"""Which runs a sweep has: configurations from text, their names and folders, and what is refused."""

import re
from pathlib import Path

import pytest
import sweeping
from hypothesis import given
from hypothesis import strategies as st

from gsopt.device import cpu_count
from gsopt.errors import InputError
from gsopt.model import ATTRIBUTES
from gsopt.rundir import write_json
from gsopt.sweep.grid import configurations, evenly, freeze_flags, pick_baseline
from gsopt.sweep.runner import is_finished, owned

CONFIGURATIONS = [  # --freeze, name, folder, flags of train
    ("none", "none", "none", ""),
    ("xyz", "xyz", "xyz", "--freeze xyz"),
    ("scaling+rotation", "scaling+rotation", "scaling+rotation", "--freeze scaling rotation"),
    ("scaling, rotation", "scaling+ rotation", "scaling+_rotation", "--freeze scaling rotation"),
    ("opacity@0:1000", "opacity@0:1000", "opacity@0-1000", "--freeze opacity@0:1000"),
    ("xyz@0:5,xyz@9:", "xyz@0:5+xyz@9:", "xyz@0-5+xyz@9-", "--freeze xyz@0:5 xyz@9:"),
    ("exclude:xyz", "exclude:xyz", "exclude-xyz", "--exclude xyz"),
    ("exclude:xyz+opacity", "exclude:xyz+opacity", "exclude-xyz+opacity", "--freeze opacity --exclude xyz"),
]


@pytest.mark.parametrize(("text", "name", "folder", "flags"), CONFIGURATIONS)
def test_one_configuration(text, name, folder, flags):
    (cell,) = configurations([text], [])
    assert (cell.name, cell.folder, " ".join(cell.flags)) == (name, folder, flags)
    assert cell.choices == {"freeze": name}


VARIED = [  # --vary, names, flags of train
    ("optimizer=adam,sgd", "optimizer=adam optimizer=sgd", "--optimizer adam|--optimizer sgd"),
    ("--sh_degree=0", "sh-degree=0", "--sh-degree 0"),
    ("antialiased=true,False", "antialiased=true antialiased=False", "--antialiased|--no-antialiased"),
    ("densify.absgrad=false", "densify.absgrad=false", "--densify.no-absgrad"),
    ("iterations=10,20", "iterations=10 iterations=20", "--iterations 10|--iterations 20"),
    (
        "groups.xyz.schedule=constant;cosine:0.1,warmup:9",
        "groups.xyz.schedule=constant groups.xyz.schedule=cosine:0.1,warmup:9",
        "--groups.xyz.schedule constant|--groups.xyz.schedule cosine:0.1,warmup:9",
    ),
]


@pytest.mark.parametrize(("text", "names", "flags"), VARIED)
def test_another_axis(text, names, flags):
    cells = configurations([], [text])
    assert [cell.name for cell in cells] == names.split()
    assert [" ".join(cell.flags) for cell in cells] == flags.split("|")


def test_the_product_of_axes():
    cells = configurations(["none", "xyz"], ["optimizer=adam,sgd", "groups.xyz.lr=1e-4"])
    assert [cell.name for cell in cells] == [
        f"{frozen},optimizer={name},groups.xyz.lr=1e-4"
        for frozen in ("none", "xyz")
        for name in ("adam", "sgd")
    ]
    assert cells[3].choices == {"freeze": "xyz", "optimizer": "sgd", "groups.xyz.lr": "1e-4"}
    assert cells[3].flags == ("--freeze", "xyz", "--optimizer", "sgd", "--groups.xyz.lr", "1e-4")


@pytest.mark.parametrize(
    ("freeze", "vary", "message"),
    [
        ([], [], "--freeze, --vary: found neither"),
        ([""], [], "--freeze : expected"),
        (["xyz+"], [], "--freeze xyz+: expected"),
        (["none+xyz"], [], "--freeze none+xyz: expected"),
        (["exclude:"], [], "--freeze exclude:: expected"),
        (["xyz", "xyz"], [], "xyz and xyz would have the same folder"),
        (["xyz@0:5", "xyz@0-5"], [], "xyz@0:5 and xyz@0-5 would have the same folder"),
        ([], ["optimizer"], "--vary optimizer: expected a flag of gsopt train and its values"),
        ([], ["=adam"], "--vary =adam: expected"),
        ([], ["optimizer=adam,"], "--vary optimizer=adam,: expected"),
        ([], ["a=1,1"], "a=1 and a=1 would have the same folder"),
        ([], ["a=1", "a=2"], "--vary a=2: a is varied already"),
        ([], ["freeze=none,xyz"], "give --freeze none xyz instead"),
        ([], ["seed=1,2"], "give --seeds to the sweep"),
        ([], ["scene=a,b"], "give --scene to the sweep"),
    ],
)
def test_refused(freeze, vary, message):
    with pytest.raises(InputError, match=re.escape(message)):
        configurations(freeze, vary)


windows = st.sampled_from(["", "@0:500", "@500:", "@:9"])
parts = st.builds(str.__add__, st.sampled_from(ATTRIBUTES), windows)


@given(st.lists(parts), st.lists(st.sampled_from(ATTRIBUTES)), st.sampled_from("+,"))
def test_nothing_of_a_configuration_is_lost(frozen, excluded, joint):
    text = joint.join([*frozen, *(f"exclude:{name}" for name in excluded)])
    words = list(freeze_flags(text or "none"))
    expected = (["--freeze", *frozen] if frozen else []) + (["--exclude", *excluded] if excluded else [])
    assert words == expected


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=";")))
def test_a_folder_is_one_plain_name(value):
    try:
        (cell,) = configurations([], [f"groups.xyz.schedule=constant;{value}"])[1:]
    except InputError:
        return
    assert re.fullmatch(r"groups\.xyz\.schedule=[\w.+=@,-]+", cell.folder)
    assert len(Path(cell.folder).parts) == 1


@given(st.integers(1, 50_000), st.integers(1, 30))
def test_tests_are_evenly_over_a_run(iterations, count):
    tests = evenly(iterations, count)
    assert tests[-1] == iterations
    assert len(tests) == min(iterations, count)
    gaps = [after - before for before, after in zip((0, *tests), tests, strict=False)]
    assert 1 <= min(gaps) <= max(gaps) <= min(gaps) + 1


@pytest.mark.parametrize(
    ("names", "given_name", "baseline"),
    [
        (["xyz", "none"], None, "none"),
        (["xyz", "opacity"], None, "xyz"),
        (["xyz", "none"], "xyz", "xyz"),
    ],
)
def test_what_others_are_compared_with(names, given_name, baseline):
    assert pick_baseline(configurations(names, []), given_name).name == baseline


def test_an_unknown_baseline_is_refused():
    with pytest.raises(InputError, match="--baseline sgd: no such configuration; there are none xyz"):
        pick_baseline(configurations(["none", "xyz"], []), "sgd")


def test_a_plan_says_everything_about_each_run(tmp_path):
    runs = sweeping.runs(tmp_path)
    assert [run.name for run in runs] == ["none, seed 0", "xyz, seed 0", "none, seed 1", "xyz, seed 1"]
    assert runs[3].folder.path == runs[3].config.output == tmp_path / "runs" / "xyz" / "seed-1"
    assert runs[3].config.seed == 1
    for run in runs:
        assert run.config.test_iterations == (50, 100)
        assert run.config.threads == cpu_count()
        assert run.config == run.config.resolved("cpu")
    (run,) = sweeping.runs(tmp_path, ["none"], seeds=[0], threads=7, test_iterations=(3,))
    assert (run.config.threads, run.config.test_iterations) == (7, (3,))


def test_a_bad_configuration_is_named(tmp_path):
    with pytest.raises(InputError, match="none: --seed -1: expected 0 or more"):
        sweeping.runs(tmp_path, seeds=[-1])


def test_a_run_is_finished_by_its_metrics_at_the_end_with_its_settings(tmp_path):
    run, other = sweeping.runs(tmp_path, ["none"])
    assert not is_finished(run)
    write_json(run.folder.config, run.config.to_json())
    assert not is_finished(run)
    write_json(run.folder.metrics, sweeping.metrics(30.0) | {"iterations": 50})
    assert not is_finished(run)
    write_json(run.folder.metrics, sweeping.metrics(30.0))
    assert is_finished(run)
    (again,) = sweeping.runs(tmp_path, ["none"], seeds=[0], threads=1, quiet=True)
    assert is_finished(again)  # which has no part in what comes of it
    (longer,) = sweeping.runs(tmp_path, ["none"], seeds=[0], iterations=200)
    with pytest.raises(InputError, match="this run has --iterations 100, and the sweep asks for 200; give"):
        is_finished(longer)
    assert not is_finished(other)


def test_one_sweep_at_a_time_in_a_folder(tmp_path):
    busy = pytest.raises(InputError, match=r"--output .*a: a sweep, or a run of one, is at work in here")
    with owned(tmp_path / "a"), owned(tmp_path / "b"), busy, owned(tmp_path / "a"):
        pass
    with owned(tmp_path / "a"):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"--output .*file: cannot make this folder"),
        owned(tmp_path / "file"),
    ):
        pass
