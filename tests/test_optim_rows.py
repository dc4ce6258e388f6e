"""Every optimizer that can be chosen, on Gaussians that come, go and are frozen."""

import pytest
import torch
from optimizing import gaussian_groups, train
from refining import STEPS, random_info, random_model
from torch import nn

import gsopt
from gsopt.errors import InputError
from gsopt.groups import GroupSpec, freeze, unfreeze
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer
from gsopt.optim.catalog import optimizer_class
from gsopt.strategy import DefaultStrategy
from gsopt.surgery import append, overwrite, resize

REFUSED = {"lbfgs", "muon", "sparseadam"}
TORCH = {
    name.lower()
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
}
ALL = [*sorted(TORCH - REFUSED), "visible_adam"]
MOMENTUM = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "adam": {"amsgrad": True},
}
ELEMENTWISE = [name for name in ALL if name != "adafactor"]  # which takes means over the whole parameter


def test_every_class_of_torch_is_known():
    """A new one must be looked at: what it takes, and which of its state belongs to rows."""
    known = "adadelta adafactor adagrad adam adamax adamw asgd nadam radam rmsprop rprop sgd"
    assert sorted(TORCH - REFUSED) == known.split()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_those_that_cannot_are_refused_for_all_groups_and_for_one(name):
    with pytest.raises(InputError, match=f"^optimizer {name}: cannot train Gaussians: it takes"):
        build_optimizer(name, gaussian_groups(GaussianModel(1)))
    groups = gaussian_groups(GaussianModel(1), opacity=GroupSpec(0.1, optimizer=name))
    with pytest.raises(
        InputError, match=f"^group opacity: optimizer {name}: cannot train Gaussians: it takes"
    ):
        build_optimizer("adam", groups)


def test_rates_are_those_of_the_groups_and_zero_without():
    optimizer = build_optimizer("sgd", [{"params": [nn.Parameter(torch.ones(1))]}])
    assert optimizer.param_groups[0]["lr"] == 0.0
    groups = gaussian_groups(GaussianModel(1))
    rates = [group["lr"] for group in groups]
    assert [group["lr"] for group in build_optimizer("sgd", groups).param_groups] == rates


@pytest.mark.parametrize("name", ALL)
def test_it_trains_through_densification_and_freezing(name):
    """A field of Gaussians is drawn to one value each attribute, while rows are cloned, split and pruned."""
    generator = torch.Generator().manual_seed(0)
    model = random_model(40, generator)
    wanted = {"xyz": 1.0, "feature_dc": -1.0, "feature_rest": 0.5, "rotation": 2.0}

    def loss() -> torch.Tensor:
        return sum((model.get_parameter(n) - value).square().mean() for n, value in wanted.items())

    rate = {"adadelta": 30.0, "sgd": 1.0, "asgd": 3.0, "radam": 0.3}.get(name, 0.05)
    specs = {attribute: GroupSpec(rate) for attribute in ATTRIBUTES} | {"scaling": GroupSpec(0.0)}
    optimizer = build_optimizer(name, gaussian_groups(model, **specs), **MOMENTUM.get(name, {}))
    strategy = DefaultStrategy(**STEPS, grow_grad2d=1e-5, prune_opa=0.004).resolve(100)
    first, rows = loss().item(), set()
    for step in range(1, 41):
        if step == 10:
            freeze(optimizer, "feature_dc")
            held = model.feature_dc.detach().clone()
        if step == 20:
            assert torch.isin(model.feature_dc.flatten(), held.flatten()).all()
            unfreeze(optimizer, "feature_dc")
        (loss() + model.opacity.square().mean()).backward()  # whose values the strategy resets
        strategy.observe(model, random_info(model.num_gaussians, 2, generator), step)
        optimizer.step()
        optimizer.zero_grad()
        strategy.refine(model, optimizer, step, generator)
        rows.add(model.num_gaussians)
        for parameter in model.parameters():
            for value in optimizer.state.get(parameter, {}).values():
                assert not isinstance(value, torch.Tensor) or value.isfinite().all()
    assert len(rows) > 3
    assert loss().item() < 0.8 * first


def shapes(model: GaussianModel, optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{key}": tuple(value.shape)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }


def copies(model: GaussianModel, count: int) -> dict[str, torch.Tensor]:
    return {name: p.detach()[:1].repeat(count, *[1] * (p.dim() - 1)) for name, p in model.named_parameters()}


@pytest.mark.parametrize("rows", [1, 3, 4, 15])  # as many as a parameter has columns, or its state entries
@pytest.mark.parametrize("name", ALL)
def test_state_has_the_shapes_of_a_fresh_optimizer_however_many_rows_there_were(name, rows):
    model, fresh = GaussianModel(rows), GaussianModel(rows + 2)
    optimizers = [
        build_optimizer(name, gaussian_groups(each), **MOMENTUM.get(name, {})) for each in (model, fresh)
    ]
    train(optimizers[0], 2)
    append(model, ATTRIBUTES, optimizers[0], copies(model, 2))
    train(optimizers[1], 2)
    assert shapes(model, optimizers[0]) == shapes(fresh, optimizers[1])
    train(optimizers[0], 2)
    overwrite(model, optimizers[0], {"opacity": torch.zeros(1, 1)}, torch.tensor([0]))
    resize(model, ATTRIBUTES, optimizers[0], torch.tensor([rows]), {})
    train(optimizers[0], 2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_mean_over_rows_of_adafactor_is_no_row():
    """col_var of a matrix [N, K] is [1, K]: with one row, it looks as if it had one as well."""
    model = GaussianModel(1, sh_degree=1)
    optimizer = build_optimizer("adafactor", gaussian_groups(model))
    train(optimizer, 1)
    before = optimizer.state[model.xyz]["col_var"].clone()
    append(model, ATTRIBUTES, optimizer, copies(model, 2))
    assert torch.equal(optimizer.state[model.xyz]["col_var"], before)
    assert optimizer.state[model.xyz]["row_var"].shape == (3, 1)
    assert optimizer.state[model.feature_dc]["col_var"].shape == (3, 1, 3)  # [N, 1, 3]: a mean in each row


def moved(model: GaussianModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten(1) for p in model.parameters()], dim=1)


def copied(rows: torch.Tensor, model: GaussianModel) -> GaussianModel:
    """A model of its own with some rows of another."""
    other = GaussianModel(len(rows), sh_degree=1)
    with torch.no_grad():
        for to, of in zip(other.parameters(), model.parameters(), strict=True):
            to.copy_(of[rows])
    return other


def step_together(
    models: list[GaussianModel], optimizers: list[torch.optim.Optimizer], of: list[torch.Tensor], seed: int
) -> None:
    """Five steps with gradients that are alike where the rows in `of` are."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        for name in ATTRIBUTES:
            table = torch.randn(8, *getattr(models[0], name).shape[1:], generator=generator)
            for model, rows in zip(models, of, strict=True):
                getattr(model, name).grad = table[rows]
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_rows_that_stay_go_on_as_if_nothing_had_happened(name):
    model = random_model(6, torch.Generator().manual_seed(0))
    kept = torch.tensor([4, 1])
    alone = copied(kept, model)
    models, options = [model, alone], MOMENTUM.get(name, {})
    optimizers = [build_optimizer(name, gaussian_groups(each), **options) for each in models]
    step_together(models, optimizers, [torch.arange(6), kept], seed=1)
    resize(model, ATTRIBUTES, optimizers[0], kept, copies(model, 1))
    step_together(models, optimizers, [torch.tensor([4, 1, 7]), kept], seed=2)
    torch.testing.assert_close(moved(model)[:2], moved(alone))


NO_COMMON_STEP = {  # what these do depends on no step count that all rows share
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "rprop": {},
    "adagrad": {"initial_accumulator_value": 0.5},
    "adadelta": {},
    "visible_adam": {},
}


@pytest.mark.parametrize("how", ["append", "overwrite"])
@pytest.mark.parametrize("name", NO_COMMON_STEP)
def test_rows_that_begin_do_so_as_in_a_fresh_optimizer(name, how):
    """Also those of Rprop, whose steps begin at the rate, and of Adagrad, whose sum begins as one wishes."""
    model = random_model(4, torch.Generator().manual_seed(0))
    options = NO_COMMON_STEP[name]
    optimizer = build_optimizer(name, gaussian_groups(model), **options)
    step_together([model], [optimizer], [torch.arange(4)], seed=1)
    new = torch.tensor([4, 5] if how == "append" else [0, 3])
    if how == "append":
        append(model, ATTRIBUTES, optimizer, copies(model, 2))
    else:
        overwrite(model, optimizer, copies(model, 2), new)
    alone = copied(new, model)
    fresh = build_optimizer(name, gaussian_groups(alone), **options)
    everything = torch.arange(len(model.xyz))
    step_together([model, alone], [optimizer, fresh], [everything, new], seed=2)
    torch.testing.assert_close(moved(model)[new], moved(alone))


def test_the_mean_that_asgd_keeps_of_a_value_begins_with_it():
    model = random_model(4, torch.Generator().manual_seed(0))
    optimizer = build_optimizer("asgd", gaussian_groups(model))
    train(optimizer, 1)
    append(model, ATTRIBUTES, optimizer, copies(model, 2))
    assert torch.equal(optimizer.state[model.xyz]["ax"], model.xyz)
    value = torch.full((1, 1), 7.0)
    overwrite(model, optimizer, {"opacity": value}, torch.tensor([2]))
    assert optimizer.state[model.opacity]["ax"][2].item() == 7


def test_the_names_are_those_of_the_classes():
    assert optimizer_class("RAdam") is torch.optim.RAdam
    assert optimizer_class("visible_adam") is gsopt.VisibleAdam
