"""Memory that one training step leaves to the next, and never to two tensors at a time."""

import gc

import pytest
import random_scenes
import torch
from torch import Tensor

from gsopt import rasterization
from gsopt.native import workspace
from gsopt.native.workspace import empty


@pytest.fixture(autouse=True)
def fresh():
    """No memory kept from elsewhere, and none left behind."""
    gc.collect()
    workspace.clear()
    yield
    workspace.clear()


class Keep(torch.autograd.Function):
    """A graph that saves a tensor of the workspace: doubles its input."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        factor = empty("a", x.shape).fill_(2.0)
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    def backward(ctx, v: Tensor) -> Tensor:
        return v * ctx.saved_tensors[0]


def test_memory_is_used_again_once_dropped():
    address = empty("a", (1000,)).data_ptr()
    assert empty("a", (1000,)).data_ptr() == address
    assert empty("a", (10, 100)).data_ptr() == address
    assert workspace.nbytes() == 4500  # with room for growth


HOLDERS = {
    "the tensor": lambda tensor: tensor,
    "a view": lambda tensor: tensor[3:7],
    "a transposed view": lambda tensor: tensor.view(10, 100).T,
    "a view as another dtype": lambda tensor: tensor.view(torch.int32),
    "a detached tensor": lambda tensor: tensor.detach(),
    "an array": lambda tensor: tensor.numpy(),
    "the storage": lambda tensor: tensor.untyped_storage(),
    "a graph": lambda tensor: (tensor.new_ones(1000, requires_grad=True) * tensor).sum(),
    "a parameter's gradient": lambda tensor: _with_gradient(tensor),
}


def _with_gradient(tensor: Tensor) -> Tensor:
    leaf = torch.zeros(1000, requires_grad=True)
    leaf.grad = tensor
    return leaf


@pytest.mark.parametrize("what", HOLDERS)
def test_memory_is_not_used_again_while_somebody_holds(what):
    tensor = empty("a", (1000,))
    address = tensor.data_ptr()
    holder = HOLDERS[what](tensor)
    del tensor
    gc.collect()
    assert empty("a", (1000,)).data_ptr() != address
    del holder
    gc.collect()
    assert address in [t.data_ptr() for t in [empty("a", (1000,)) for _ in range(2)]]


def test_what_a_graph_saved_outlives_the_function():
    x = torch.ones(1000, requires_grad=True)
    y = Keep.apply(x)
    others = [empty("a", (1000,)).fill_(-1) for _ in range(6)]
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((1000,), 2.0))
    assert len(others) == 6


@pytest.mark.parametrize("count", [1, 5, 1000, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_alignment_shape_and_dtype(count, dtype):
    held = [empty("a", (count, 3), dtype) for _ in range(3)]
    for tensor in held:
        assert tensor.data_ptr() % 64 == 0
        assert tensor.shape == (count, 3)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()


def test_dtypes_share_memory_but_not_at_once():
    address = empty("a", (100,)).data_ptr()
    numbers = empty("a", (100,), torch.int32)
    assert numbers.data_ptr() == address
    numbers.fill_(2**31 - 1)
    assert empty("a", (100,)).data_ptr() != address
    assert numbers.unique().tolist() == [2**31 - 1]


def test_names_do_not_share_memory():
    address = empty("a", (100,)).data_ptr()
    assert empty("b", (100,)).data_ptr() != address


def test_more_than_four_at_once_are_ordinary():
    held = [empty("a", (1000,)).fill_(i) for i in range(7)]
    assert len({tensor.data_ptr() for tensor in held}) == 7
    assert workspace.nbytes() == 4 * 4500
    assert all(torch.equal(tensor, torch.full((1000,), float(i))) for i, tensor in enumerate(held))
    kept = {tensor.data_ptr() for tensor in held[:4]}
    del held
    assert {tensor.data_ptr() for tensor in [empty("a", (1000,)) for _ in range(4)]} == kept


SHAPES = [  # asked for after 1000, whether in the same memory, and the bytes then kept
    (1000, True, 4500),
    (1125, True, 4500),
    (1126, False, 5064),
    (282, True, 4500),
    (281, False, 1264),
    (0, False, 0),
]


@pytest.mark.parametrize(("count", "same", "kept"), SHAPES)
def test_shapes_grow_and_shrink(count, same, kept):
    address = empty("a", (1000,)).data_ptr()
    tensor = empty("a", (count,))
    assert tensor.shape == (count,)
    assert workspace.nbytes() == kept
    if same:
        assert tensor.data_ptr() == address


def test_shapes_without_elements():
    assert empty("a", (0, 3)).shape == (0, 3)
    assert empty("a", (4, 0, 2), torch.int32).dtype == torch.int32
    assert empty("a", ()).shape == ()


def test_clear_leaves_tensors_their_memory():
    tensor = empty("a", (1000,)).fill_(1)
    workspace.clear()
    assert workspace.nbytes() == 0
    others = [empty("a", (1000,)).fill_(2) for _ in range(5)]
    assert torch.equal(tensor, torch.ones(1000))
    assert others[0].data_ptr() != tensor.data_ptr()


def scene(seed: int) -> dict:
    """A random scene of one camera, gradients for all tensors; all of the same size."""
    values = random_scenes.random_scene(0, "crowded") | {"packed": False, "render_mode": "RGB"}
    values = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in values.items()
    }
    if isinstance(values["colors"], tuple):
        values["colors"] = torch.cat(values["colors"], dim=-2).float()
    generator = torch.Generator().manual_seed(seed)
    values["means"] = values["means"] + 0.2 * torch.randn(values["means"].shape, generator=generator)
    return values | {k: values[k].requires_grad_() for k in ("means", "scales", "opacities", "colors")}


def gradients(values: dict, image: Tensor) -> list[Tensor]:
    leaves = [values[name] for name in ("means", "scales", "opacities", "colors")]
    return list(torch.autograd.grad(image.square().sum(), leaves))


def test_renders_that_are_kept_are_not_overwritten():
    first, others = scene(0), [scene(seed) for seed in range(1, 7)]
    alone = gradients(first, rasterization(**first, backend="cpu")[0])
    alone = [gradient.clone() for gradient in alone]

    image, alphas, info = rasterization(**first, backend="cpu")
    tensors = [image, alphas, *(v for v in info.values() if isinstance(v, Tensor))]
    before = [tensor.detach().clone() for tensor in tensors]
    kept = [rasterization(**values, backend="cpu")[0] for values in others]
    for values, picture in zip(others, kept, strict=True):
        gradients(values, picture)
    assert not torch.equal(image, kept[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    found = gradients(first, image)  # backward after all others
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
    held = [gradient.clone() for gradient in found]
    for values in others:
        gradients(values, rasterization(**values, backend="cpu")[0])
    assert all(torch.equal(a, b) for a, b in zip(found, held, strict=True))
