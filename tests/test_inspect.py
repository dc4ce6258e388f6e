"""`gsopt inspect` on real small runs: groups, parameters, moments, and two files compared by name."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scenes
import torch

from gsopt import checkpoint
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.group_options import GroupOptions, Groups
from gsopt.inspection import compare, open_snapshot
from gsopt.model import ATTRIBUTES
from gsopt.strategy import DefaultStrategy
from gsopt.text import narrow_table
from gsopt.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """16 steps with xyz excluded, rotation frozen, weight decay on feature_rest, growing rows."""
    folder = tmp_path_factory.mktemp("inspect")
    config = TrainConfig(
        scene=scenes.write_nerf_synthetic(folder / "ball", points=60),
        output=folder / "run",
        iterations=16,
        checkpoint_every=8,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        freeze=("rotation",),
        exclude=("xyz",),
        groups=Groups(
            feature_rest=GroupOptions(weight_decay=0.5), opacity=GroupOptions(lr=0.02, schedule="exp:0.1")
        ),
        strategy="default",
        densify=DefaultStrategy(
            refine_start_iter=2, refine_stop_iter=90, refine_every=4, grow_grad2d=1e-5, grow_scale3d=1.0
        ),
    )
    trainer = Trainer(config)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def files(run):
    """The checkpoints after 8 and after 16 steps."""
    return [checkpoint.path_of(run.run.checkpoints, step) for step in (8, 16)]


def output(capsys, *words) -> str:
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def cells(text: str, name: str) -> list[list[str]]:
    """The words of each line that begins with `name`."""
    return [line.split() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_a_run_is_its_newest_checkpoint(run, files, capsys):
    text = output(capsys, run.run.path)
    assert text == output(capsys, run.run.checkpoints)
    assert text == output(capsys, files[1])
    rows = run.model.num_gaussians
    assert rows > 60
    assert text.splitlines()[:2] == [
        str(files[1]),
        f"gsopt checkpoint, step 16, optimizer adam, run of 16 iterations, {rows:,} rows",
    ]
    assert all(len(line) <= 110 for line in text.splitlines()[1:])


def test_groups_with_rate_schedule_decay_and_freeze(run, capsys):
    text = output(capsys, run.run.path)
    groups = {name: cells(text, name)[0][1:] for name in ATTRIBUTES}
    schedule = str(run.specs["opacity"].schedule)  # as text, which begins "exp:0.1": a tenth at the end
    assert schedule.startswith("exp:0.1")
    settling = "constant@13 then cosine:0.1@3"  # of those that are given none
    assert groups["opacity"] == ["0.002", "0.02", schedule, "0", "no"]
    assert groups["rotation"][2:] == [*settling.split(), "0", "yes"]
    assert groups["feature_rest"][2:] == [*settling.split(), "0.5", "no"]
    assert "not in the optimizer: xyz" in text
    assert "all groups: betas (0.9, 0.999), eps 1e-15" in text


def test_parameters_with_rows_shape_norm_and_moments(run, capsys):
    text = output(capsys, run.run.path)
    rows = run.model.num_gaussians
    for name in ATTRIBUTES:
        parameter = run.model.get_parameter(name)
        found = " ".join(cells(text, name)[-1])
        norm = f"{parameter.detach().double().norm().item():.4g}"
        assert found.startswith(f"{name} {rows} {list(parameter.shape)} {norm} ")
        state = run.optimizer.state.get(parameter, {})
        moments = [f"{state[key].double().norm().item():.4g}" for key in ("exp_avg", "exp_avg_sq") if state]
        assert found.endswith(" ".join(["16", *moments] if state else ["-", "-", "-"]))


def test_json_has_all_of_it(run, capsys):
    found = json.loads(output(capsys, run.run.path, "--json"))
    assert (found["kind"], found["step"], found["notes"]) == ("gsopt checkpoint", 16, [])
    assert list(found["groups"]) == [name for name in ATTRIBUTES if name != "xyz"]
    opacity = found["groups"]["opacity"]
    assert (opacity["initial_lr"], opacity["frozen"]) == (0.02, False)
    assert opacity["schedule"] == str(run.specs["opacity"].schedule)
    assert opacity["betas"] == [0.9, 0.999]
    assert found["parameters"]["xyz"]["group"] is None
    parameter = run.model.scaling
    moment = run.optimizer.state[parameter]["exp_avg"]
    assert found["parameters"]["scaling"]["norm"] == pytest.approx(parameter.detach().norm().item())
    assert found["parameters"]["scaling"]["state"] == {
        "step": 16.0,
        "exp_avg": {"shape": list(moment.shape), "norm": pytest.approx(moment.norm().item())},
        "exp_avg_sq": {"shape": list(moment.shape), "norm": pytest.approx(0, abs=1)},
    }


def test_a_splat_has_parameters_without_groups(run, capsys):
    text = output(capsys, run.run.ply(16))
    assert "splat PLY, no optimizer in it" in text
    assert [line.split()[0] for line in text.splitlines()[4:]] == list(ATTRIBUTES)
    assert "group" not in text


# ---------------------------------------- two files


def test_the_same_file_twice(files, capsys):
    text = output(capsys, "--diff", files[1], files[1])
    assert text.splitlines()[-1] == "nothing differs"
    assert "same bits: feature_dc, feature_rest, scaling, rotation, opacity, xyz" in text


def test_a_checkpoint_and_the_splat_of_the_same_step(run, files, capsys):
    text = output(capsys, files[1], "--diff", run.run.ply(16))
    assert "B has no optimizer: only values are compared" in text
    assert text.splitlines()[-1] == "nothing differs"


@pytest.fixture
def changed(files, tmp_path):
    """A copy of the last checkpoint, changed by a function, and where it is."""

    def make(change):
        state = checkpoint.load(files[1])
        change(state)
        checkpoint.save(tmp_path / "changed.pt", state)
        return tmp_path / "changed.pt"

    return make


def test_rows_that_differ_are_counted(files, changed, capsys):
    def change(state):
        state["model"]["scaling"][2:5] += 0.25
        state["model"]["scaling"][7, 0] -= 0.5
        state["optimizer"]["state"][2]["exp_avg"][:1] = 0

    a, b = files[1], changed(change)
    found = compare(open_snapshot(a), open_snapshot(b))
    by_entry = {(e.parameter, e.entry): e for e in found.entries if not e.same_bits}
    assert list(by_entry) == [("scaling", "value"), ("scaling", "exp_avg")]
    value = by_entry["scaling", "value"]
    before = open_snapshot(a).parameters["scaling"].value
    assert value.rows == (4, len(before))
    assert value.largest == pytest.approx(0.5)
    size = (9 * 0.25**2 + 0.5**2) ** 0.5
    assert value.relative == pytest.approx(size / before.norm().item(), rel=1e-4)

    text = output(capsys, "--diff", a, b)
    row = cells(text, "scaling")[0]
    assert row[:6] == ["scaling", "value", "4", "of", str(len(before)), "rows"]
    assert row[6] == "0.5"
    assert "same bits: feature_dc, feature_rest, rotation, opacity, xyz" in text
    as_json = json.loads(output(capsys, "--diff", "--json", a, b))
    assert as_json["parameters"]["scaling"]["value"]["rows_differing"] == 4
    assert not as_json["same"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["optimizer"]["param_groups"][4].update(lr=0.5), ["opacity.lr 0.002 0.5"]),
        (lambda s: s["optimizer"]["param_groups"][3].update(frozen=False), ["rotation.frozen True False"]),
        (lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.5, 0.9)), ["(0.9, 0.999) (0.5, 0.9)"]),
        (
            lambda s: s["config"]["groups"]["opacity"].update(schedule=None),
            ["opacity.schedule exp:0.1", " constant"],
        ),
        (lambda s: s["optimizer"]["state"].pop(2), ["scaling step, exp_avg, exp_avg_sq only in A - -"]),
        (lambda s: s["optimizer"]["state"][2]["step"].fill_(9), ["scaling step 16 and 9 7 0.4375"]),
        (lambda s: s["model"].pop("xyz"), ["only in A: xyz"]),
        (lambda s: s["model"]["xyz"].neg_().neg_(), ["nothing differs"]),
        (lambda s: s["model"].update(xyz=s["model"]["xyz"].double()), ["xyz value float32 and float64 0 0"]),
        (lambda s: s["model"]["xyz"].fill_(float("nan")), ["xyz value", "nan nan"]),
    ],
    ids=["lr", "frozen", "betas", "schedule", "no state", "step", "absent", "same", "type", "nan"],
)
def test_one_thing_that_differs(files, changed, capsys, change, said):
    text = output(capsys, "--diff", files[1], changed(change))
    plain = " ".join(text.split())
    assert all(words in plain for words in said)


def test_zeros_of_another_sign_are_other_bits(files, changed):
    a = changed(lambda s: s["model"]["xyz"].zero_())
    zero = open_snapshot(a)
    b = changed(lambda s: s["model"]["xyz"].zero_().neg_())
    entry = compare(zero, open_snapshot(b)).entries[-1]
    assert (entry.parameter, entry.same_bits, entry.rows[0]) == ("xyz", False, entry.rows[1])
    assert (entry.largest, entry.relative) == (0, 0)


def test_rows_added_since(files, capsys):
    text = output(capsys, "--diff", *files)
    a, b = (open_snapshot(path).parameters["opacity"].shape[0] for path in files)
    assert a != b
    assert [*cells(text, "xyz")[0]] == ["xyz", "value", str(a), "and", str(b), "rows", "-", "-"]
    assert f"opacity value, exp_avg, exp_avg_sq {a} and {b} rows - -" in " ".join(text.split())


def test_an_excluded_attribute_is_an_option_of_its_group(run, files, tmp_path, capsys):
    config = replace(TrainConfig.of_run(run.run.path), resume=None, output=tmp_path / "b", exclude=())
    other = Trainer(config)
    other.train()
    text = output(capsys, "--diff", run.run.path, other.run.path)
    assert ["xyz.group", "excluded", "xyz"] in [line.split() for line in text.splitlines()]


# ---------------------------------------- words, damage, the script


def test_long_names_and_many_columns_stay_narrow():
    header = ["parameter", *(f"moment_{i}" for i in range(12))]
    rows = [
        ["transformer.layers.11.self_attention.in_proj_weight", *"abcdefghijkl"],
        ["b", *"0" * 12],
    ]
    lines = narrow_table(header, rows, 60)
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith("parameter") for line in lines) == 4
    assert lines[1].startswith("transfor...oj_weight")
    text = "\n".join(lines)
    assert all(word in text for word in header)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a file or the folder of a run, found none"),
        (["--diff", "a"], "--diff: expected two files or folders, found 1"),
        (["--diff", "a", "b", "c"], "--diff: expected two files or folders, found 3"),
        (["nowhere"], "nowhere: no such file or folder; give a checkpoint"),
        ([str(ROOT)], "not the folder of a run"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_words_that_cannot_be_used(words, message, capsys):
    assert main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gsopt: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_run_without_checkpoints(run, tmp_path, capsys):
    copy = shutil.copytree(run.run.path, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    assert main(["inspect", str(copy)]) == 2
    assert "no checkpoint in this run yet; give one of its PLYs" in capsys.readouterr().err


def test_settings_of_another_version_leave_the_schedules_open(changed, capsys):
    path = changed(lambda s: s["config"].update(warp_drive=True))
    text = output(capsys, path)
    assert cells(text, "opacity")[0][1:4] == ["0.002", "0.02", "-"]
    assert "note: schedules: not known" in text
    assert "warp_drive" in text


def test_what_is_trained_beside_the_model(changed, capsys):
    """It is in the checkpoint as "joint", and its groups have its name before theirs."""

    def add(state):
        state["joint"] = {"poses": {"delta": torch.full((4, 6), 0.5)}}
        group = {"name": "poses", "params": [99], "param_names": ["poses.delta"], "lr": 0.25}
        state["optimizer"]["param_groups"].append(group)
        state["optimizer"]["state"][99] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4, 6)}

    text = output(capsys, changed(add))
    assert cells(text, "poses") == [["poses", "0.25", "-", "-", "-", "-"]]
    assert cells(text, "poses.delta") == [
        ["poses.delta", "poses", "4", "[4,", "6]", "2.449", "3", "0", "-"],
    ]


@pytest.mark.parametrize("part", ["model", "optimizer", "config", "step"])
def test_a_checkpoint_that_lacks_a_part(changed, capsys, part):
    assert main(["inspect", str(changed(lambda s: s.pop(part)))]) == 2
    assert f"a checkpoint without {part}" in capsys.readouterr().err


def test_a_damaged_checkpoint(files, tmp_path, capsys):
    content = bytearray(files[1].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    assert main(["inspect", str(tmp_path / "a.pt")]) == 2
    assert "the checksum of" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["import inspect; print(inspect.__doc__)", "import torch; print('Get')"])
def test_the_script_does_not_hide_the_module_of_python(program):
    """A script's folder is the first place that Python looks for modules in."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith("Get")


def test_nothing_was_changed_by_looking(files, run):
    before = files[1].read_bytes()
    open_snapshot(run.run.path)
    assert files[1].read_bytes() == before
    assert torch.equal(open_snapshot(files[1]).parameters["xyz"].value, run.model.xyz.detach())
