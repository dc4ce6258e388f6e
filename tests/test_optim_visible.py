"""VisibleAdam: the rows that were seen are updated as by an Adam of their own, the others rest to the bit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from optimizing import gaussian_groups, mask, tensors, train
from torch import nn

import gsopt
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.native import available_isas, get_num_threads, set_num_threads
from gsopt.optim import visible_rows
from gsopt.surgery import keep

SHAPES = [(300, 3), (300, 1, 3), (300, 15, 3), (300, 4), (300, 1), (300, 33), (300, 0, 3), (300, 17)]
WHOLE = [(7, 6), (2, 9000), (3,), (1,), ()]  # parameters of another kind, which no mask names


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def make(fused: bool = True, dtype: torch.dtype = torch.float32, **options) -> gsopt.VisibleAdam:
    """One group with options of its own for each shape."""
    generator = torch.Generator().manual_seed(0)
    own = [
        {"lr": 1e-2, "weight_decay": 0.1},
        {"lr": 1e-3, "betas": (0.5, 0.9), "maximize": True},
        {"lr": 1e-1, "betas": (0.8, 0.99), "weight_decay": 0.3, "decoupled_weight_decay": True},
        {"lr": 3e-2, "betas": (0.0, 0.95), "eps": 1e-3},
        {"lr": 1e-2, "betas": (0.9, 0.99999)},
        {"lr": 1e-2, "bias_correction": False},
    ]
    groups = [
        {"params": [nn.Parameter(torch.randn(shape, generator=generator).to(dtype))]} | own[i % len(own)]
        for i, shape in enumerate(SHAPES + WHOLE)
    ]
    return gsopt.VisibleAdam(groups, fused=fused, **options)


def steps(optimizer: gsopt.VisibleAdam, count: int, share: float, seed: int = 0) -> None:
    """Steps with gradients of 1e-6 to 1e3 in which a `share` of the rows is visible."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rows = torch.rand(300, generator=generator) < share
        for parameter in parameters(optimizer):
            gradient = torch.randn(parameter.shape, generator=generator)
            gradient *= 10 ** (9 * torch.rand(parameter.shape, generator=generator) - 6)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.add_visible(parameters(optimizer)[: len(SHAPES)], rows)
        optimizer.step()


def differences(share: float, seed: int = 0) -> list[str]:
    """Where the kernel and its slow twin are further apart than rounding takes them."""
    fast, slow = make(fused=True), make(fused=False)
    for optimizer in (fast, slow):
        steps(optimizer, 12, share, seed)
    found = []
    for place, (a, b) in enumerate(zip(tensors(fast), tensors(slow), strict=True)):
        if not torch.allclose(
            a, b, rtol=1e-5, atol=1e-6 * max((b.abs().max().item() if b.numel() else 0), 1)
        ):
            found.append(f"{place} {list(a.shape)}")
    return found


@pytest.mark.parametrize("share", [0.0, 0.004, 0.1, 0.5, 0.97, 1.0])
def test_the_kernel_is_its_slow_twin(share):
    assert differences(share) == []


_OTHER_ISA = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_optim_visible import differences
from gsopt.native import library
problems = [found for share in (0.02, 0.5) for found in differences(share, 1)]
print(json.dumps([library().gsopt_isa().decode(), problems]))
"""


@pytest.mark.parametrize("isa", available_isas())
def test_every_instruction_set_of_this_processor(isa):
    command = [sys.executable, "-c", _OTHER_ISA, os.path.dirname(__file__)]
    environment = {**os.environ, "GSOPT_ISA": isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [isa, []]


@pytest.mark.parametrize("done", [0, 1, 254, 255, 256, 65_534, 65_535, 65_536, 1_000_000])
def test_the_bias_correction_of_any_step(done):
    found = []
    for fused in (True, False):
        parameter = nn.Parameter(torch.ones(5, 3))
        options = {"betas": (0.99, 0.999999), "eps": 0.0, "fused": fused}
        optimizer = gsopt.VisibleAdam([parameter], lr=0.1, **options)
        optimizer.state[parameter] = {
            "step": torch.full((5,), float(done)),
            "exp_avg": torch.full((5, 3), 0.5),
            "exp_avg_sq": torch.full((5, 3), 0.25),
        }
        parameter.grad = torch.ones(5, 3)
        optimizer.step()
        found.append(parameter.detach())
        assert optimizer.state[parameter]["step"].tolist() == [done + 1] * 5
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)


OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "betas and eps": {"betas": (0.5, 0.9), "eps": 1e-3},
}


@pytest.mark.parametrize("named", [True, False], ids=["all rows named", "no rows named"])
@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "twin"])
@pytest.mark.parametrize("case", OPTIONS)
def test_it_is_adam_where_every_row_is_seen(case, fused, named):
    ours, theirs = GaussianModel(50), GaussianModel(50)
    options = {"lr": 0.01, "eps": 1e-15} | OPTIONS[case]
    optimizer = gsopt.VisibleAdam(ours.named_parameters(), fused=fused, **options)
    adam = torch.optim.Adam(theirs.named_parameters(), **options)
    for seed in range(20):
        if named:
            optimizer.add_visible(ours, torch.ones(50, dtype=torch.bool))
        for each in (optimizer, adam):
            train(each, 1, seed)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[a][key], adam.state[b][key], rtol=1e-5, atol=1e-6)
        assert optimizer.state[a]["step"].tolist() == [20] * 50


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "twin"])
def test_each_row_is_updated_as_by_an_adam_of_its_own(fused):
    generator = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(9, 2, 3, generator=generator))
    rows = [nn.Parameter(row.clone()) for row in table.detach()]
    options = {"lr": 0.1, "weight_decay": 0.2}
    optimizer = gsopt.VisibleAdam([table], fused=fused, eps=1e-8, **options)
    adams = [torch.optim.Adam([row], eps=1e-8, **options) for row in rows]
    for _ in range(30):
        seen = torch.rand(9, generator=generator) < 0.4
        table.grad = torch.randn(9, 2, 3, generator=generator)
        optimizer.add_visible([table], seen)
        optimizer.step()
        for row, adam, gradient, visible in zip(rows, adams, table.grad, seen, strict=True):
            row.grad = gradient.clone() if visible else None
            adam.step()
    torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in rows]))
    counts = [adam.state[row]["step"].item() for row, adam in zip(rows, adams, strict=True)]
    assert optimizer.state[table]["step"].tolist() == counts


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "twin"])
def test_what_is_not_seen_keeps_its_bits(fused):
    optimizer = make(fused)
    steps(optimizer, 3, 0.7)
    before = [tensor.clone() for tensor in tensors(optimizer)]
    hidden = torch.arange(300) % 3 > 0
    for parameter in parameters(optimizer):
        parameter.grad = torch.ones_like(parameter)
    for _ in range(200):
        optimizer.add_visible(parameters(optimizer)[: len(SHAPES)], ~hidden)
        optimizer.step()
    for now, then in zip(tensors(optimizer), before, strict=True):
        if len(now.shape) and now.shape[0] == 300 and now.numel():
            assert torch.equal(now[hidden], then[hidden])
            assert not torch.equal(now[~hidden], then[~hidden])


def test_bits_do_not_depend_on_the_number_of_threads():
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            model = GaussianModel(20_011, sh_degree=2)
            optimizer = gsopt.VisibleAdam(gaussian_groups(model))
            generator = torch.Generator().manual_seed(0)
            for seed in range(3):
                optimizer.add_visible(model, torch.rand(20_011, generator=generator) < 0.4)
                train(optimizer, 1, seed)
            found.append(tensors(optimizer))
    finally:
        set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_kinds_of_numbers(dtype):
    optimizer = make(dtype=dtype)
    exact = make(fused=False)
    for each in (optimizer, exact):
        steps(each, 5, 0.5)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for a, b in zip(parameters(optimizer), parameters(exact), strict=True):
        torch.testing.assert_close(a.float(), b, rtol=tolerance, atol=tolerance)
        assert optimizer.state[a]["step"].dtype == torch.float32


def test_a_gradient_that_is_not_contiguous():
    results = []
    for turned in (True, False):
        parameter = nn.Parameter(torch.zeros(4, 3))
        gradient = torch.arange(12.0).view(4, 3) - 5
        parameter.grad = gradient.t().contiguous().t() if turned else gradient
        optimizer = gsopt.VisibleAdam([parameter], lr=0.1)
        optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results)


# ---------------------------------------- which rows are named


def moved(model: GaussianModel, optimizer: gsopt.VisibleAdam) -> dict[str, list[int]]:
    """Rows of each attribute that a step moves."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(optimizer, 1)
    return {
        name: torch.nonzero((p.detach() != before[name]).flatten(1).any(dim=1)).flatten().tolist()
        for name, p in model.named_parameters()
        if p.numel()
    }


def test_rows_of_several_views_add_up_and_a_step_forgets_them():
    model = GaussianModel(5, sh_degree=1)
    optimizer = gsopt.VisibleAdam(gaussian_groups(model))
    optimizer.add_visible(model, mask(0, 1))
    optimizer.add_visible(model, mask(1, 4))
    assert moved(model, optimizer) == {name: [0, 1, 4] for name in ATTRIBUTES}
    assert moved(model, optimizer) == {name: [0, 1, 2, 3, 4] for name in ATTRIBUTES}


def test_each_model_and_each_attribute_may_have_rows_of_its_own():
    coarse, fine = GaussianModel(5, sh_degree=1), GaussianModel(5, sh_degree=1)
    specs = gsopt.gaussian_specs(1.0, 10) | {"exposure": gsopt.GroupSpec(0.1)}
    exposure = nn.Parameter(torch.zeros(5, 12))  # as many rows as Gaussians, but none of theirs
    groups = gsopt.build_groups({"coarse": coarse, "fine": fine, "exposure": exposure}, specs)
    optimizer = gsopt.VisibleAdam(groups)
    optimizer.add_visible(coarse, mask(2))
    optimizer.add_visible([fine.xyz, fine.opacity], mask(0, 3))
    before = [parameter.detach().clone() for parameter in (fine.xyz, fine.rotation)]
    assert moved(coarse, optimizer) == {name: [2] for name in ATTRIBUTES}
    assert (fine.xyz != before[0]).any(dim=1).tolist() == mask(0, 3).tolist()
    assert (fine.rotation != before[1]).all()
    assert (exposure != 0).all()


def test_frozen_and_excluded_attributes():
    model = GaussianModel(5, sh_degree=1)
    groups = gaussian_groups(model, scaling=gsopt.GroupSpec(0.1, optimize=False))
    optimizer = gsopt.VisibleAdam(groups)
    gsopt.freeze(optimizer, "xyz")
    optimizer.add_visible(model, mask(1))
    still = {"xyz": [], "scaling": []}
    assert moved(model, optimizer) == {name: [1] for name in ATTRIBUTES} | still
    assert model.xyz not in optimizer.state


BAD_ROWS = {
    "short": (lambda m, o: o.add_visible(m, mask(0, count=4)), r"bool \[5\].* found torch.bool \[4\]"),
    "indices": (lambda m, o: o.add_visible(m, torch.tensor([0])), r"expected a mask, .* torch.int64 \[1\]"),
    "flat": (lambda m, o: o.add_visible(m, mask(0)[None]), r"found torch.bool \[1, 5\]"),
    "stranger": (lambda m, o: o.add_visible(GaussianModel(5), mask(0)), "none of these parameters is the"),
    "replaced": (
        lambda m, o: (o.add_visible(m, mask(0)), keep(m, ATTRIBUTES, o, mask(0)), train(o, 1)),
        "rows were changed between add_visible and step",
    ),
    "sparse": (
        lambda m, o: (setattr(m.xyz, "grad", torch.ones(5, 3).to_sparse()), o.step()),
        "expected a dense gradient",
    ),
    "packed": (lambda m, o: visible_rows({"radii": torch.ones(7, 2)}), r"found \[7, 2\]; render with packed"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be(case):
    act, message = BAD_ROWS[case]
    model = GaussianModel(5, sh_degree=1)
    optimizer = gsopt.VisibleAdam(gaussian_groups(model))
    with pytest.raises(ValueError, match=message):
        act(model, optimizer)


BAD_OPTIONS = {
    "lr": ({"lr": -1.0}, "lr: expected 0 or more, found -1.0"),
    "eps": ({"eps": float("nan")}, "eps: expected 0 or more, found nan"),
    "decay": ({"weight_decay": -0.1}, "weight_decay: expected 0 or more"),
    "betas": ({"betas": (0.9, 1.0)}, r"betas: expected two numbers .* found \(0.9, 1.0\)"),
    "one beta": ({"betas": (0.9,)}, "betas: expected two numbers"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_cannot_be(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        gsopt.VisibleAdam([nn.Parameter(torch.zeros(1))], **options)


def test_what_a_rendering_has_seen():
    radii = torch.tensor([[[0, 0], [3, 1], [2, 0], [0, 0]], [[0, 0], [0, 0], [0, 4], [1, 1]]])
    assert visible_rows({"radii": radii}).tolist() == [False, True, False, True]


def test_closure_is_called_once_with_gradients_on_and_its_loss_returned():
    parameter = nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = gsopt.VisibleAdam([parameter], lr=0.5)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses.append(parameter.square().sum())
        losses[-1].backward()
        return losses[-1]

    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    torch.testing.assert_close(parameter.detach(), torch.tensor([2.5, -3.5]))
