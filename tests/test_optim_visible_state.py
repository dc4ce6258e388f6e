"""State of VisibleAdam: a step count for each row, which moves with it, is saved, loaded and converted."""

import copy
import pickle

import pytest
import torch
from optimizing import gaussian_groups, mask, same, tensors, train

import gsopt
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.optim import build_optimizer, load_optimizer_state
from gsopt.surgery import append, keep, overwrite

# ---------------------------------------- rows that come and go


@pytest.mark.parametrize(
    ("name", "options", "rates"),
    [
        ("visible_adam", {}, 1.0),
        ("visible_adam", {"bias_correction": False}, 0.1 / 0.001**0.5),
        ("adam", {}, 0.1 / 0.001**0.5),
    ],
)
def test_the_first_update_of_a_row_that_begins_late(name, options, rates):
    """Plain Adam corrects it for the steps of the others: 3.2 learning rates. Here it is one."""
    model = GaussianModel(2, sh_degree=0)
    optimizer = build_optimizer(name, gaussian_groups(model), native=True, **options)
    train(optimizer, 1)
    for state in optimizer.state.values():  # as after 30,000 steps with gradients of 1
        for key, value in {"step": 30_000, "exp_avg": 1, "exp_avg_sq": 1}.items():
            state[key].fill_(value)
    new = {attribute: torch.zeros(1, *getattr(model, attribute).shape[1:]) for attribute in ATTRIBUTES}
    append(model, ATTRIBUTES, optimizer, new)
    model.opacity.grad = torch.ones(3, 1)
    optimizer.step()
    lr = next(group["lr"] for group in optimizer.param_groups if group["name"] == "opacity")
    assert model.opacity[2].item() == pytest.approx(-rates * lr, rel=1e-3)


def test_the_step_counts_move_with_their_rows():
    model = GaussianModel(4, sh_degree=1)
    optimizer = gsopt.VisibleAdam(gaussian_groups(model))
    for row in range(4):
        optimizer.add_visible(model, torch.arange(4) >= row)
        train(optimizer, 1)
    assert optimizer.state[model.xyz]["step"].tolist() == [1, 2, 3, 4]
    keep(model, ATTRIBUTES, optimizer, torch.tensor([3, 0]))
    append(model, ATTRIBUTES, optimizer, {name: p.detach()[:1] for name, p in model.named_parameters()})
    assert all(optimizer.state[p]["step"].tolist() == [4, 1, 0] for p in model.parameters())
    overwrite(model, optimizer, {"opacity": torch.zeros(1, 1)}, torch.tensor([0]))
    assert optimizer.state[model.opacity]["step"].tolist() == [0, 1, 0]
    assert optimizer.state[model.xyz]["step"].tolist() == [4, 1, 0]


# ---------------------------------------- state

COPIES = {
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("built", [True, False], ids=["build_optimizer", "class"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_trains_on_alike(way, built):
    model = GaussianModel(30, sh_degree=1)
    groups = gaussian_groups(model)
    optimizer = build_optimizer("visible_adam", groups, native=True) if built else gsopt.VisibleAdam(groups)
    optimizer.add_visible(model, mask(*range(9), count=30))
    train(optimizer, 3)
    other = COPIES[way](optimizer)
    assert type(other) in (gsopt.VisibleAdam, type(optimizer))
    for each in (optimizer, other):
        train(each, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(optimizer), tensors(other), strict=True))


def test_a_state_dict_is_torch_standard_and_goes_on_alike():
    first, second = GaussianModel(30, sh_degree=1), GaussianModel(30, sh_degree=1)
    optimizer, other = (gsopt.VisibleAdam(gaussian_groups(model)) for model in (first, second))
    optimizer.add_visible(first, mask(*range(9), count=30))
    train(optimizer, 3)
    second.load_state_dict(first.state_dict())
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert saved["param_groups"][0]["param_names"] == ["xyz"]
    other.load_state_dict(copy.deepcopy(saved))
    for each in (optimizer, other):
        train(each, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(optimizer), tensors(other), strict=True))


@pytest.mark.parametrize("by_name", [True, False], ids=["load_optimizer_state", "torch's own"])
def test_adam_goes_on_as_visible_adam(by_name):
    """Its step count becomes that of each row: with all rows visible, training goes on as it would have."""
    adam_model, model = GaussianModel(20, sh_degree=1), GaussianModel(20, sh_degree=1)
    adam = build_optimizer("adam", gaussian_groups(adam_model))
    train(adam, 5)
    model.load_state_dict(adam_model.state_dict())
    optimizer = gsopt.VisibleAdam(gaussian_groups(model))
    if by_name:
        report = load_optimizer_state(optimizer, adam.state_dict())
        assert report.complete
        assert report.converted == dict.fromkeys(
            ATTRIBUTES, "one step count in the file, 5, is now that of each row"
        )
        assert "converted: xyz: one step count in the file, 5" in str(report)
    else:
        optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert optimizer.state[model.xyz]["step"].tolist() == [5] * 20
    for each in (adam, optimizer):
        train(each, 5, seed=1)
    for a, b in zip(adam_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_visible_adam_does_not_go_on_as_adam():
    optimizer = gsopt.VisibleAdam(gaussian_groups(GaussianModel(20)))
    train(optimizer, 2)
    adam = build_optimizer("adam", gaussian_groups(GaussianModel(20)))
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        load_optimizer_state(adam, optimizer.state_dict())
    needed = "needs one step count, found one for each of 20 rows, which is visible_adam's"
    assert f"state mismatch: opacity: {needed}" in str(caught.value)
    report = load_optimizer_state(adam, optimizer.state_dict(), strict=False)
    assert set(report.state_mismatch) == set(ATTRIBUTES)
    train(adam, 1)


@pytest.mark.parametrize("started", [True, False])
def test_visible_adam_by_name_in_another_order(started):
    model, other = GaussianModel(20), GaussianModel(20)
    optimizer = gsopt.VisibleAdam(gaussian_groups(model))
    optimizer.add_visible(model, mask(1, 2, count=20))
    train(optimizer, 2)
    turned = gsopt.VisibleAdam(gaussian_groups(other)[::-1])
    if started:
        train(turned, 1)
    report = load_optimizer_state(turned, optimizer.state_dict())
    assert (report.complete, report.converted) == (True, {})
    assert all(same(optimizer.state[getattr(model, n)], turned.state[getattr(other, n)]) for n in ATTRIBUTES)


def test_rows_added_since_are_a_shape_mismatch():
    optimizer = gsopt.VisibleAdam(gaussian_groups(GaussianModel(5)))
    train(optimizer, 1)
    more = gsopt.VisibleAdam(gaussian_groups(GaussianModel(6)))
    report = load_optimizer_state(more, optimizer.state_dict(), strict=False)
    assert report.shape_mismatch["opacity"] == "step [5] in the file, expected [6]"


def test_nothing_is_compiled_where_it_is_not_fused(monkeypatch):
    def absent():
        raise AssertionError("the kernel was asked for")

    monkeypatch.setattr(gsopt.optim.visible, "library", absent)
    optimizer = build_optimizer("visible_adam", gaussian_groups(GaussianModel(3)), native=False)
    train(optimizer, 1)
    load_optimizer_state(
        build_optimizer("visible_adam", gaussian_groups(GaussianModel(3))), optimizer.state_dict()
    )
