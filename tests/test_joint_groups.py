"""Groups of several models in one optimizer: what is done to one leaves the others alone."""

import pytest
import torch
from optimizing import same, train
from refining import random_model

from gsopt import surgery
from gsopt.errors import InputError
from gsopt.groups import GroupSpec, build_groups, build_scheduler, freeze, gaussian_specs, unfreeze
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.poses import PoseRefiner
from gsopt.schedules import Exponential

OPTIMIZERS = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.0, eps=1e-15),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.0, weight_decay=0.1),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_models() -> dict[str, GaussianModel]:
    return {"coarse": random_model(7, seeded(0)), "fine": random_model(9, seeded(1))}


def everything_of(owner: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Parameters, gradients, moments and rates of one model's groups."""
    found = {}
    for group in optimizer.param_groups:
        if group["name"].startswith(owner):
            found[f"{group['name']}.lr"] = torch.tensor(group["lr"])
            for parameter in group["params"]:
                found[group["name"]] = parameter.detach().clone()
                if parameter.grad is not None:
                    found[f"{group['name']}.grad"] = parameter.grad.clone()
                for key, value in optimizer.state[parameter].items():
                    found[f"{group['name']}.{key}"] = torch.as_tensor(value).clone()
    return found


CHANGES = {
    "grow": lambda model, opt: surgery.append(
        model, ATTRIBUTES, opt, {name: getattr(model, name).detach()[:2] for name in ATTRIBUTES}
    ),
    "prune": lambda model, opt: surgery.keep(model, ATTRIBUTES, opt, torch.arange(len(model.xyz)) > 2),
    "reset": lambda model, opt: surgery.overwrite(model, opt, {"opacity": model.opacity.clamp(max=-4)}),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("change", CHANGES)
def test_changing_the_rows_of_one_model_leaves_the_other_alone(change, optimizer):
    models = two_models()
    opt = OPTIMIZERS[optimizer](build_groups(models, gaussian_specs(1.0, 100)))
    train(opt, steps=3)
    coarse, fine = everything_of("coarse", opt), everything_of("fine", opt)
    objects = list(models["fine"].parameters())
    CHANGES[change](models["coarse"], opt)
    assert not same(everything_of("coarse", opt), coarse)
    assert same(everything_of("fine", opt), fine)
    assert all(a is b for a, b in zip(objects, models["fine"].parameters(), strict=True))
    names = [group["name"] for group in opt.param_groups]
    assert names == [f"{model}.{name}" for model in models for name in ATTRIBUTES]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_other_model_trains_on_as_if_nothing_had_happened(change, optimizer):
    """To the bit: six steps with the same gradients, with and without a change of the other model between."""

    def fine_after(changed: bool) -> dict[str, torch.Tensor]:
        models = two_models()
        opt = OPTIMIZERS[optimizer](build_groups(models, gaussian_specs(1.0, 100)))
        for step in range(6):
            for parameter in models["coarse"].parameters():
                parameter.grad = torch.ones_like(parameter)
            generator = seeded(step)
            for parameter in models["fine"].parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            opt.step()
            opt.zero_grad(set_to_none=True)
            if changed and step == 2:
                CHANGES[change](models["coarse"], opt)
        return everything_of("fine", opt)

    assert same(fine_after(True), fine_after(False))


def test_a_spec_for_one_model_beats_the_one_for_all():
    specs = gaussian_specs(1.0, 100) | {
        "coarse.xyz": GroupSpec(lr=7.0, weight_decay=0.5, options={"betas": (0.5, 0.9)})
    }
    groups = {group["name"]: group for group in build_groups(two_models(), specs)}
    assert groups["coarse.xyz"]["lr"] == 7.0
    assert groups["coarse.xyz"]["weight_decay"] == 0.5
    assert groups["coarse.xyz"]["betas"] == (0.5, 0.9)
    assert groups["fine.xyz"]["lr"] == pytest.approx(1.6e-4)
    assert "betas" not in groups["fine.xyz"]


def test_each_group_has_the_schedule_of_its_spec():
    specs = gaussian_specs(1.0, 100) | {
        "coarse.xyz": GroupSpec(lr=1.0, schedule=Exponential(0.5)),
        "opacity": GroupSpec(lr=1.0, schedule=Exponential(0.1)),
    }
    opt = torch.optim.SGD(build_groups(two_models(), specs), lr=0.0)
    scheduler = build_scheduler(opt, specs)
    train(opt, steps=1)
    scheduler.step()
    rates = {group["name"]: group["lr"] for group in opt.param_groups}
    assert rates["coarse.xyz"] == 0.5
    assert rates["fine.xyz"] == pytest.approx(1.6e-4 * 0.01 ** (1 / 100))
    assert rates["coarse.opacity"] == rates["fine.opacity"] == 0.1
    assert rates["fine.scaling"] == 5e-3  # no schedule


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_group_of_one_model_is_frozen_by_its_full_name(optimizer):
    models = two_models()
    opt = OPTIMIZERS[optimizer](build_groups(models, gaussian_specs(1.0, 100)))
    train(opt, steps=2)
    before = everything_of("coarse.xyz", opt)
    freeze(opt, ["coarse.xyz"])
    train(opt, steps=3)
    assert same(everything_of("coarse.xyz", opt), before)
    assert not models["coarse"].xyz.requires_grad
    assert models["fine"].xyz.requires_grad
    unfreeze(opt, "coarse.xyz")
    train(opt, steps=1)
    assert not same(everything_of("coarse.xyz", opt), before)


def test_the_bare_name_is_no_group_of_several_models():
    opt = torch.optim.SGD(build_groups(two_models(), gaussian_specs(1.0, 100)), lr=0.0)
    with pytest.raises(InputError, match=r'no group has the name "xyz"; choose from "coarse\.xyz"'):
        freeze(opt, ["xyz"])


def test_the_model_with_the_empty_key_keeps_its_bare_names():
    one = GroupSpec(lr=1.0)
    models = {"": GaussianModel(2), "background": GaussianModel(3), "poses": PoseRefiner(4)}
    specs = gaussian_specs(1.0, 100) | {"poses": one, "background.xyz": GroupSpec(lr=3.0)}
    groups = {group["name"]: group for group in build_groups(models, specs)}
    assert list(groups) == [*ATTRIBUTES, *(f"background.{name}" for name in ATTRIBUTES), "poses"]
    assert [name for name, _ in groups["xyz"]["params"]] == ["xyz"]
    assert [name for name, _ in groups["poses"]["params"]] == ["poses.delta"]
    assert groups["background.xyz"]["lr"] == 3.0
