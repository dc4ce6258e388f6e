"""Optimizers on the command line: their options as text, one for each group, and whole runs with them."""

from dataclasses import replace

import pytest
import scenes
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import DENSIFY, moments, same_bits

from gsopt import checkpoint
from gsopt.commands.flags import parse
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.group_options import GroupOptions, Groups
from gsopt.optim import MixedOptimizer, VisibleAdam
from gsopt.optim.arguments import parse_arguments
from gsopt.settings import from_json, to_json
from gsopt.trainer import Trainer

TEXTS = {
    "number": (["momentum=0.9"], {"momentum": 0.9}),
    "integer": (["t0=1000"], {"t0": 1000}),
    "exponent": (["eps=1e-15"], {"eps": 1e-15}),
    "negative": (["beta2-decay=-0.8"], {"beta2_decay": -0.8}),
    "true": (["nesterov=true"], {"nesterov": True}),
    "False": (["amsgrad=False"], {"amsgrad": False}),
    "none": (["foreach=none"], {"foreach": None}),
    "several numbers": (["betas=0.9,0.99"], {"betas": (0.9, 0.99)}),
    "none among numbers": (["eps=none,1e-3"], {"eps": (None, 1e-3)}),
    "several options": (["momentum=0.9", "nesterov=true"], {"momentum": 0.9, "nesterov": True}),
    "nothing": ([], {}),
}


@pytest.mark.parametrize("case", TEXTS)
def test_options_as_text(case):
    texts, options = TEXTS[case]
    assert parse_arguments(texts) == options


NAMES = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(NAMES, NUMBERS, max_size=4))
def test_what_is_written_is_read(options):
    assert parse_arguments([f"{name}={value!r}" for name, value in options.items()]) == options


def outcome(text: str) -> dict | str:
    try:
        return parse_arguments([text])
    except InputError as error:
        return str(error)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_with_its_flag(text):
    found = outcome(text)
    assert isinstance(found, dict) or found.startswith(f"--optimizer-args {text}: ")


def parsed(*flags: str) -> TrainConfig:
    return parse(TrainConfig, ["--scene", "x", *flags], "gsopt train", "")


GOOD = {
    "ours": ["--optimizer", "visible_adam", "--optimizer-args", "betas=0.9,0.99", "maximize=false"],
    "with momentum": ["--optimizer", "SGD", "--optimizer-args", "momentum=0.9", "nesterov=true"],
    "of a group": ["--groups.xyz.optimizer", "sgd", "--groups.xyz.optimizer-args", "momentum=0.9"],
    "options of a group alone": ["--groups.xyz.optimizer-args", "betas=0.5,0.9"],
    "both together": [
        *["--optimizer", "sgd", "--optimizer-args", "momentum=0.9"],
        *["--groups.opacity.optimizer-args", "nesterov=true"],  # with the momentum of the run
    ],
}


@pytest.mark.parametrize("case", GOOD)
def test_flags(case):
    config = parsed(*GOOD[case])
    config.check()
    assert from_json(TrainConfig, to_json(config), "here") == config


REFUSED = {
    "optimizer": (
        ["--optimizer", "adm"],
        r"--optimizer adm: no such optimizer; choose from adadelta, adafactor,",
    ),
    "lbfgs": (
        ["--optimizer", "lbfgs"],
        "--optimizer lbfgs: cannot train Gaussians: it takes no parameter groups",
    ),
    "muon": (["--optimizer", "Muon"], "--optimizer Muon: cannot train Gaussians: it takes only matrices"),
    "sparse": (
        ["--groups.xyz.optimizer", "SparseAdam"],
        "--groups.xyz.optimizer SparseAdam: cannot train Gaussians: it takes only sparse gradients",
    ),
    "of a group": (
        ["--groups.feature-rest.optimizer", "sgdd"],
        "--groups.feature-rest.optimizer sgdd: no such optimizer",
    ),
    "option": (
        ["--optimizer-args", "momentum=0.9"],
        "--optimizer-args momentum: adam has no such option; choose from betas, eps, amsgrad,",
    ),
    "option of a group": (
        ["--groups.opacity.optimizer", "sgd", "--groups.opacity.optimizer-args", "betas=0.9,0.9"],
        "--groups.opacity.optimizer-args betas: sgd has no such option; choose from momentum, dampening,",
    ),
    "rate": (
        ["--optimizer-args", "lr=0.1"],
        "--optimizer-args lr: has no effect, as each group states its own; give --groups.NAME.lr",
    ),
    "decay": (["--optimizer-args", "weight-decay=0.1"], "give --groups.NAME.weight-decay"),
    "graphs": (["--optimizer-args", "capturable=true"], "adam has no such option"),
    "no value": (
        ["--optimizer-args", "momentum"],
        "--optimizer-args momentum: expected OPTION=VALUE, such as",
    ),
    "no name": (["--optimizer-args", "=3"], "--optimizer-args =3: expected OPTION=VALUE"),
    "empty": (["--optimizer-args", "betas="], "expected numbers, true, false or none, .* found ''"),
    "word": (
        ["--optimizer-args", "eps=small"],
        "--optimizer-args eps=small: expected numbers, .* found 'small'",
    ),
    "infinite": (["--optimizer-args", "eps=inf"], "found 'inf'"),
    "twice": (["--optimizer-args", "eps=1", "eps=2"], "--optimizer-args eps=2: eps is given twice"),
    "one of two": (
        ["--optimizer-args", "betas=0.9"],
        "--optimizer-args: betas: expected 2 numbers with a comma between, found 0.9",
    ),
    "number for a switch": (
        ["--optimizer-args", "amsgrad=1"],
        "--optimizer-args: amsgrad: expected true or false, found 1",
    ),
    "switch for a number": (
        ["--optimizer-args", "eps=true"],
        "--optimizer-args: eps: expected a number, found True",
    ),
    "range": (
        ["--optimizer-args", "betas=0.9,1.5"],
        "--optimizer-args: Invalid beta parameter at index 1: 1.5",
    ),
    "range of a group": (
        ["--groups.xyz.optimizer", "visible_adam", "--groups.xyz.optimizer-args", "eps=-1"],
        "--groups.xyz.optimizer-args: eps: expected 0 or more, found -1",
    ),
    "combination": (
        ["--optimizer", "sgd", "--optimizer-args", "nesterov=true"],
        "--optimizer-args: Nesterov momentum requires a momentum",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_cannot_be(case):
    flags, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        parsed(*flags).check()
    assert "\n" not in str(caught.value)


# ---------------------------------------- whole runs


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("optimizers") / "ball", points=60))


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=24,
        checkpoint_every=11,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DENSIFY,
    )


RUNS = {
    "visible_adam": {"optimizer": "visible_adam"},
    "visible_adam, slow": {"optimizer": "visible_adam", "backend": "reference"},
    "sgd": {"optimizer": "sgd", "optimizer_args": ("momentum=0.9", "nesterov=true")},
    "rprop": {"optimizer": "rprop"},
    "mixed": {
        "groups": Groups(
            xyz=GroupOptions(optimizer="visible_adam"),
            feature_rest=GroupOptions(optimizer="sgd", optimizer_args=("momentum=0.9",)),
            rotation=GroupOptions(optimizer="adafactor"),
        )
    },
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_through_densification_goes_on_to_the_same_bits(case, ball, config):
    config = replace(config, **RUNS[case])
    whole = Trainer(config, scene=ball)
    whole.train()
    assert whole.model.num_gaussians != 60
    latest = checkpoint.latest(config.output / "checkpoints")
    latest.unlink()  # that of the end: the run goes on from step 22
    again = Trainer(TrainConfig.of_run(config.output), scene=ball)
    assert again.step == 22
    assert type(again.optimizer).__name__ == type(whole.optimizer).__name__
    again.train()
    assert same_bits(dict(whole.model.named_parameters()), dict(again.model.named_parameters()))
    ours, theirs = moments(whole), moments(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "adadelta",
        "adafactor",
        "adagrad",
        "adam",
        "adamax",
        "adamw",
        "asgd",
        "nadam",
        "radam",
        "rmsprop",
        "rprop",
        "sgd",
        "visible_adam",
    ],
)
def test_a_run_with_every_optimizer(name, ball, config):
    metrics = Trainer(replace(config, optimizer=name, iterations=60), scene=ball).train()
    assert metrics["train"]["psnr"] > 5


def test_the_trainer_hands_over_what_the_view_sees(ball, config):
    trainer = Trainer(replace(config, optimizer="visible_adam", strategy="none"), scene=ball)
    assert isinstance(trainer.optimizer, VisibleAdam)
    with torch.no_grad():
        trainer.model.xyz[:10, 0] += 1_000  # out of every view
    before = trainer.model.xyz.detach().clone()
    for _ in range(3):
        trainer.train_step()
    counts = trainer.optimizer.state[trainer.model.xyz]["step"]
    assert counts[:10].eq(0).all()
    assert counts[10:].eq(3).all()
    assert torch.equal(trainer.model.xyz[:10], before[:10])
    assert (trainer.model.xyz[10:] != before[10:]).any(dim=1).all()


def test_options_reach_the_optimizer(ball, config):
    config = replace(
        config,
        optimizer_args=("betas=0.5,0.9",),
        groups=Groups(
            xyz=GroupOptions(optimizer="sgd", optimizer_args=("momentum=0.9",)),
            opacity=GroupOptions(optimizer_args=("eps=1e-8",)),
        ),
    )
    optimizer = Trainer(config, scene=ball).optimizer
    assert isinstance(optimizer, MixedOptimizer)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["xyz"]["momentum"] == 0.9
    assert (groups["opacity"]["betas"], groups["opacity"]["eps"]) == ((0.5, 0.9), 1e-8)
    assert (groups["scaling"]["betas"], groups["scaling"]["eps"]) == ((0.5, 0.9), 1e-15)


def test_a_run_of_adam_goes_on_with_visible_adam(ball, config):
    Trainer(config, scene=ball).train()
    goes_on = replace(TrainConfig.of_run(config.output), optimizer="visible_adam", iterations=30)
    trainer = Trainer(goes_on, scene=ball)
    steps = trainer.optimizer.state[trainer.model.xyz]["step"]
    assert steps.tolist() == [24] * trainer.model.num_gaussians
    trainer.train()
