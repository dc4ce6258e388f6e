"""Hand-made small scenes for tests of the rasterizer, as keyword arguments in float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gsopt.render import rasterization, reference
from gsopt.render.call import RenderCall

TENSORS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "backgrounds")


N, C, K = 5, 2, 9


def arguments(**changes) -> dict:
    """A valid call: N Gaussians, C cameras, harmonics of degree 2. float32"""
    generator = torch.Generator().manual_seed(0)
    values = {
        "means": torch.rand(N, 3, generator=generator) - 0.5,
        "quats": torch.rand(N, 4, generator=generator),
        "scales": torch.full((N, 3), 0.2),
        "opacities": torch.full((N,), 0.5),
        "colors": torch.rand(N, K, 3, generator=generator),
        "viewmats": torch.eye(4).repeat(C, 1, 1),
        "Ks": torch.tensor([[20.0, 0, 10], [0, 20, 8], [0, 0, 1]]).repeat(C, 1, 1),
        "width": 20,
        "height": 16,
        "sh_degree": 2,
    }
    values["viewmats"][:, 2, 3] = 2.0
    return values | changes


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For modules that import it: operators as small as these run faster on one thread than on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scene(n: int = 4, cameras: int = 1, size: int = 8, seed: int = 0, **changes) -> dict:
    """`n` Gaussians 3 in front of cameras that see all of them, harmonics of degree 1, float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low

    viewmats = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    viewmats[:, :3] += uniform(-0.05, 0.05, cameras, 3, 4)
    viewmats[:, 2, 3] += 3
    Ks = torch.tensor([[size, 0, size / 2 + 0.2], [0, size, size / 2 - 0.1], [0, 0, 1]], dtype=torch.float64)
    values = {
        "means": uniform(-0.8, 0.8, n, 3),
        "quats": uniform(-1, 1, n, 4),
        "scales": uniform(0.2, 0.6, n, 3),
        "opacities": uniform(0.2, 0.9, n),
        "colors": uniform(-0.4, 0.6, n, 4, 3),
        "viewmats": viewmats,
        "Ks": Ks.repeat(cameras, 1, 1),
        "width": size,
        "height": size,
        "backgrounds": uniform(0, 1, cameras, 3),
        "sh_degree": 1,
        "packed": False,
        "tile_size": 8,
    }
    return values | changes


def render(values: dict) -> tuple[Tensor, Tensor, dict]:
    return rasterization(**values, backend="reference")


def trained(values: dict, *names: str) -> dict:
    """The same scene with gradients: of the named tensors, or of all."""
    names = names or tuple(name for name in TENSORS if name in values)
    return values | {name: values[name].clone().requires_grad_() for name in names}


def project(values: dict) -> reference.Splats:
    return reference.project(RenderCall(**values))


def on_axis(*splats: tuple[float, float, float], **changes) -> dict:
    """Wide grey Gaussians (depth, opacity, colour) on the axis of a camera, on which its one pixel lies."""
    depths, opacities, colors = torch.tensor(splats, dtype=torch.float64).reshape(-1, 3).unbind(-1)
    zeros = torch.zeros_like(depths)
    return {
        "means": torch.stack([zeros, zeros, depths], dim=-1),
        "quats": torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).repeat(len(depths), 1),
        "scales": torch.ones(len(depths), 3, dtype=torch.float64),
        "opacities": opacities,
        "colors": colors[:, None],
        "viewmats": torch.eye(4, dtype=torch.float64)[None],
        "Ks": torch.tensor([[[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]], dtype=torch.float64),
        "width": 1,
        "height": 1,
    } | changes
