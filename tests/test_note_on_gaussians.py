"""The note's Gaussians: groups of raw tensors, an opacity that is not to move, and groups left out.

Each group is one line that can be commented out. What is left out must survive densification, where rows
come and go, and keep every bit.
"""

import pytest
import scenes
import torch
from torch import nn

import gsopt
from gsopt import GroupSpec
from gsopt.strategy import DefaultStrategy

LEFT_OUT = ("xyz", "opacity")
LEFT_IN = ("feature_dc", "feature_rest", "scaling", "rotation")
STEPS = 40


# ---------------------------------------- requires_grad, the trap and three ways that work


def test_a_parameter_of_a_tensor_without_gradient_has_one():
    """The trap: `nn.Parameter` decides for itself, whatever the tensor it is given says."""
    opacities = torch.ones(5, 1)
    trap = nn.Parameter(opacities.requires_grad_(False))
    assert trap.requires_grad
    optimizer = torch.optim.SGD([trap], lr=0.5)
    trap.sum().backward()
    optimizer.step()
    assert torch.equal(trap.detach(), torch.full((5, 1), 0.5))  # it was trained

    meant = nn.Parameter(torch.ones(5, 1), requires_grad=False)
    assert not meant.requires_grad


def by_the_parameter(model: gsopt.GaussianModel) -> list[dict]:
    model.opacity = nn.Parameter(model.opacity.detach(), requires_grad=False)
    return gsopt.build_groups(model, gsopt.gaussian_specs(1.0, STEPS))


def by_the_spec(model: gsopt.GaussianModel) -> list[dict]:
    specs = gsopt.gaussian_specs(1.0, STEPS)
    return gsopt.build_groups(model, specs | {"opacity": GroupSpec(lr=0.025, frozen=True)})


def afterwards(model: gsopt.GaussianModel) -> list[dict]:
    return gsopt.build_groups(model, gsopt.gaussian_specs(1.0, STEPS))


@pytest.mark.parametrize("how", [by_the_parameter, by_the_spec, afterwards])
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_opacity_that_keeps_its_bits(how, kind):
    """In the optimizer, and frozen: momentum and weight decay leave it alone, too."""
    model = gsopt.GaussianModel(5)
    groups = how(model)
    for group in groups:
        group["weight_decay"] = 0.1
    optimizer = gsopt.build_optimizer(kind, groups, **({"momentum": 0.9} if kind == "sgd" else {}))
    if how is afterwards:
        gsopt.freeze(optimizer, "opacity")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        loss = sum((parameter + 1).square().sum() for parameter in model.parameters())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name == "opacity")
    assert [group["name"] for group in optimizer.param_groups if group["frozen"]] == ["opacity"]


# ---------------------------------------- groups left out, through densification


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("note") / "ball"
    return gsopt.load_scene(scenes.write_nerf_synthetic(folder, points=60))


def by_hand(model: gsopt.GaussianModel) -> list[dict]:
    """The note's list of dicts with a name each, two of them left out."""
    rates = {"feature_dc": 2.5e-3, "feature_rest": 2.5e-3 / 20, "scaling": 5e-3, "rotation": 1e-3}
    for name in LEFT_OUT:
        getattr(model, name).requires_grad_(False)
    return [{"params": [getattr(model, name)], "lr": lr, "name": name} for name, lr in rates.items()]


def by_specs(model: gsopt.GaussianModel) -> list[dict]:
    """The table of specs, with `optimize=False` for the two."""
    specs = gsopt.gaussian_specs(1.0, STEPS) | {name: GroupSpec(0.0, optimize=False) for name in LEFT_OUT}
    return gsopt.build_groups(model, specs)


def train(scene, make_groups):
    """40 steps of the whole method, with clones, splits, prunes and resets of opacity as they come."""
    model = gsopt.GaussianModel.from_points(scene.points.xyz, scene.points.rgb, sh_degree=1)
    with torch.no_grad():
        model.opacity.copy_(
            torch.linspace(-2, 2, model.num_gaussians)[:, None]
        )  # so that rows are told apart
    before = torch.cat([model.xyz, model.opacity], dim=1).detach()  # [N, 4]
    optimizer = torch.optim.Adam(make_groups(model), lr=0.0, eps=1e-15)
    strategy = DefaultStrategy(
        scene_scale=scene.extent,
        refine_start_iter=5,
        refine_stop_iter=STEPS,
        refine_every=5,
        reset_every=20,
        grow_grad2d=1e-5,
        grow_scale3d=1.0,
        max_gaussians=300,
    ).resolve(STEPS)
    generator = torch.Generator().manual_seed(0)
    done = []
    for step in range(1, STEPS + 1):
        view = scene.train[step % len(scene.train)]
        camera = view.camera
        image, _, info = gsopt.rasterization(
            *(model.means, model.quats, model.scales, model.opacities, model.sh),
            *(camera.viewmat[None], camera.K[None], camera.width, camera.height),
            sh_degree=1,
            packed=False,
        )
        info["means2d"].retain_grad()
        (image[0] - view.rgb(torch.zeros(3))).abs().mean().backward()
        strategy.observe(model, info, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done.append(strategy.refine(model, optimizer, step, generator))
    return model, optimizer, before, done


@pytest.fixture(scope="module", params=[by_hand, by_specs])
def trained(request, scene):
    return train(scene, request.param)


def test_rows_came_and_went(trained):
    model, _, before, done = trained
    assert sum(each.cloned for each in done) > 50
    assert sum(each.pruned for each in done) > 5
    assert model.num_gaussians > len(before)
    assert not any(each.split for each in done)  # halves would have to move


def test_what_is_left_out_keeps_every_bit_and_copies_it_to_new_rows(trained):
    model, _, before, _ = trained
    rows = torch.cat([model.xyz, model.opacity], dim=1)
    assert set(map(tuple, rows.tolist())) <= set(map(tuple, before.tolist()))
    for name in LEFT_OUT:
        assert not getattr(model, name).requires_grad
        assert getattr(model, name).grad is None


def test_the_optimizer_never_had_them(trained):
    model, optimizer, _, _ = trained
    assert [group["name"] for group in optimizer.param_groups] == list(LEFT_IN)
    assert all(group["eps"] == 1e-15 for group in optimizer.param_groups)
    assert [group["params"] for group in optimizer.param_groups] == [[getattr(model, n)] for n in LEFT_IN]
    assert len(optimizer.state) == len(LEFT_IN)


def test_moments_have_the_rows_of_their_parameters(trained):
    model, optimizer, _, _ = trained
    for name in LEFT_IN:
        parameter = getattr(model, name)
        state = optimizer.state[parameter]
        assert state["step"] == STEPS
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert state["exp_avg"].any()


def test_left_out_by_hand_or_by_spec_is_the_same_to_the_bit(scene):
    a, b = (train(scene, how)[0] for how in (by_hand, by_specs))
    assert a.num_gaussians == b.num_gaussians
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_same_from_the_command_line(scene, tmp_path):
    config = gsopt.TrainConfig(
        scene=scene.path,
        output=tmp_path / "run",
        iterations=STEPS,
        exclude=LEFT_OUT,
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DefaultStrategy(refine_start_iter=5, refine_every=5, grow_grad2d=1e-5, grow_scale3d=1.0),
    )
    trainer = gsopt.Trainer(config)
    before = {name: getattr(trainer.model, name).detach().clone() for name in LEFT_OUT}
    trainer.train()
    assert trainer.model.num_gaussians > len(before["xyz"])
    assert [group["name"] for group in trainer.optimizer.param_groups] == list(LEFT_IN)
    for name in LEFT_OUT:
        assert torch.equal(getattr(trainer.model, name)[: len(before[name])], before[name])
