"""Runs in a normalised world (`--normalize`): what they write is in the world of the scene's files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch
from scipy.spatial.transform import Rotation
from splats import adam_state
from test_trainer import DENSIFY

from gsopt import checkpoint
from gsopt.commands import main
from gsopt.commands.train import opening
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene, read_splat
from gsopt.errors import InputError
from gsopt.formats import read
from gsopt.group_options import GroupOptions, Groups
from gsopt.locks import locked_rows
from gsopt.model import GaussianModel
from gsopt.similarity import Similarity
from gsopt.trainer import Trainer

ITERATIONS = 40
SOME = Similarity(  # from the world of the ball to that of its files: z is not up, a unit is a foot or so
    3.3,
    torch.from_numpy(Rotation.from_euler("xyz", [100, 20, -50], degrees=True).as_matrix()),
    torch.tensor([20.0, -7.0, 11.0], dtype=torch.float64),
)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """The ball with its world moved away: RGBA photos in a transforms.json, points in a PLY."""
    folder = tmp_path_factory.mktemp("normalized") / "ball"
    scenes.write_nerf_synthetic(folder, points=None)
    for name in ("train", "test"):
        path = folder / f"transforms_{name}.json"
        content = json.loads(path.read_text())
        for frame in content["frames"]:
            c2w = np.array(frame["transform_matrix"])
            c2w[:3, 3] = SOME.points(torch.from_numpy(c2w[:3, 3])).numpy()
            c2w[:3, :3] = SOME.rotation.numpy() @ c2w[:3, :3]
            frame["transform_matrix"] = c2w.tolist()
        path.write_text(json.dumps(content))
    xyz, rgb = scenes.ball_points(60)
    scenes.write_points(folder / "points3d.ply", SOME.points(torch.from_numpy(xyz)).float().numpy(), rgb)
    return folder


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball,
        output=tmp_path / "run",
        normalize="up",
        iterations=ITERATIONS,
        sh_degree_every=10,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DENSIFY,
    )


@pytest.fixture(scope="module")
def splat(ball, tmp_path_factory):
    """A splat PLY of the ball in the world of its files, with harmonics, of all sizes."""
    xyz, rgb = scenes.ball_points(80)
    model = GaussianModel.from_points(xyz, rgb / 255, sh_degree=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.feature_rest.copy_(torch.randn(80, 15, 3, generator=generator) / 20)
        model.scaling.add_(torch.randn(80, 3, generator=generator) / 3)
        model.rotation.copy_(torch.randn(80, 4, generator=generator))
        model.opacity.copy_(torch.randn(80, 1, generator=generator) * 3)
    path = tmp_path_factory.mktemp("normalized") / "splat.ply"
    model.moved(SOME).save_ply(path)
    return path


def evaluated(*words) -> dict:
    output = words[words.index("--output") + 1]
    assert main([*map(str, words)]) == 0
    return json.loads((output / "metrics.json").read_text())


def close(ply, expected: dict, tolerance: float = 2e-5) -> bool:
    """Whether a PLY has these raw parameters but for rounding; q and -q are one rotation."""
    found = {name: torch.from_numpy(value) for name, value in read_splat(ply).items()}
    for name, value in expected.items():
        if name == "rotation":
            found[name] = found[name] * (found[name] * value).sum(dim=1, keepdim=True).sign()
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=1e-5, msg=name)
    return True


@pytest.mark.parametrize("kind", ["scale", "up"])
def test_what_is_written_is_in_the_scenes_own_world(ball, config, tmp_path, kind):
    trainer = Trainer(replace(config, normalize=kind))
    assert trainer.scene.extent < 1.5  # it is normalised
    metrics = trainer.train()["test"]
    ply, plain = trainer.run.ply(ITERATIONS), load_scene(ball)
    found = GaussianModel.load_ply(ply)
    middle = SOME.translation.float()
    assert ((found.xyz - middle).norm(dim=1).median() / SOME.scale).item() == pytest.approx(1, abs=0.3)
    views = (*plain.test, *plain.train)
    for entry, view in zip(json.loads(trainer.run.cameras.read_text()), views, strict=True):
        np.testing.assert_allclose(entry["position"], view.camera.center, atol=1e-4)
        np.testing.assert_allclose(entry["rotation"], view.camera.viewmat[:3, :3].T, atol=1e-5)

    words = ("--scene", ball, "--device", "cpu", "--background", "white")
    for number, more in enumerate(([], ["--normalize", kind], ["--normalize", "scale"])):
        seen = evaluated("evaluate", ply, *words, "--output", tmp_path / f"seen{number}", *more)["test"]
        for name, value in metrics.items():
            assert seen[name] == pytest.approx(value, abs=2e-3), name
    seen = evaluated("evaluate", trainer.run.path, "--device", "cpu", "--output", tmp_path / "seen")["test"]
    assert seen["psnr"] == pytest.approx(metrics["psnr"], abs=2e-3)
    assert main(["render", str(trainer.run.path), "--device", "cpu"]) == 0


def test_normalising_is_no_worse_than_the_ball_where_it_was_made(config, tmp_path):
    """What is learnt hardly depends on the world of the files: rates are relative to the extent."""
    away = Trainer(config).train()["test"]["psnr"]
    scenes.write_nerf_synthetic(tmp_path / "ball", points=60)
    home = Trainer(replace(config, scene=tmp_path / "ball", output=tmp_path / "home")).train()["test"]["psnr"]
    assert away == pytest.approx(home, abs=0.5)


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(config, tmp_path):
    whole = Trainer(config)
    whole.train()
    half = Trainer(replace(config, output=tmp_path / "half"))
    while half.step < 17:
        half.train_step()
    half.run = half.run.claim(half.config.to_json())
    (half.run.cameras).write_text(whole.run.cameras.read_text())
    half.save()
    resumed = Trainer(TrainConfig.of_run(half.run.path))
    assert resumed.step == 17
    assert resumed.scene.world.to_json() == whole.scene.world.to_json()
    resumed.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert resumed.run.ply(ITERATIONS).read_bytes() == whole.run.ply(ITERATIONS).read_bytes()


def test_a_run_keeps_its_world_when_it_is_resumed(config):
    trainer = Trainer(config)
    trainer.train()
    again = replace(TrainConfig.of_run(config.output), iterations=ITERATIONS + 2)
    with pytest.raises(InputError, match="--normalize scale: this run has up, and its model is in the units"):
        Trainer(replace(again, normalize="scale"))
    with pytest.raises(InputError, match=r"--scene .*ball: normalised by None, the run by .*; let the"):
        Trainer(again, scene=load_scene(config.scene))
    assert Trainer(again, scene=trainer.scene).step == ITERATIONS
    path = checkpoint.latest(trainer.run.checkpoints)
    state = checkpoint.load(path)
    state["world"]["scale"] *= 1.0 + 1e-9  # as if it had been found on another processor
    checkpoint.save(path, state)
    assert Trainer(again).scene.world.scale == state["world"]["scale"]


def test_a_checkpoint_is_a_file_of_gaussians_in_the_world(config):
    trainer = Trainer(config)
    trainer.train()
    splat = read(checkpoint.latest(trainer.run.checkpoints))
    assert close(trainer.run.ply(ITERATIONS), splat.tensors)
    assert splat.moments == {}
    assert splat.notes == ["trained in a normalised world: moved back, without moments"]
    assert splat.extent == pytest.approx(load_scene(config.scene).extent, rel=1e-5)


def test_gaussians_from_a_file_begin_where_they_are_in_the_world(config, splat):
    trainer = Trainer(replace(config, init=splat))
    assert trainer.model.xyz.norm(dim=1).max() < 3  # in the normalised world
    trainer.save()
    expected = {name: torch.from_numpy(value) for name, value in read_splat(splat).items()}
    assert close(trainer.run.ply(0), expected)


def test_moments_of_another_world_are_not_used(config, splat, tmp_path):
    expected = {name: torch.from_numpy(value) for name, value in read_splat(splat).items()}
    groups = [{"params": [i], "name": name, "lr": 0.1} for i, name in enumerate(expected)]
    state = {
        "step": 3,
        "model": expected,
        "optimizer": {
            "state": {i: adam_state(value, i) for i, value in enumerate(expected.values())},
            "param_groups": [group | {"param_names": [group["name"]]} for group in groups],
        },
    }
    checkpoint.save(tmp_path / "a.pt", state)
    assert read(tmp_path / "a.pt").moments
    trainer = Trainer(replace(config, init=tmp_path / "a.pt"))
    assert not trainer.optimizer.state
    assert trainer.start_notes[0] == "moments: of other coordinates now, left out"
    assert trainer.config.init_warmup == 4


@pytest.mark.parametrize("kind", ["box", "file"])
def test_regions_are_in_the_world(config, splat, tmp_path, kind):
    centres = torch.from_numpy(read_splat(splat)["xyz"])
    inside = centres[:, 0] < SOME.translation[0]
    if kind == "box":
        region = f"box:-inf,-inf,-inf,{SOME.translation[0]},inf,inf"
    else:
        region = str(tmp_path / "part.ply")
        rgb = np.zeros((int(inside.sum()), 3), np.uint8)
        scenes.write_points(tmp_path / "part.ply", centres[inside].numpy(), rgb)
    trainer = Trainer(replace(config, init=splat, lock=(region,)))
    assert torch.equal(locked_rows(trainer.model)["xyz"], inside.nonzero().flatten())
    before = trainer.model.xyz.detach()[inside].clone()
    trainer.train()
    assert torch.equal(trainer.model.xyz.detach()[: len(before)], before)

    of_points = Trainer(replace(config, output=tmp_path / "points", lock=(region,) if kind == "box" else ()))
    if kind == "box":
        world = load_scene(config.scene).points.xyz
        assert torch.equal(of_points.model.locked, world[:, 0] < SOME.translation[0])


def test_what_is_trained_beside_the_model_is_written_in_the_world_too(config, splat, tmp_path):
    settings = replace(
        config,
        optimize_poses=True,
        exposure=True,
        background_model=splat,
        background_model_trainable=True,
        groups=Groups(poses=GroupOptions(lr=3e-3)),
    )
    trainer = Trainer(settings)
    metrics = trainer.train()
    assert trainer.joint.poses.delta.abs().max() > 1e-3
    seen = evaluated("evaluate", trainer.run.path, "--device", "cpu", "--output", tmp_path / "seen")
    plain = (*("evaluate", trainer.run.path, "--device", "cpu"), "--normalize", "none")
    world = evaluated(*plain, "--output", tmp_path / "plain")
    for split in ("train", "test"):
        assert seen[split]["psnr"] == pytest.approx(metrics[split]["psnr"], abs=5e-3)
        assert world[split]["psnr"] == pytest.approx(metrics[split]["psnr"], abs=5e-3)
    given = json.loads(trainer.run.cameras.read_text())
    refined = json.loads(trainer.run.refined_cameras.read_text())
    moved = [
        np.abs(np.subtract(a["position"], b["position"])).max() for a, b in zip(given, refined, strict=True)
    ]
    assert 1e-4 < max(moved) < 1.0


def test_the_start_of_a_run_tells_its_units(config, tmp_path):
    trainer = Trainer(config)
    (line,) = [line for line in opening(trainer) if line.startswith("world")]
    assert line.startswith(f"world     normalised, a unit is {4 * SOME.scale:.2g}")  # cameras are 4 away
    plain = Trainer(replace(config, normalize="none", output=tmp_path / "plain"))
    assert not [line for line in opening(plain) if line.startswith("world")]


def test_an_unnormalised_run_has_no_world_in_its_checkpoint(config):
    trainer = Trainer(replace(config, normalize="none"))
    assert trainer.state_dict()["world"] is None
    assert trainer.scene.world is None
