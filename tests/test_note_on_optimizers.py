"""The note this project comes from, block by block, through this library: modules and loose tensors.

What the note does with Gaussians, and its experiment with two orders of layers, have files of their own
(`test_note_on_gaussians.py`, `test_note_on_order.py`).
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gsopt
from gsopt import GroupSpec

SEED = 42


class Net(nn.Module):
    """Six parameters as in the note's printout: a linear layer and two small convolutions."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 9)
        self.conv1 = nn.Conv2d(1, 1, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.linear(x))  # [B, 9]
        return self.conv2(F.relu(self.conv1(x.view(-1, 1, 3, 3)))).flatten(1)


def made(kind=Net, seed: int = SEED) -> nn.Module:
    torch.manual_seed(seed)
    return kind()


def fit(model, optimizer, steps: int = 5, scheduler=None) -> list[float]:
    """A few steps on random data, the same for every call; the losses."""
    generator = torch.Generator().manual_seed(SEED)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 9, generator=generator)
        loss = F.mse_loss(model(x), x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ---------------------------------------- 1.1 and 1.2: optimizers over the parameters of a module

OVER_A_MODULE = {
    "SGD": {"lr": 0.01},
    "Adam": {"lr": 0.01, "betas": (0.9, 0.999)},
    "AdamW": {"lr": 0.01, "betas": (0.9, 0.999)},
}


DECAY = {"SGD": 0.0, "Adam": 0.0, "AdamW": 0.01}  # which torch takes where nobody says it


@pytest.mark.parametrize("kind", OVER_A_MODULE)
def test_an_optimizer_over_a_module(kind):
    """All parameters in one group, by the name that the module is given; the bits are torch's.

    A spec states the weight decay, 0 unless it says otherwise; AdamW's own default is 0.01.
    """
    options = OVER_A_MODULE[kind]
    plain, named = made(), made()
    theirs = getattr(torch.optim, kind)(plain.parameters(), **options)
    groups = gsopt.build_groups({"net": named}, {"net": GroupSpec(lr=0.01, weight_decay=DECAY[kind])})
    ours = getattr(torch.optim, kind)(groups, **options)
    assert [group["name"] for group in ours.param_groups] == ["net"]
    losses = fit(plain, theirs)
    assert fit(named, ours) == losses
    assert same_bits(plain, named)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", OVER_A_MODULE)
def test_the_same_by_name_of_the_optimizer(kind):
    """`build_optimizer`, which is what `--optimizer NAME` calls."""
    plain, named = made(), made()
    options = OVER_A_MODULE[kind] | ({} if kind == "SGD" else {"eps": 1e-15, "fused": True})
    theirs = getattr(torch.optim, kind)(plain.parameters(), **options)
    groups = gsopt.build_groups({"net": named}, {"net": GroupSpec(lr=0.01, weight_decay=DECAY[kind])})
    ours = gsopt.build_optimizer(kind, groups)
    fit(plain, theirs)
    fit(named, ours)
    for a, b in zip(plain.parameters(), named.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_state_dict_and_param_groups_are_those_of_torch():
    """Before the first step: no state, one group, parameters as positions; ours adds names."""
    groups = gsopt.build_groups({"net": made()}, {"net": GroupSpec(lr=0.001)})
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    printed = optimizer.state_dict()
    assert printed["state"] == {}
    (group,) = printed["param_groups"]
    as_in_the_note = {
        "lr": 0.001,
        "momentum": 0.9,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "params": [0, 1, 2, 3, 4, 5],
    }
    assert {key: group[key] for key in as_in_the_note} == as_in_the_note
    assert group["param_names"] == [
        *("net.linear.weight", "net.linear.bias"),
        *("net.conv1.weight", "net.conv1.bias", "net.conv2.weight", "net.conv2.bias"),
    ]
    assert (group["name"], group["frozen"]) == ("net", False)

    (live,) = optimizer.param_groups
    shapes = [tuple(parameter.shape) for parameter in live["params"]]
    assert shapes == [(9, 9), (9,), (1, 1, 3, 3), (1,), (1, 1, 3, 3), (1,)]
    assert all(parameter.requires_grad for parameter in live["params"])
    assert str(live["params"][0]).startswith("Parameter containing:\ntensor([[")


# ---------------------------------------- 1.3: what each call does


def test_gradients_accumulate_until_they_are_cleared():
    """Two backward passes of halves of a batch, each loss divided by 2, give the step of the whole batch."""
    whole, halves = made(), made()
    specs = {"net": GroupSpec(lr=0.1)}
    optimizers = [torch.optim.SGD(gsopt.build_groups({"net": net}, specs)) for net in (whole, halves)]
    x = torch.randn(8, 9, generator=torch.Generator().manual_seed(1))
    F.mse_loss(whole(x), x).backward()
    for part in x.chunk(2):
        (F.mse_loss(halves(part), part) / 2).backward()
    for optimizer in optimizers:
        optimizer.step()
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_step_changes_state_and_values_and_zero_grad_sets_none():
    net = made()
    optimizer = torch.optim.Adam(gsopt.build_groups({"net": net}, {"net": GroupSpec(lr=1.0)}))
    before = net.linear.weight.detach().clone()
    assert net.linear.weight.grad is None
    net(torch.ones(2, 9)).sum().backward()
    assert torch.equal(net.linear.weight, before)  # backward leaves values and state alone
    assert not optimizer.state
    optimizer.step()
    assert not torch.equal(net.linear.weight, before)
    assert set(optimizer.state[net.linear.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert net.linear.weight.grad is not None
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_loading_a_model_restores_values_only():
    trained, fresh = made(), made(seed=0)
    trained(torch.ones(2, 9)).sum().backward()
    fresh.load_state_dict(dict(reversed(trained.state_dict().items())))  # by name: any order will do
    assert same_bits(trained, fresh)
    assert fresh.linear.weight.grad is None


# ---------------------------------------- 2: schedulers of torch on our groups


def rates_of(make_scheduler, calls: int, steps_a_call: int = 1) -> list[float]:
    """The learning rate after each call of `scheduler.step()`."""
    net = made()
    groups = gsopt.build_groups({"net": net}, {"net": GroupSpec(lr=0.1)})  # no schedule: torch drives it
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999))
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(calls):
        fit(net, optimizer, steps_a_call)
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_exponential_decay():
    rates = rates_of(lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.995), calls=20)
    assert rates == pytest.approx([0.1 * 0.995**n for n in range(1, 21)])


@pytest.mark.parametrize("steps_a_call", [1, 3])
def test_a_step_size_counts_calls_of_the_scheduler(steps_a_call):
    """Iterations where it is called in each iteration, epochs where it is called in each epoch."""
    rates = rates_of(
        lambda opt: torch.optim.lr_scheduler.StepLR(opt, step_size=100, gamma=0.1), 201, steps_a_call
    )
    assert rates[98] == pytest.approx(0.1)
    assert rates[99] == rates[198] == pytest.approx(0.01)
    assert rates[199] == pytest.approx(0.001)


def test_our_scheduler_leaves_groups_without_schedule_to_torch():
    """Both are stepped; each drives the groups that are its own."""
    net = made()
    specs = {
        "linear": GroupSpec(lr=0.1),
        "conv1": GroupSpec(lr=0.2, schedule=lambda step: 0.5**step),
        "conv2": GroupSpec(lr=0.3),
    }
    optimizer = torch.optim.SGD(gsopt.build_groups(net, specs))
    ours = gsopt.build_scheduler(optimizer, specs)
    theirs = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda n: 0.9**n, lambda n: 1, lambda n: 0.9**n])
    for _ in range(2):
        optimizer.step()
        theirs.step()
        ours.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.081, 0.05, 0.243])


# ---------------------------------------- 3: weight decay


def test_weight_decay_of_everything():
    """What torch does by default: weights and biases shrink alike."""
    net = nn.Sequential(nn.Linear(3, 2))
    specs = {"net": GroupSpec(lr=0.1, weight_decay=1e-3)}
    optimizer = torch.optim.SGD(gsopt.build_groups({"net": net}, specs))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, net.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.1 * 1e-3))


def test_weight_decay_of_weights_only():
    """Two specs for all layers, by the end of the names; a bias without gradient keeps its bits."""
    wd = 0.5
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    specs = {"weight": GroupSpec(lr=0.1, weight_decay=wd), "bias": GroupSpec(lr=0.1)}
    optimizer = torch.optim.SGD(gsopt.build_groups(net, specs))
    assert [(group["name"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ("weight", wd),
        ("bias", 0.0),
    ]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "2.weight"]
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        shrunk = before[name] * (1 - 0.1 * wd) if name.endswith("weight") else before[name]
        torch.testing.assert_close(parameter.detach(), shrunk, rtol=1e-6, atol=0)
    assert torch.equal(net[0].bias, before["0.bias"])


# ---------------------------------------- 4: several models, and no model at all


def test_two_models_in_one_optimizer():
    """One list of both models' parameters, with groups that can be told apart."""
    models = [made(), made(seed=1)]
    twins = [made(), made(seed=1)]
    theirs = torch.optim.Adam([*models[0].parameters(), *models[1].parameters()], lr=5e-3, betas=(0.9, 0.999))
    named = {"coarse": twins[0], "fine": twins[1]}
    specs = {name: GroupSpec(lr=5e-3) for name in named}
    ours = torch.optim.Adam(gsopt.build_groups(named, specs), betas=(0.9, 0.999))
    assert [group["name"] for group in ours.param_groups] == ["coarse", "fine"]
    fit(lambda x: models[0](x) + models[1](x), theirs)
    fit(lambda x: twins[0](x) + twins[1](x), ours)
    assert same_bits(models[0], twins[0])
    assert same_bits(models[1], twins[1])

    before = twins[0].linear.weight.detach().clone()
    gsopt.freeze(ours, "coarse")
    fit(lambda x: twins[0](x) + twins[1](x), ours)
    assert torch.equal(twins[0].linear.weight, before)
    assert not same_bits(models[1], twins[1])


def test_loose_parameters():
    """A perceptron of four tensors that belong to no module."""
    num_inputs, num_outputs, num_hiddens = 784, 10, 256

    def loose() -> dict[str, nn.Parameter]:
        generator = torch.Generator().manual_seed(SEED)
        return {
            "W1": nn.Parameter(torch.randn(num_inputs, num_hiddens, generator=generator) * 0.01),
            "b1": nn.Parameter(torch.zeros(num_hiddens)),
            "W2": nn.Parameter(torch.randn(num_hiddens, num_outputs, generator=generator) * 0.01),
            "b2": nn.Parameter(torch.zeros(num_outputs)),
        }

    def losses(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[float]:
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(32, num_inputs, generator=generator)
        y = torch.randint(num_outputs, (32,), generator=generator)
        found = []
        for _ in range(5):
            hidden = F.relu(x @ parameters["W1"] + parameters["b1"])
            loss = F.cross_entropy(hidden @ parameters["W2"] + parameters["b2"], y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    plain, named = loose(), loose()
    theirs = torch.optim.SGD(list(plain.values()), lr=0.01)
    ours = torch.optim.SGD(gsopt.build_groups(named, {name: GroupSpec(lr=0.01) for name in named}))
    assert [group["name"] for group in ours.param_groups] == ["W1", "b1", "W2", "b2"]
    found = losses(named, ours)
    assert found == losses(plain, theirs)
    assert found == sorted(found, reverse=True)
    assert all(torch.equal(plain[name], named[name]) for name in plain)
