"""Splats that other programs wrote: they load, render, and training goes on from them."""

from pathlib import Path

import pytest
import torch

from gsopt import GaussianModel, TrainConfig, Trainer
from gsopt.cameras import Camera
from gsopt.datasets.scene import PointCloud, Scene, View
from gsopt.evaluation import render_view

# file -> Gaussians, degree of the harmonics
SPLATS = {
    "inria_iter7000_sh3.ply": (9080, 3),
    "jsplat_unitcube_ascii_sh0.ply": (20, 0),
    "conv_guitar_opaque_by_splattransform.ply": (44297, 0),
}
SIZE = 64  # pixels


@pytest.fixture(params=SPLATS)
def splat(request, shared) -> Path:
    return shared / "splats" / request.param


def looking_at(model: GaussianModel, side: float) -> Camera:
    """A camera that has most of the model in view; `side` moves it to the left or right."""
    xyz = model.xyz.detach()
    middle = xyz.median(dim=0).values
    radius = (xyz - middle).norm(dim=1).quantile(0.9).item()
    viewmat = torch.eye(4)
    viewmat[:3, 3] = -middle + torch.tensor([side * radius, 0.0, 3 * radius])
    K = torch.tensor([[SIZE, 0.0, SIZE / 2], [0.0, SIZE, SIZE / 2], [0.0, 0.0, 1.0]])
    return Camera(f"{side:+.1f}.png", SIZE, SIZE, K, viewmat)


def photographed(model: GaussianModel) -> Scene:
    """The model's own pictures as a scene."""
    views = []
    for side in (-0.5, 0.0, 0.5):
        camera = looking_at(model, side)
        with torch.no_grad():
            image, _ = render_view(model, camera, torch.zeros(3))
        views.append(View(camera, (image.clamp(0, 1) * 255).round().to(torch.uint8)))
    extent = (views[0].camera.center - views[1].camera.center).norm().item()
    points = PointCloud(model.xyz.detach(), torch.full_like(model.xyz, 0.5).detach())
    return Scene(Path("photographed"), "colmap", views, views[1:2], points, extent)


@pytest.mark.filterwarnings("ignore:.*opacity:UserWarning")
def test_it_loads_and_is_saved_again(splat, tmp_path):
    count, degree = SPLATS[splat.name]
    model = GaussianModel.load_ply(splat)
    assert (model.num_gaussians, model.max_sh_degree) == (count, degree)
    model.save_ply(tmp_path / "again.ply")
    again = GaussianModel.load_ply(tmp_path / "again.ply")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore:.*opacity:UserWarning")
def test_it_renders_and_training_goes_on_from_it(splat, tmp_path):
    scene = photographed(GaussianModel.load_ply(splat))
    assert max(view.image.float().std() for view in scene.train) > 5  # something is to be seen
    config = TrainConfig(
        init=splat, output=tmp_path / "run", iterations=20, sh_degree=3, background="black", quiet=True
    )
    trainer = Trainer(config, scene=scene)
    with torch.no_grad():  # something to learn: the colours are off
        trainer.model.feature_dc.add_(0.3)
    before = trainer.evaluate()["test"]["psnr"]
    after = trainer.train()["test"]["psnr"]
    assert after > before + 0.5


def test_a_coloured_point_cloud_of_another_program_is_a_start(shared):
    from gsopt.datasets.point_files import load_points

    points = load_points(shared / "splats" / "trimesh_points_rgba.ply")
    model = GaussianModel.from_points(points.xyz, points.rgb)
    assert model.num_gaussians == 100
    image, _ = render_view(model, looking_at(model, 0.0), torch.ones(3))  # its points are black
    assert image.detach().std() > 0.01
