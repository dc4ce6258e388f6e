"""Settings: to and from JSON, how step settings scale, and what the flags make of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from gsopt.commands.flags import parse
from gsopt.config import TrainConfig
from gsopt.errors import InputError
from gsopt.freeze_windows import FreezeWindow
from gsopt.group_options import GroupOptions, Groups
from gsopt.schedules import Cosine, Product, WarmUp
from gsopt.settings import differences, from_json, to_json

CONFIG = TrainConfig(scene=Path("ball"))


def parsed(*argv: str, default: TrainConfig | None = None) -> TrainConfig:
    return parse(TrainConfig, argv, "gsopt train", "", default=default)


def test_json_and_back():
    config = replace(
        CONFIG,
        iterations=123,
        freeze=("xyz", "opacity"),
        test_iterations=(5, 10),
        groups=Groups(opacity=GroupOptions(lr=0.5, schedule="exp:0.1", optimizer_args=("betas=0.5,0.9",))),
    )
    assert from_json(TrainConfig, to_json(config), "here") == config
    resolved = config.resolved("cpu")
    assert from_json(TrainConfig, to_json(resolved), "here") == resolved


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected settings"),
        ({"iteration": 3}, "'iteration'.*'iterations'"),
        ({"iterations": 3.5}, "iterations: expected int, found 3.5"),
        ({"iterations": True}, "iterations: expected int, found True"),
        ({"freeze": "xyz"}, "freeze: expected"),
        ({"groups": {"xyz": {"rate": 1}}}, "groups: xyz: no setting is called 'rate'"),
        ({"background": "blue"}, "background: expected 'auto' or 'white'"),
        ({"scene": 5}, "scene: expected Path"),
    ],
)
def test_json_that_is_not_a_configuration(values, message):
    with pytest.raises(InputError, match=f"here.*{message}"):
        from_json(TrainConfig, values, "here")


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({"iterations": 30_000}, "sh_degree_every", 1_000),
        ({"iterations": 6_000}, "sh_degree_every", 200),
        ({"iterations": 30}, "sh_degree_every", 100),
        ({"iterations": 2_000, "sh_degree_every": 1_000}, "sh_degree_every", 1_000),  # explicit wins
        ({"iterations": 2_000, "schedule_iterations": 30_000}, "sh_degree_every", 1_000),
        ({"iterations": 2_000, "schedule_iterations": 30_000}, "schedule_iterations", 30_000),
        ({"iterations": 2_000}, "schedule_iterations", 2_000),
        ({"iterations": 3_000}, "checkpoint_every", 500),
        ({"iterations": 30_000}, "test_iterations", (7_000,)),
        ({"iterations": 3_000}, "save_iterations", (700,)),
        ({"iterations": 3_000, "test_iterations": (1, 2)}, "test_iterations", (1, 2)),
        ({"iterations": 3_000, "test_iterations": ()}, "test_iterations", ()),
        ({}, "resolution", 640),
        ({"resolution": 99}, "resolution", 99),
    ],
)
def test_resolved(settings, name, expected):
    assert getattr(replace(CONFIG, **settings).resolved("cpu"), name) == expected


def test_resolving_reaches_the_strategy_and_happens_once():
    once = replace(CONFIG, iterations=3_000).resolved("cpu")
    assert once.densify.refine_every == 100  # its floor
    assert once.densify.refine_stop_iter == 1_500
    assert once.resolved("cpu") == once
    longer = replace(once, iterations=6_000).resolved("cpu")  # as a resumed run that goes on for longer
    assert longer == replace(once, iterations=6_000)


def test_flags():
    config = parsed(
        *["--scene", "fox", "--output", "out", "--iterations", "7", "--seed", "3", "--device", "cpu"],
        *["--threads", "2", "--strategy", "none", "--max-gaussians", "9"],
        *["--freeze", "xyz", "feature-rest@0:3", "feature-rest@5:", "--weight-decay", "0.1"],
        *["--exclude", "opacity", "--optimizer", "sgd", "--groups.xyz.lr", "1e-4"],
        *["--groups.feature-rest.weight-decay", "1e-3", "--groups.opacity.schedule", "exp:0.1"],
        *["--groups.scaling.optimizer-args", "momentum=0.9", "nesterov=true"],
        *["--checkpoint-every", "5", "--keep", "4", "--init", "a.ply", "--test-iterations", "2", "4"],
        *["--save-iterations", "6", "--background", "random", "--sh-degree", "2", "--ssim-weight", "0.3"],
        *["--test-every", "4", "--resolution", "77", "--images", "images_4", "--densify.refine-every", "8"],
        *["--schedule-iterations", "70", "--antialiased", "--quiet"],
        *["--accumulate", "3", "--batch-size", "2", "--scale-rates"],
    )
    expected = TrainConfig(
        scene=Path("fox"), output=Path("out"), iterations=7, seed=3, device="cpu", threads=2, strategy="none",
        max_gaussians=9, freeze=("xyz", "feature-rest@0:3", "feature-rest@5:"),
        weight_decay=0.1, exclude=("opacity",), optimizer="sgd",
        checkpoint_every=5, keep=4, init=Path("a.ply"), test_iterations=(2, 4), save_iterations=(6,),
        background="random", sh_degree=2, ssim_weight=0.3, test_every=4, resolution=77, images="images_4",
        schedule_iterations=70, antialiased=True, quiet=True, accumulate=3, batch_size=2, scale_rates=True,
        groups=Groups(
            xyz=GroupOptions(lr=1e-4),
            feature_rest=GroupOptions(weight_decay=1e-3),
            opacity=GroupOptions(schedule="exp:0.1"),
            scaling=GroupOptions(optimizer_args=("momentum=0.9", "nesterov=true")),
        ),
    )  # fmt: skip
    expected.densify.refine_every = 8
    assert config == expected
    config.check()


def test_flags_on_top_of_a_run():
    run = replace(CONFIG, iterations=500, seed=4).resolved("cpu")
    config = parsed("--iterations", "900", "--groups.xyz.lr", "0.5", default=run)
    assert list(differences(run, config)) == [("iterations", 500, 900), ("groups.xyz.lr", None, 0.5)]


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--scene", "--resume", "--groups.feature-rest.weight-decay", "--densify.refine-every"):
        assert flag in text
    assert "TODO" not in text


@pytest.mark.parametrize("name", ["freeze", "exclude"])
def test_group_table(name):
    specs = replace(CONFIG, **{name: ("feature-rest",)}).specs(extent=2.0)
    assert specs["xyz"].lr == pytest.approx(3.2e-4)
    assert specs["feature_rest"].frozen == (name == "freeze")
    assert specs["feature_rest"].optimize == (name == "freeze")
    assert not specs["feature_dc"].frozen


def test_windows_schedules_options_and_decay_reach_the_specs():
    groups = Groups(
        opacity=GroupOptions(
            schedule="cosine:0.1,warmup:10", optimizer_args=("betas=0.5,0.9", "amsgrad=true")
        ),
        scaling=GroupOptions(weight_decay=0.0),
    )
    config = replace(
        CONFIG,
        iterations=500,
        freeze=("xyz@0:9", "xyz@20:"),
        weight_decay=0.1,
        groups=groups,
        exclude=["rotation"],
    )
    config.check()
    specs = config.specs(extent=1.0)
    assert specs["xyz"].freeze == (FreezeWindow(0, 9), FreezeWindow(20))
    assert not specs["xyz"].frozen
    assert specs["opacity"].schedule == Product((Cosine(0.1, 500), WarmUp(10)))
    assert specs["opacity"].options == {"betas": (0.5, 0.9), "amsgrad": True}
    assert {name: spec.weight_decay for name, spec in specs.items()} == dict.fromkeys(specs, 0.1) | {
        "scaling": 0
    }


@pytest.mark.parametrize(
    ("settings", "scaling", "feature_dc"),
    [
        ({"iterations": 30_000}, 5e-3, 2.5e-3),
        ({"iterations": 60_000}, 5e-3, 2.5e-3),
        ({"iterations": 7_500}, 1e-2, 5e-3),
        ({"iterations": 1_000}, 5e-3 * 30**0.5, 2.5e-3 * 30**0.5),
        ({"iterations": 100}, 4e-2, 2e-2),  # no more than that
        ({"iterations": 1_000, "fit_rates": False}, 5e-3, 2.5e-3),
        ({"iterations": 1_000, "schedule_iterations": 30_000}, 5e-3, 2.5e-3),
        ({"iterations": 1_000, "groups": Groups(scaling=GroupOptions(lr=0.5))}, 0.5, 2.5e-3 * 30**0.5),
    ],
)
def test_rates_fitted_to_short_runs(settings, scaling, feature_dc):
    specs = replace(CONFIG, **settings).specs(extent=1.0)
    assert specs["scaling"].lr == pytest.approx(scaling)
    assert specs["feature_dc"].lr == pytest.approx(feature_dc)
    assert specs["opacity"].lr / 2.5e-2 == pytest.approx((feature_dc / 2.5e-3) ** 0.5)
    assert specs["xyz"].lr / 1.6e-4 == pytest.approx(specs["rotation"].lr / 1e-3)
    assert specs["xyz"].lr == pytest.approx(feature_dc / 2.5e-3 * 1.6e-4)


@pytest.mark.parametrize(("iterations", "factors"), [(10, {0: 1, 8: 1, 9: 0.55, 10: 0.1}), (4, {0: 1, 4: 1})])
def test_fitted_rates_fall_in_the_last_fifth(iterations, factors):
    specs = replace(CONFIG, iterations=iterations).specs(extent=1.0)
    for name in ("feature_dc", "feature_rest", "scaling", "rotation", "opacity"):
        schedule = specs[name].schedule or (lambda step: 1.0)
        assert {step: schedule(step) for step in factors} == pytest.approx(factors), name
    assert specs["xyz"].schedule(iterations) == pytest.approx(0.01)  # has its own
    plain = replace(CONFIG, iterations=iterations, fit_rates=False).specs(extent=1.0)
    assert [name for name, spec in plain.items() if spec.schedule] == ["xyz"]
