"""`--init`: what a run may begin with, and what it then does by default so that nothing gets worse."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch
from plyfile import PlyData, PlyElement
from splats import gsplat_checkpoint, original_checkpoint, random_splat, random_tensors, splatfacto_checkpoint

from gsopt import TrainConfig, Trainer, checkpoint
from gsopt.commands import main
from gsopt.datasets import load_scene
from gsopt.errors import InputError
from gsopt.formats import read, write
from gsopt.formats.splat import SHAPES
from gsopt.group_options import GroupOptions, Groups
from gsopt.strategy import DefaultStrategy
from gsopt.warm_start import NEVER

TENSORS = random_tensors(30)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("scene") / "ball", points=30))


@pytest.fixture
def config(scene, tmp_path):
    return TrainConfig(
        scene=scene.path, output=tmp_path / "run", iterations=40, device="cpu", quiet=True, test_iterations=[]
    )


@pytest.fixture
def ply(tmp_path):
    write(tmp_path / "start.ply", random_splat(30))
    return tmp_path / "start.ply"


def saved(path, content):
    torch.save(content, path)
    return path


# which files


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["<", ">", "ascii"])
@pytest.mark.parametrize("normals", [True, False], ids=["normals", "none"])
def test_a_trained_ply_of_any_program(config, scene, tmp_path, degree, kind, normals):
    source = random_splat(30, degree)
    write(tmp_path / "source.ply", source)
    vertex = PlyData.read(tmp_path / "source.ply")["vertex"].data
    names = [name for name in vertex.dtype.names if normals or name not in ("nx", "ny", "nz")]
    shuffled = ["confidence", *reversed(names)]  # a property more, and another order
    rows = np.zeros(30, [(name, "f8" if name == "opacity" else "f4") for name in shuffled])
    for name in names:
        rows[name] = vertex[name]
    element = PlyElement.describe(rows, "vertex")
    byte_order = "=" if kind == "ascii" else kind
    PlyData([element], text=kind == "ascii", byte_order=byte_order).write(tmp_path / "other.ply")
    model = Trainer(replace(config, init=tmp_path / "other.ply"), scene=scene).model
    assert model.max_sh_degree == 3
    for name, value in source.with_degree(3).tensors.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), value, msg=name)


@pytest.mark.parametrize("colours", [True, False], ids=["coloured", "bare"])
def test_a_point_cloud(config, tmp_path, colours):
    xyz = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    rows = np.zeros(25, [(name, "f4") for name in "xyz"] + [("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for i, name in enumerate("xyz"):
        rows[name] = xyz[:, i]
    rows = rows if colours else rows[["x", "y", "z"]].astype([(name, "f4") for name in "xyz"])
    PlyData([PlyElement.describe(rows, "vertex")], text=True).write(tmp_path / "cloud.ply")
    about_grey = pytest.warns(UserWarning, match="no colours in it; all 25 points begin as grey")
    with contextlib.nullcontext() if colours else about_grey:
        trainer = Trainer(replace(config, init=tmp_path / "cloud.ply"))
    torch.testing.assert_close(trainer.model.xyz.detach(), torch.from_numpy(xyz))
    assert trainer.config.init_rates is None
    assert trainer.config.coarse_to_fine
    assert trainer.start_notes == []


@pytest.mark.parametrize("name", ["a.splat", "a.spz", "a.compressed.ply", "ckpt_9_rank0.pt"])
def test_other_formats_begin_without_moments(config, scene, tmp_path, name):
    if name.endswith(".pt"):
        saved(tmp_path / name, gsplat_checkpoint(TENSORS))
    else:
        write(tmp_path / name, random_splat(30))
    trainer = Trainer(replace(config, init=tmp_path / name), scene=scene)
    assert trainer.model.num_gaussians == 30
    assert trainer.config.init_warmup == 4
    assert not trainer.optimizer.state
    assert "no moments in the file: fresh ones" in trainer.start_notes
    trainer.train_step()


@pytest.mark.parametrize("sh_degree", [1, 3])
@pytest.mark.parametrize("make", [original_checkpoint, splatfacto_checkpoint])
def test_checkpoints_of_others_bring_their_moments(config, scene, tmp_path, make, sh_degree):
    path = saved(tmp_path / "a.ckpt", make(TENSORS))
    trainer = Trainer(replace(config, init=path, sh_degree=sh_degree), scene=scene)
    assert trainer.config.init_warmup == 0
    assert trainer.start_notes[-1] == f"moments of {', '.join(SHAPES)}"
    source = original_checkpoint(TENSORS)[0][10]
    names = {"feature_dc": "f_dc", "feature_rest": "f_rest"}
    for group in trainer.optimizer.param_groups:
        label = names.get(group["name"], group["name"])
        index = next(g["params"][0] for g in source["param_groups"] if g["name"] == label)
        (parameter,) = group["params"]
        for key, value in source["state"][index].items():
            fitted = value[:, : parameter.shape[1]] if value.dim() == 3 else value
            assert torch.equal(trainer.optimizer.state[parameter][key], fitted), (group["name"], key)
    trainer.train_step()


def test_our_own_checkpoint_goes_on_as_the_run_would(config, scene, tmp_path):
    """With the same step and rates, and the order of views aside, the same model and moments."""
    first = Trainer(config, scene=scene)
    first.train()
    path = checkpoint.latest(first.run.checkpoints)
    begun = replace(config, init=path, start_step=40, iterations=80, output=tmp_path / "next")
    second = Trainer(begun, scene=scene)
    assert second.step == 40
    for name, parameter in first.model.named_parameters():
        other = second.model.get_parameter(name)
        assert torch.equal(parameter, other)
        for key, value in first.optimizer.state[parameter].items():
            assert torch.equal(value, second.optimizer.state[other][key])


def test_another_optimizer_starts_fresh_and_says_so(config, scene, tmp_path):
    path = saved(tmp_path / "a.pth", original_checkpoint(TENSORS))
    trainer = Trainer(replace(config, init=path, optimizer="adagrad"), scene=scene)
    assert trainer.start_notes == [f"fresh moments of {', '.join(SHAPES)}"]
    trainer.train_step()


def test_an_optimizer_that_counts_the_steps_of_each_row_gets_them(config, scene, tmp_path):
    path = saved(tmp_path / "a.pth", original_checkpoint(TENSORS))
    trainer = Trainer(replace(config, init=path, optimizer="visible_adam", iterations=3), scene=scene)
    assert trainer.start_notes == [f"moments of {', '.join(SHAPES)}"]
    assert (trainer.optimizer.state[trainer.model.xyz]["step"] == 700).all()
    trainer.train()
    splat = read(checkpoint.latest(trainer.run.checkpoints))
    assert "the optimizer's moments are left out" in write(
        tmp_path / "b.pth", splat
    )  # one count for all there


# what follows

BY_DEFAULT = {
    "init_rates": "continue",
    "init_warmup": 4,
    "coarse_to_fine": False,
    "fit_rates": False,
    "strategy": "none",
    "densify.refine_stop_iter": 0,
    "densify.reset_every": NEVER,
}
SETTINGS = {
    "default": ({}, BY_DEFAULT),
    "restart": ({"init_rates": "restart"}, BY_DEFAULT | {"init_rates": "restart"}),
    "from a step": (
        {"start_step": 10},
        {
            "init_rates": "continue",
            "strategy": "mcmc",
            "init_warmup": 3,
            "coarse_to_fine": True,
            "fit_rates": True,
            "densify.refine_stop_iter": 20,
            "densify.reset_every": NEVER,
        },
    ),
    "as a new run": (
        {"start_step": 0, "init_reset_opacity": True, "init_warmup": 0},
        {
            "init_warmup": 0,
            "densify.refine_stop_iter": 20,
            "densify.reset_every": 1_000,
            "coarse_to_fine": True,
        },
    ),
    "what is given stays": (
        {"densify": DefaultStrategy(refine_stop_iter=7, reset_every=5), "init_warmup": 2},
        {"densify.refine_stop_iter": 7, "densify.reset_every": 5, "init_warmup": 2},
    ),
}


@pytest.mark.parametrize(("given", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_the_settings_it_goes_on_with(config, ply, given, expected):
    resolved = replace(config, init=ply, **given).resolved("cpu")
    for name, value in expected.items():
        of = resolved.densify if "." in name else resolved
        assert getattr(of, name.split(".")[-1]) == value, name
    assert resolved.resolved("cpu") == resolved


def rates(trainer: Trainer) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}


ORIGINAL = {"feature_dc": 2.5e-3, "opacity": 2.5e-2, "scaling": 5e-3, "rotation": 1e-3}


def test_by_default_rates_are_at_the_end_of_their_schedules_after_a_warm_up(config, scene, ply):
    trainer = Trainer(replace(config, init=ply), scene=scene)
    end = ORIGINAL | {"xyz": 1.6e-6 * scene.extent, "feature_rest": 1.25e-4}
    for factor in (0.01, 0.2575, 0.505, 0.7525, 1, 1):  # in a straight line over 4 steps
        assert rates(trainer) == pytest.approx({name: factor * value for name, value in end.items()})
        trainer.train_step()
    assert trainer.model.num_gaussians == 30


def test_rates_and_schedules_that_are_given_are_as_given(config, scene, ply):
    groups = Groups(xyz=GroupOptions(lr=1e-3), opacity=GroupOptions(schedule="cosine:0"))
    trainer = Trainer(replace(config, init=ply, groups=groups, init_warmup=0), scene=scene)
    start = rates(trainer)
    assert start["xyz"] == pytest.approx(1e-3 * scene.extent)
    for _ in range(40):
        trainer.train_step()
    end = rates(trainer)
    assert end["xyz"] == start["xyz"]
    assert (start["opacity"], end["opacity"]) == (0.025, 0)


@pytest.mark.parametrize(
    ("init_rates", "factors"), [("continue", (10**-0.5, 0.01)), ("restart", (1, 0.01))], ids=["on", "anew"]
)
def test_from_a_step_schedules_go_on_or_begin_anew(config, scene, ply, init_rates, factors):
    given = {"start_step": 10, "init_rates": init_rates, "init_warmup": 0, "fit_rates": False}
    trainer = Trainer(replace(config, init=ply, **given), scene=scene)
    whole = 1.6e-4 * scene.extent
    assert rates(trainer)["xyz"] == pytest.approx(whole * factors[0])
    assert trainer.train()["iterations"] == 40
    assert rates(trainer)["xyz"] == pytest.approx(whole * factors[1])


def test_steps_that_count_as_done_count_for_everything(config, scene, tmp_path):
    flat = random_splat(30)
    flat.tensors["feature_rest"][:] = 0
    write(tmp_path / "flat.ply", flat)
    given = {"init": tmp_path / "flat.ply", "iterations": 1000, "start_step": 250}
    trainer = Trainer(replace(config, sh_degree_every=100, **given), scene=scene)
    trainer.train_step()
    assert (trainer.step, trainer.sh_degree, trainer.reduction) == (251, 2, 2)


def test_full_harmonics_from_the_first_step(config, scene, ply):
    trainer = Trainer(replace(config, init=ply), scene=scene)
    trainer.train_step()
    assert (trainer.sh_degree, trainer.reduction) == (3, 1)


@pytest.mark.parametrize("reset", [True, False])
def test_opacities_are_reset_only_if_asked(config, scene, tmp_path, reset):
    splat = random_splat(30)
    splat.tensors["opacity"][:] = 4.0
    write(tmp_path / "a.ply", splat)
    densify = DefaultStrategy(refine_start_iter=0, refine_stop_iter=30, refine_every=100)
    given = {"init": tmp_path / "a.ply", "start_step": 997, "iterations": 1003, "init_reset_opacity": reset}
    densify = replace(densify, refine_stop_iter=1002)
    trainer = Trainer(replace(config, strategy="default", densify=densify, **given), scene=scene)
    trainer.train()
    assert (trainer.model.opacity.max() < 0) == reset


@pytest.mark.parametrize("stop", [5, 15])
def test_resumed_it_ends_with_the_same_bits(config, scene, tmp_path, stop):
    path = saved(tmp_path / "a.pth", original_checkpoint(TENSORS))
    given = {"init": path, "iterations": 20, "checkpoint_every": stop}
    straight = Trainer(replace(config, **given), scene=scene)
    straight.train()
    half = Trainer(replace(config, output=tmp_path / "half", keep=9, **given), scene=scene)
    half.train()
    for file in half.run.checkpoints.iterdir():
        if checkpoint.step_of(file) != stop:
            file.unlink()
    path.unlink()
    again = Trainer(TrainConfig.of_run(tmp_path / "half"), scene=scene)
    assert again.step == stop
    again.train()
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name


def test_resumed_before_the_first_checkpoint_it_begins_again(config, scene, ply):
    first = Trainer(replace(config, init=ply, start_step=30), scene=scene)
    first.train()
    for file in first.run.checkpoints.iterdir():
        file.unlink()
    again = Trainer(TrainConfig.of_run(first.run.path), scene=scene)
    assert again.step == 30
    again.train()
    assert torch.equal(first.model.xyz, again.model.xyz)


def test_a_trained_model_only_gets_better(builtin_scene, tmp_path):
    """What gsplat#511 is about: the same file, as a new run and as it is by default."""
    common = {"scene": builtin_scene, "resolution": 64, "device": "cpu", "quiet": True}
    scene = load_scene(builtin_scene, resolution=64)
    first = Trainer(TrainConfig(iterations=150, output=tmp_path / "first", **common), scene=scene)
    trained = first.train()["test"]["psnr"]
    given = {"init": first.run.ply(150), "iterations": 100, "test_iterations": (1, 10, 30, 60), **common}
    history = {}
    for name, more in (("default", {}), ("new", {"start_step": 0, "init_warmup": 0})):
        metrics = Trainer(TrainConfig(output=tmp_path / name, **given, **more), scene=scene).train()
        history[name] = [test["psnr"] for test in metrics["history"]]
    assert min(history["default"]) > trained - 0.01
    assert history["default"][-1] > trained + 0.1
    assert min(history["new"]) < trained - 0.3


def test_a_run_with_such_a_start_is_evaluated_without_the_file(config, scene, tmp_path, capsys):
    path = saved(tmp_path / "a.pth", original_checkpoint(TENSORS))
    Trainer(replace(config, init=path, iterations=3), scene=scene).train()
    path.unlink()
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_train_says_what_it_begins_with(config, scene, tmp_path, capsys):
    path = saved(tmp_path / "a.pth", original_checkpoint(TENSORS))
    words = [
        "--scene",
        config.scene,
        "--init",
        path,
        "--iterations",
        "2",
        "--output",
        tmp_path / "out",
    ]
    assert main(["train", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert f"init      {path}: rates at the end of their schedules, no densification" in out
    assert f"          moments of {', '.join(SHAPES)}" in out


# refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start_step": 5}, "--start-step 5: is about Gaussians from a file; give --init FILE"),
        ({"init_rates": "restart"}, "--init-rates restart: is about Gaussians"),
        ({"init_reset_opacity": True}, "--init-reset-opacity True: is about Gaussians"),
        (
            {"init": "start.ply", "start_step": 40},
            "--start-step 40: expected fewer than the 40 of --iterations",
        ),
        ({"init": "start.ply", "start_step": -1}, "--start-step -1: expected 0 or more"),
        (
            {"init": "cloud.ply", "start_step": 4},
            "cloud.ply: a point cloud, which has no training to go on from",
        ),
        (
            {"init": "cloud.ply", "init_warmup": 3, "init_reset_opacity": True},
            "cloud.ply: a point cloud, .*; leave --init-warmup and --init-reset-opacity away",
        ),
        (
            {"init": "vast.ply"},
            r"--init .*vast\.ply: scaling is not finite in row 2 \(1 of 7\), expected numbers",
        ),
        ({"init": "none.ply"}, r"--init .*none\.ply: cannot be read \(No such file"),
        ({"init": "start.obj"}, r"--init .*start\.obj: no format has this ending; expected one of \.ply"),
        ({"init": "bad.pth"}, r"bad\.pth: damaged or no checkpoint"),
    ],
)
def test_what_cannot_be_used_is_one_line(config, scene, ply, tmp_path, given, message):
    scenes.write_points(tmp_path / "cloud.ply", np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float32))
    vast = random_splat()
    vast.tensors["scaling"][2] = 200  # whose exponential is infinite
    write(tmp_path / "vast.ply", vast)
    (tmp_path / "start.obj").touch()
    (tmp_path / "bad.pth").write_bytes(b"PK\3\4")
    if "init" in given:
        given = given | {"init": tmp_path / given["init"]}
    with pytest.raises(InputError, match=message) as caught:
        Trainer(replace(config, **given), scene=scene)
    assert "\n" not in str(caught.value)


def test_how_it_began_cannot_change_on_resume(config, scene, ply):
    Trainer(replace(config, init=ply, iterations=3), scene=scene).train()
    with pytest.raises(InputError, match="--start-step 2: this run has None, and it has started already"):
        Trainer(replace(TrainConfig.of_run(config.output), start_step=2, iterations=9), scene=scene)
