"""Builders for tests of strategies: random Gaussians, and what rendering them would say."""

import torch

from gsopt.model import GaussianModel

STEPS = dict(refine_start_iter=4, refine_stop_iter=40, refine_every=3, reset_every=12)


def random_model(rows: int, generator: torch.Generator) -> GaussianModel:
    """Gaussians of many sizes and opacities, so that a refinement finds each kind of work."""
    model = GaussianModel(rows, sh_degree=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.scaling.copy_(torch.rand(rows, 3, generator=generator) * 4 - 7)  # 0.001 to 0.05
        model.opacity.copy_(torch.rand(rows, 1, generator=generator) * 9 - 6)  # 0.002 to 0.95
    return model


def random_info(rows: int, cameras: int, generator: torch.Generator) -> dict:
    """What rasterization would say, with gradients around the threshold and a third of the rows invisible."""
    means2d = torch.zeros(cameras, rows, 2, requires_grad=True)
    means2d.grad = torch.randn(cameras, rows, 2, generator=generator) * 1.6e-6 / cameras
    means2d.absgrad = means2d.grad.abs() * 1.1
    radii = torch.randint(-10, 25, (cameras, rows, 2), generator=generator).clamp_min(0).int()
    ids = torch.arange(rows).repeat(cameras)
    sizes = {"width": 200, "height": 100, "n_cameras": cameras}
    return {"means2d": means2d, "radii": radii, "gaussian_ids": ids, **sizes}


def give_gradients(model: GaussianModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if parameter.requires_grad else None
