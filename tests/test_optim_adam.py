"""Adam and AdamW in the CPU kernel against torch's own."""

import pytest
import torch
from torch import nn

import gsopt
from gsopt.native import get_num_threads, set_num_threads

SHAPES = [(1,), (7,), (8193,), (33, 15, 3)]
OWN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
NO_GRADIENT = 2  # the group of these tests whose parameter never gets one


def make_groups(dtype: torch.dtype = torch.float32, **options) -> list[dict]:
    """One parameter a group, each group with options of its own."""
    generator = torch.Generator().manual_seed(0)
    own = [
        {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.1},
        {"lr": 1e-3, "betas": (0.5, 0.9), "maximize": True},
        {"lr": 1e-1, "betas": (0.8, 0.99), "weight_decay": 0.3},
        {"lr": 3e-2, "betas": (0.0, 0.95), "eps": 1e-3, "weight_decay": 0.01, "maximize": True},
    ]
    return [
        {"params": [nn.Parameter(torch.randn(shape, generator=generator).to(dtype))]} | group | options
        for shape, group in zip(SHAPES, own, strict=True)
    ]


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def train(
    optimizer: torch.optim.Optimizer, steps: int = 20, seed: int = 0, absent: int | None = None
) -> None:
    """Steps with gradients of 1e-6 to 1e3; each parameter lacks it at every seventh, `absent` at all."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for i, p in enumerate(parameters(optimizer)):
            gradient = torch.randn(p.shape, generator=generator)
            gradient *= 10 ** (9 * torch.rand(p.shape, generator=generator) - 6)
            p.grad = None if i == absent or (step + i) % 7 == 2 else gradient.to(p.dtype)
        optimizer.step()


def values(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters and state, in order."""
    found = []
    for p in parameters(optimizer):
        state = optimizer.state.get(p, {})
        found += [p.detach(), *(state[key] for key in ("step", "exp_avg", "exp_avg_sq") if key in state)]
    return found


def assert_close(found: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """Equal to float rounding; absolute errors count beside the tensor's largest value."""
    for a, b in zip(values(found), values(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item())


def assert_same(found: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    for a, b in zip(values(found), values(expected), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def kernel_calls(monkeypatch) -> list[int]:
    """Number of tensors of each call of the kernel."""
    calls = []
    kernel = gsopt.optim.adam.library()

    class Counting:
        @staticmethod
        def gsopt_adam(n, updates):
            calls.append(n)
            return kernel.gsopt_adam(n, updates)

    monkeypatch.setattr(gsopt.optim.adam, "library", Counting)
    return calls


@pytest.mark.parametrize("name", OWN)
def test_steps_are_those_of_torch(name, kernel_calls):
    ours = gsopt.build_optimizer(name, make_groups(), native=True)
    theirs = OWN[name](make_groups(), eps=1e-15, fused=False)
    before = [p.detach().clone() for p in parameters(ours)]
    for each in (ours, theirs):
        train(each)
    assert len(kernel_calls) == 20
    assert isinstance(ours, OWN[name])
    assert_close(ours, theirs)
    assert all(not torch.equal(p, start) for p, start in zip(parameters(ours), before, strict=True))


@pytest.mark.parametrize("name", OWN)
def test_what_has_no_gradient_keeps_its_bits(name):
    optimizer = gsopt.build_optimizer(name, make_groups(), native=True)
    fresh = parameters(optimizer)[NO_GRADIENT]
    start = fresh.detach().clone()
    train(optimizer, 3, absent=NO_GRADIENT)
    assert torch.equal(fresh, start)
    assert not optimizer.state.get(fresh)
    train(optimizer, 3, seed=1)  # now it has moments
    kept = [fresh.detach().clone(), *(value.clone() for value in optimizer.state[fresh].values())]
    train(optimizer, 3, seed=2, absent=NO_GRADIENT)
    now = [fresh, *optimizer.state[fresh].values()]
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


@pytest.mark.parametrize("name", OWN)
def test_bits_do_not_depend_on_the_number_of_threads(name):
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            found.append(gsopt.build_optimizer(name, make_groups(), native=True))
            train(found[-1])
    finally:
        set_num_threads(before)
    for optimizer in found[1:]:
        assert_same(optimizer, found[0])


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {"amsgrad": True}), (torch.float64, {})],
    ids=["amsgrad", "float64"],
)
@pytest.mark.parametrize("name", OWN)
def test_torch_does_what_the_kernel_lacks(name, dtype, options, kernel_calls):
    ours = gsopt.build_optimizer(name, make_groups(dtype), native=True, fused=False, **options)
    theirs = OWN[name](make_groups(dtype), eps=1e-15, fused=False, **options)
    for each in (ours, theirs):
        train(each)
    assert not kernel_calls
    assert_same(ours, theirs)


def test_one_parameter_of_float64_among_others():
    def mixed() -> list[dict]:
        return [*make_groups()[:2], *make_groups(torch.float64)[2:]]

    ours = gsopt.build_optimizer("adam", mixed(), native=True, fused=False)
    theirs = torch.optim.Adam(mixed(), eps=1e-15, fused=False)
    for each in (ours, theirs):
        train(each)
    assert_same(ours, theirs)


@pytest.mark.parametrize("native_first", [True, False], ids=["to torch", "from torch"])
@pytest.mark.parametrize("name", OWN)
def test_state_goes_to_torch_and_back(name, native_first, kernel_calls):
    def make(native: bool) -> torch.optim.Optimizer:
        if native:
            return gsopt.build_optimizer(name, make_groups(), native=True, fused=False)
        return OWN[name](make_groups(), eps=1e-15, fused=False)

    first, second, straight = make(native_first), make(not native_first), make(False)
    train(first, 10)
    with torch.no_grad():
        for to, of in zip(parameters(second), parameters(first), strict=True):
            to.copy_(of)
    second.load_state_dict(first.state_dict())
    train(second, 10, seed=1)
    for steps_seed in (0, 1):
        train(straight, 10, seed=steps_seed)
    assert len(kernel_calls) == 10
    assert_close(second, straight)


def test_closure_is_called_once_with_gradients_on_and_its_loss_returned():
    parameter = nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = gsopt.build_optimizer("adam", [{"params": [parameter], "lr": 0.5}], native=True)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        losses.append(loss)
        return loss

    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    assert losses[0].item() == 25
    # Adam's first step has the length of the rate, against the sign of the gradient
    torch.testing.assert_close(parameter.detach(), torch.tensor([2.5, -3.5]))
