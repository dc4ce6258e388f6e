"""Runs with poses, exposures and a second model: trained, resumed, saved, evaluated, refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import scenes
import torch
from test_monitor import read
from test_trainer import DENSIFY, moments

from gsopt import checkpoint
from gsopt.cameras import camera_to_json
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.group_options import GroupOptions, Groups, ModelGroups
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.recorder import Recorder
from gsopt.trainer import Trainer

BACKGROUND = tuple(f"background.{name}" for name in ATTRIBUTES)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("joint") / "ball", points=60))


@pytest.fixture(scope="module")
def backdrop(tmp_path_factory) -> Path:
    """A splat PLY of degree 1: 40 points of the same ball, a little larger."""
    xyz, rgb = scenes.ball_points(40, seed=5)
    path = tmp_path_factory.mktemp("joint") / "backdrop.ply"
    GaussianModel.from_points(1.3 * xyz, rgb / 255, sh_degree=1).save_ply(path)
    return path


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=40,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DENSIFY,
        groups=Groups(poses=GroupOptions(lr=1e-3)),
    )


@pytest.fixture
def all_on(config, backdrop):
    return replace(
        config,
        optimize_poses=True,
        exposure=True,
        background_model=backdrop,
        background_model_trainable=True,
    )


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.joint.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------ training


def test_the_models_groups_keep_their_bare_names(ball, all_on):
    trainer = Trainer(all_on, scene=ball)
    names = [group["name"] for group in trainer.optimizer.param_groups]
    assert names == [*ATTRIBUTES, "poses", "exposure", *BACKGROUND]
    trainer.train()
    tags = read(all_on.output).Tags()["scalars"]
    assert {f"lr/{name}" for name in names} <= set(tags)


def test_without_flags_there_is_nothing_beside_the_model(ball, config):
    trainer = Trainer(config, scene=ball)
    assert trainer.joint.sides == {}
    assert [group["name"] for group in trainer.optimizer.param_groups] == list(ATTRIBUTES)
    trainer.train()
    assert checkpoint.load(checkpoint.latest(trainer.run.checkpoints))["joint"] == {}
    beside = {path.name for path in trainer.run.ply(40).parent.iterdir()}
    assert beside == {"point_cloud.ply"}
    assert not trainer.run.refined_cameras.exists()


def test_everything_moves_and_only_the_model_grows(ball, all_on):
    trainer = Trainer(all_on, scene=ball)
    before = parameters(trainer)
    trainer.train()
    after = parameters(trainer)
    assert trainer.model.num_gaussians != 60
    assert trainer.joint.background_model.num_gaussians == 40
    for name, value in after.items():
        if value.shape == before[name].shape and not name.endswith("feature_rest"):  # bands come in later
            assert not torch.equal(value, before[name]), name
    assert after["poses.delta"].any(dim=1).all()  # every view has been seen
    assert after["exposure.delta"].flatten(1).any(dim=1).all()


def test_a_background_is_frozen_unless_it_is_said_to_be_trainable(ball, all_on):
    trainer = Trainer(replace(all_on, background_model_trainable=False), scene=ball)
    before = trainer.joint.background_model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    trainer.train_step()
    assert all(parameter.grad is None for parameter in trainer.joint.background_model.parameters())
    trainer.train()
    assert same(before, trainer.joint.background_model.state_dict())
    frozen = {group["name"] for group in trainer.optimizer.param_groups if group["frozen"]}
    assert frozen == set(BACKGROUND)
    assert not [name for name in moments(trainer) if name.startswith("background")]


@pytest.mark.parametrize(
    ("flags", "still"),
    [
        ({"freeze": ("poses", "background.feature-dc")}, ("poses.delta", "background.feature_dc")),
        ({"exclude": ("exposure", "background.xyz")}, ("exposure.delta", "background.xyz")),
        ({"freeze": ("xyz",)}, ("xyz",)),
    ],
)
def test_groups_are_frozen_and_excluded_by_their_names(ball, all_on, flags, still):
    trainer = Trainer(replace(all_on, strategy="none", **flags), scene=ball)
    before = parameters(trainer)
    for _ in range(8):
        trainer.train_step()
    after = parameters(trainer)
    unchanged = [name for name in after if torch.equal(before[name], after[name])]
    assert [name for name in unchanged if not name.endswith("feature_rest")] == list(still)


def test_each_group_has_the_rate_that_is_asked_for(ball, all_on):
    groups = Groups(
        poses=GroupOptions(lr=2e-5, weight_decay=0.5, schedule="constant"),
        exposure=GroupOptions(lr=0.5, schedule="exp:0.5"),
        background=ModelGroups(opacity=GroupOptions(lr=0.25), xyz=GroupOptions(lr=1.0)),
    )
    trainer = Trainer(replace(all_on, groups=groups), scene=ball)
    found = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert (found["poses"]["lr"], found["poses"]["weight_decay"]) == (2e-5, 0.5)
    assert found["background.opacity"]["lr"] == 0.25
    assert found["background.xyz"]["lr"] == pytest.approx(ball.extent)
    assert found["opacity"]["lr"] == pytest.approx(2.5e-2 * 8**0.5)  # raised for so short a run
    for _ in range(40):
        trainer.train_step()
    assert found["poses"]["lr"] == 2e-5
    assert found["exposure"]["lr"] == pytest.approx(0.25)


def test_default_rates(ball, all_on):
    trainer = Trainer(replace(all_on, groups=Groups()), scene=ball)
    specs = trainer.specs
    assert (specs["poses"].lr, specs["poses"].weight_decay) == (1e-5, 1e-6)
    assert specs["poses"].schedule(40) == pytest.approx(0.01)
    assert specs["exposure"].lr * specs["exposure"].schedule(40) == pytest.approx(0.001)
    for name in ATTRIBUTES:
        assert specs[f"background.{name}"] == specs[name]


def test_poses_alone_may_be_trained(ball, config):
    """A model that is frozen as a whole, and cameras that are moved to fit it."""
    settings = replace(config, optimize_poses=True, freeze=ATTRIBUTES, strategy="none")
    trainer = Trainer(settings, scene=ball)
    before = parameters(trainer)
    trainer.train()
    changed = [name for name, value in parameters(trainer).items() if not torch.equal(value, before[name])]
    assert changed == ["poses.delta"]


def test_exposures_of_the_photos_are_learnt(ball, config):
    """Half of the photos are taken darker: their exposures become smaller than those of the others."""
    dark = [
        replace(view, image=torch.cat([(view.image[..., :3] * 0.5).byte(), view.image[..., 3:]], dim=-1))
        if i % 2
        else view
        for i, view in enumerate(ball.train)
    ]
    settings = replace(config, exposure=True, iterations=150, strategy="none", background="black")
    trainer = Trainer(settings, scene=replace(ball, train=dark))
    with_it = trainer.train()
    gains = trainer.joint.exposure.matrices[:, range(3), range(3)].mean(dim=1)
    assert gains[1::2].max() < gains[::2].min() - 0.1
    without = replace(settings, exposure=False, output=settings.output.with_name("without"))
    assert (
        with_it["train"]["psnr"]
        > Trainer(without, scene=replace(ball, train=dark)).train()["train"]["psnr"] + 1
    )


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("trainable", [True, False])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(ball, all_on, tmp_path, backdrop, trainable):
    own = shutil.copy(backdrop, tmp_path / "own.ply")
    config = replace(all_on, background_model=own, background_model_trainable=trainable)
    straight = Trainer(replace(config, output=tmp_path / "straight"), scene=ball)
    straight.train()
    stopped = Trainer(config, scene=ball)
    Recorder(stopped).begin()
    while stopped.step < 17:
        stopped.train_step()
    stopped.save()
    stopped.monitor.close()
    own.unlink()  # the checkpoint has it

    resumed = Trainer(replace(TrainConfig.of_run(config.output), threads=1), scene=ball)
    assert same(parameters(resumed), parameters(stopped))
    resumed.train()
    assert same(parameters(straight), parameters(resumed))
    assert same(moments(straight), moments(resumed))


@pytest.mark.parametrize(
    "change",
    [
        {"optimize_poses": False},
        {"exposure": False},
        {"background_model_trainable": False},
        {"background_model": Path("other.ply")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_beside_the_model_cannot_change_in_a_run(ball, all_on, change):
    Trainer(replace(all_on, iterations=2), scene=ball).train()
    changed = replace(TrainConfig.of_run(all_on.output), iterations=4, **change)
    with pytest.raises(InputError, match=f"--{next(iter(change)).replace('_', '-')} .*this run has"):
        Trainer(changed, scene=ball)


# ------------------------------------------------------------------------------------------------ on disk


def test_cameras_as_refined_are_written_beside_those_that_were_given(ball, all_on):
    trainer = Trainer(all_on, scene=ball)
    trainer.train()
    given = json.loads(trainer.run.cameras.read_text())
    refined = json.loads(trainer.run.refined_cameras.read_text())
    assert given == [camera_to_json(view.camera, i) for i, view in enumerate([*ball.test, *ball.train])]
    assert [entry["img_name"] for entry in refined] == [entry["img_name"] for entry in given]
    with torch.no_grad():
        first = trainer.joint.refined(ball.train[0].camera, 0)
    tests = len(ball.test)
    assert refined[tests] == camera_to_json(first, tests)
    assert refined[tests] != given[tests]
    assert refined[:tests] == given[:tests]


@pytest.mark.parametrize("trainable", [True, False])
def test_an_evaluation_sees_what_the_training_saw(ball, all_on, trainable):
    """To the last digit: with the poses and exposures of the training views, and the background."""
    trained = Trainer(replace(all_on, background_model_trainable=trainable), scene=ball).train()
    ply = all_on.output / "point_cloud" / "iteration_40" / "point_cloud.ply"
    assert ply.with_name("background.ply").exists() == trainable
    assert GaussianModel.load_ply(ply).num_gaussians == trained["gaussians"]
    assert main(["evaluate", str(all_on.output)]) == 0
    evaluated = json.loads((all_on.output / "metrics.json").read_text())
    for split in ("test", "train"):
        assert evaluated["views"][split] == trained["views"][split], split


def test_pictures_of_a_run_show_the_background(ball, all_on, backdrop, tmp_path):
    Trainer(replace(all_on, iterations=5), scene=ball).train()
    run = str(all_on.output)
    pictures = {}
    for name, flags in {"own": (), "other": ("--background-model", str(backdrop))}.items():
        assert main(["render", run, "--path", "train", "--output", str(tmp_path / name), *flags]) == 0
        pictures[name] = sorted((tmp_path / name).rglob("*.png"))
        assert len(pictures[name]) == len(ball.train)
    bare = all_on.output / "point_cloud" / "iteration_5" / "point_cloud.ply"
    flags = ["--scene", str(ball.path), "--path", "train", "--output", str(tmp_path / "bare")]
    assert main(["render", str(bare), *flags]) == 0
    alone = sorted((tmp_path / "bare").rglob("*.png"))
    assert alone[0].read_bytes() != pictures["own"][0].read_bytes() != pictures["other"][0].read_bytes()


# ------------------------------------------------------------------------------------------------ refusals


def damaged(path: Path, backdrop: Path) -> None:
    path.write_bytes(backdrop.read_bytes()[:-9])


def bare_points(path: Path, backdrop: Path) -> None:
    scenes.write_points(path, *scenes.ball_points(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, backdrop: None, "no such file"),
        (damaged, "not a complete PLY"),
        (bare_points, "element vertex lacks f_dc_0"),
    ],
    ids=["missing", "damaged", "no splat"],
)
def test_a_background_that_cannot_be_used_is_named(ball, config, tmp_path, backdrop, make, message):
    path = tmp_path / "bad.ply"
    make(path, backdrop)
    with pytest.raises(InputError, match=rf"bad\.ply: {message}"):
        Trainer(replace(config, background_model=path), scene=ball)
    assert not config.output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"background_model_trainable": True},
            "--background-model-trainable: there is none; give --background-",
        ),
        ({"freeze": ("poses",)}, "--freeze poses: no attribute is called 'poses'; there are xyz"),
        ({"exclude": ("background.xyz",)}, "--exclude background.xyz: no attribute is called"),
        (
            {"optimize_poses": True, "freeze": (*ATTRIBUTES, "poses")},
            "--freeze, --exclude: in iterations 1 to 40 that is every attribute",
        ),
        (
            {"background_model": Path("a.ply"), "freeze": ATTRIBUTES},  # and the background is frozen anyway
            "--freeze, --exclude: in iterations 1 to 40 that is every attribute",
        ),
        (
            {"groups": Groups(background=ModelGroups(feature_dc=GroupOptions(lr=-1.0)))},
            r"--groups\.background\.feature-dc\.lr -1: expected 0 or more",
        ),
        ({"groups": Groups(poses=GroupOptions(lr=float("nan")))}, r"--groups\.poses\.lr nan: expected"),
        ({"optimize_poses": True, "groups": Groups(poses=GroupOptions(schedule="up"))}, 'schedule "up"'),
    ],
)
def test_settings_that_cannot_be_used(ball, config, changes, message):
    with pytest.raises(InputError, match=message):
        Trainer(replace(config, **changes), scene=ball)


def test_a_pose_that_diverges_ends_the_run_and_names_the_flag(ball, config):
    settings = replace(
        config, optimize_poses=True, groups=Groups(poses=GroupOptions(lr=1e38)), freeze=ATTRIBUTES
    )
    with pytest.raises(InputError, match=r"poses\.delta is not finite.*\(--groups\.poses\.lr\)"):
        Trainer(replace(settings, strategy="none"), scene=ball).train()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"views\.json: cannot be read"),
        ("[1]", r"views\.json: expected an object"),
        ('{"train/r_0.png": {"pose": [1, 2]}}', r"train/r_0\.png: pose: expected numbers \[6\]"),
        ('{"a": {"exposure": "x", "pose": [0, 0, 0, 0, 0, 0]}}', r"a: exposure: expected numbers \[3, 4\]"),
        ('{"a": {"pose": [NaN, 0, 0, 0, 0, 0]}}', "a: pose: expected numbers"),
        ('{"a": 5}', "a: pose: expected numbers"),
    ],
)
def test_a_damaged_file_of_views_is_named(ball, all_on, capsys, content, message):
    Trainer(replace(all_on, iterations=2), scene=ball).train()
    path = all_on.output / "point_cloud" / "iteration_2" / "views.json"
    path.unlink() if content is None else path.write_text(content)
    capsys.readouterr()
    assert main(["evaluate", str(all_on.output)]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("flag", "lacks"),
    [
        ("--groups.poses.lr", "--optimize-poses"),
        ("--groups.exposure.lr", "--exposure"),
        ("--groups.background.xyz.lr", "--background-model-trainable"),
    ],
)
def test_a_rate_without_effect_is_told(ball, tmp_path, capsys, flag, lacks):
    words = ["train", "--scene", str(ball.path), "--output", str(tmp_path / "a"), "--iterations", "1"]
    assert main([*words, "--device", "cpu", "--quiet", flag, "1e-3"]) == 0
    assert capsys.readouterr().err == f"gsopt: warning: {flag}: without effect, without {lacks}\n"


def test_train_says_what_is_beside_the_model(ball, backdrop, tmp_path, capsys):
    words = ["train", "--scene", str(ball.path), "--output", str(tmp_path / "a"), "--iterations", "1"]
    flags = ["--optimize-poses", "--exposure", "--background-model", str(backdrop)]
    assert main([*words, *flags, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "poses of 6 training cameras" in out
    assert "exposures of 6 training photos" in out
    assert f"40 Gaussians of {backdrop}, frozen" in out
