"""`gsopt train --resume RUN` with flags on top: what may change in a run, and what may not and why."""

import json
import shutil

import pytest
import scenes
import torch

from gsopt import checkpoint
from gsopt.commands import main
from gsopt.limits import FIXED
from gsopt.rundir import read_json

DONE, END = 20, 30  # steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("flags")


@pytest.fixture(scope="module")
def finished(folder):
    """A run of 20 steps on the ball, which densifies."""
    scene = scenes.write_nerf_synthetic(folder / "ball", points=60)
    flags = ["--iterations", str(DONE), "--device", "cpu", "--quiet", "--strategy", "default"]
    flags += [
        "--densify.grow-grad2d",
        "1e-5",
        "--densify.refine-start-iter",
        "5",
        "--densify.refine-every",
        "5",
    ]
    flags += ["--densify.refine-stop-iter", "18", "--sh-degree-every", "4"]
    assert main(["train", "--scene", str(scene), "--output", str(folder / "run"), *flags]) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def state_of(run) -> dict:
    return checkpoint.load(checkpoint.latest(run / "checkpoints"))


def moments(state: dict, name: str) -> dict:
    """An attribute's state in the optimizer, {} where it is not in it."""
    for group in state["optimizer"]["param_groups"]:
        if group["name"] == name:
            return state["optimizer"]["state"].get(group["params"][0], {})
    return {}


def still(*names):
    """These attributes keep their bits, and no other does."""

    def check(before, after):
        kept = {name for name in before["model"] if torch.equal(before["model"][name], after["model"][name])}
        assert kept == set(names)

    return check


def fresh(before, after):
    """Every moment is of the steps since the change: Adam's count tells."""
    assert {float(moments(after, name)["step"]) for name in ("xyz", "opacity")} == {END - DONE}


def goes_on(before, after):
    assert {float(moments(after, name)["step"]) for name in ("xyz", "opacity")} == {END}


def each_row_goes_on(before, after):
    """visible_adam takes Adam's one count over as that of each row, and goes on from there."""
    assert moments(after, "xyz")["step"].shape == after["model"]["xyz"].shape[:1]
    assert moments(after, "xyz")["step"].max() == END
    assert moments(after, "xyz")["step"].min() >= DONE


def of_strategy(kind: str, grows: bool):
    def check(before, after):
        assert (before["strategy_kind"], after["strategy_kind"]) == ("DefaultStrategy", kind)
        assert (len(after["model"]["xyz"]) > len(before["model"]["xyz"])) == grows

    return check


def excluded(before, after):
    still("rotation")(before, after)
    assert moments(before, "rotation")
    assert moments(after, "rotation") == {}


def none_of_them(before, after):
    """SGD without momentum keeps nothing, and needs nothing of what Adam kept."""
    assert not any(key.startswith("exp_avg") for key in moments(after, "xyz"))
    assert not torch.equal(before["model"]["xyz"], after["model"]["xyz"])


def late(part: str) -> list[str]:
    """Rows change after step 25."""
    values = {"refine-every": 5, "refine-start-iter": 0, "refine-stop-iter": 40}
    return [text for name, value in values.items() for text in (f"--{part}.{name}", str(value))]


LENGTH = f"--iterations: {END} (the run had {DONE})"
NOW = ["--densify.refine-stop-iter", "40"]
MAY_CHANGE = {  # flags beside --iterations; a difference that is printed; what has come of it
    "iterations": ([], LENGTH, goes_on),
    "a freeze": (["--freeze", "xyz", "opacity"], "--freeze: ('xyz', 'opacity') (the run had ())", None),
    "frozen stays": (["--freeze", "xyz", "opacity"], "--freeze", still("xyz", "opacity")),
    "a freeze window": (["--freeze", "scaling@0:30"], "--freeze: ('scaling@0:30',)", still("scaling")),
    "exclusions": (["--exclude", "rotation"], "--exclude: ('rotation',)", excluded),
    "locks": (["--lock", "sphere:0,0,0,9", "--lock-attributes", "xyz"], "--lock: ", still("xyz")),
    "sgd": (["--optimizer", "sgd"], "--optimizer: sgd (the run had adam)", none_of_them),
    "visible_adam": (
        ["--optimizer", "visible_adam"],
        "--optimizer: visible_adam (the run had adam)",
        each_row_goes_on,
    ),
    "adamax": (["--optimizer", "adamax"], "--optimizer: adamax", fresh),
    "one group's": (
        ["--groups.xyz.optimizer", "sgd"],
        "--groups.xyz.optimizer: sgd (the run had None)",
        None,
    ),
    "options": (["--optimizer-args", "betas=0.8,0.99"], "--optimizer-args: ('betas=0.8,0.99',)", goes_on),
    "a rate": (["--groups.opacity.lr", "0"], "--groups.opacity.lr: 0.0 (the run had None)", still("opacity")),
    "a schedule": (
        ["--groups.feature-dc.schedule", "constant:0"],
        "--groups.feature-dc.schedule: constant:0 (the run had None)",
        still("feature_dc"),
    ),
    "decay": (["--weight-decay", "0.01"], "--weight-decay: 0.01 (the run had 0.0)", goes_on),
    "no strategy": (["--strategy", "none"], "--strategy: none", of_strategy("NoStrategy", False)),
    "mcmc": (
        ["--strategy", "mcmc", "--max-gaussians", "500", *late("mcmc")],
        "--strategy: mcmc (the run had default)",
        of_strategy("MCMCStrategy", True),
    ),
    "budget": (
        ["--strategy", "budget", "--max-gaussians", "500", *late("budget")],
        "--max-gaussians: 500 (the run had None)",
        of_strategy("BudgetStrategy", True),
    ),
    "thresholds": (NOW, "--densify.refine-stop-iter: 40 (the run had 18)", goes_on),
    "views of a step": (["--batch-size", "2"], "--batch-size: 2 (the run had 1)", goes_on),
    "resolution": (["--resolution", "12"], "--resolution: 12 (the run had 640)", goes_on),
    "the loss": (["--ssim-weight", "0"], "--ssim-weight: 0.0 (the run had 0.2)", goes_on),
    "what is kept": (["--keep", "5"], "--keep: 5 (the run had 2)", goes_on),
    "threads": (["--threads", "1"], "--threads: 1 (the run had None)", goes_on),
}


@pytest.mark.parametrize(("flags", "line", "check"), MAY_CHANGE.values(), ids=MAY_CHANGE)
def test_what_may_change_is_printed_and_holds(run, capsys, flags, line, check):
    before = state_of(run)
    assert main(["train", "--resume", str(run), "--iterations", str(END), "--no-quiet", *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    told = [text for text in printed if text.startswith("--")]
    told.remove("--quiet: False (the run had True)")
    assert LENGTH in told
    assert any(text.startswith(line) for text in told), told
    changed = {flag for flag in flags if flag.startswith("--")}
    assert {text.partition(":")[0] for text in told} == {"--iterations", *changed}
    after = state_of(run)
    assert after["step"] == END
    if check is not None:
        check(before, after)
    saved = json.dumps(read_json(run / "config.json"))
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0  # the run has these settings now
    assert "the run had" not in capsys.readouterr().out
    assert json.dumps(read_json(run / "config.json")) == saved


def test_what_is_changed_back_goes_on_with_the_moments_it_had(run):
    """A frozen or excluded attribute: its values are carried; a frozen one's moments, too."""
    before = state_of(run)
    flags = ["--quiet", "--iterations"]
    assert (
        main(["train", "--resume", str(run), *flags, "25", "--freeze", "xyz", "--exclude", "rotation"]) == 0
    )
    assert main(["train", "--resume", str(run), *flags, str(END), "--freeze", "--exclude"]) == 0
    after = state_of(run)
    assert moments(before, "xyz")["step"] == DONE
    assert moments(after, "xyz")["step"] == DONE + 5
    assert moments(after, "rotation")["step"] == 5  # it begins anew
    still()(before, after)


MAY_NOT = {  # flags; what is said
    "SH degree down": (["--sh-degree", "2"], "this run has 3, and its harmonics are in the checkpoint"),
    "test views": (["--test-every", "3"], "its test views must stay unseen"),
    "seed": (["--seed", "3"], "its random choices have begun"),
    "images": (["--images", "images_2"], "the order of its views depends on them"),
    "poses": (["--optimize-poses"], "what it trains beside the model is settled"),
    "exposure": (["--exposure"], "what it trains beside the model is settled"),
    "background": (["--background-model", "SPLAT"], "it has one or none in its checkpoints"),
    "a trained background": (
        ["--background-model-trainable", "--background-model", "SPLAT"],
        "--background-model",
    ),
    "start": (["--init", "SPLAT"], "it has started already"),
    "step of the start": (["--init", "SPLAT", "--start-step", "3"], "it has started already"),
    "rates of the start": (["--init", "SPLAT", "--init-rates", "restart"], "it has started already"),
    "warm-up": (["--init", "SPLAT", "--init-warmup", "3"], "it has started already"),
    "resets": (["--init", "SPLAT", "--init-reset-opacity"], "it has started already"),
    "points": (["--init-points", "50"], "it has started already"),
    "most points": (["--init-max", "50"], "it has started already"),
    "masks": (["--masks", "elsewhere"], "which pixels and which views count depends on it"),
    "no masks": (["--no-masks"], "which pixels and which views count depends on it"),
    "transparency": (["--alpha", "mask"], "which pixels and which views count depends on it"),
    "world": (["--normalize", "up"], "its model is in the units of the one"),
    "output": (["--output", "elsewhere"], "--resume goes on in"),
    "another scene": (["--scene", "OTHER"], "not the 8 views that"),
    "a limit below what there is": (["--max-gaussians", "5", "--iterations", "30"], "max-gaussians"),
}


@pytest.mark.parametrize(("flags", "why"), MAY_NOT.values(), ids=MAY_NOT)
def test_what_may_not_change_is_refused_with_the_reason(finished, folder, run, capsys, flags, why):
    if not (folder / "other").is_dir():
        scenes.write_colmap(folder / "other")
    splat = str(finished / "point_cloud" / f"iteration_{DONE}" / "point_cloud.ply")
    flags = [{"SPLAT": splat, "OTHER": str(folder / "other")}.get(flag, flag) for flag in flags]
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    flags = flags if "--iterations" in flags else [*flags, "--iterations", str(END)]
    assert main(["train", "--resume", str(run), "--quiet", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gsopt: error: ")
    assert error.count("\n") == 1
    assert flags[0] in error or "--" in error
    assert why in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files


def test_the_table_has_all_that_is_fixed():
    named = {flag.removeprefix("--") for flags, _ in MAY_NOT.values() for flag in flags}
    assert set(FIXED) <= named
