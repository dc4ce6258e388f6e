"""Two models of Gaussians in one picture, with poses and exposures, all in one optimizer."""

import pytest
import torch
from torch import nn

from gsopt.cameras import Camera
from gsopt.evaluation import render_view
from gsopt.exposure import Exposure
from gsopt.groups import GroupSpec, build_groups, build_scheduler, gaussian_specs
from gsopt.joint import Joint, Together
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.poses import PoseRefiner

CAMERA = Camera(
    "a.png",
    30,
    24,
    torch.tensor([[30.0, 0, 15], [0, 30, 12], [0, 0, 1]]),
    torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]),
)
GREY = torch.full((3,), 0.4)
BACKENDS = ["cpu", "reference"]


def blobs(rows: int, degree: int, seed: int) -> GaussianModel:
    """Gaussians around the origin that the camera sees, some hidden by others."""
    generator = torch.Generator().manual_seed(seed)
    model = GaussianModel(rows, degree)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        model.scaling -= 1.6
        model.opacity += 1
    return model


def joined(first: GaussianModel, second: GaussianModel) -> GaussianModel:
    """One model with the rows of both, by hand; missing bands are zeros."""
    model = GaussianModel(
        first.num_gaussians + second.num_gaussians, max(first.max_sh_degree, second.max_sh_degree)
    )
    with torch.no_grad():
        for name in ATTRIBUTES:
            rows = getattr(model, name)
            rows.zero_()
            for part, source in ((rows[: first.num_gaussians], first), (rows[first.num_gaussians :], second)):
                value = getattr(source, name)
                part[tuple(slice(size) for size in value.shape)] = value
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 3), (3, 0), (2, 1), (1, 2), (3, 3)])
def test_the_picture_is_that_of_one_model_with_the_rows_of_both(first, second, backend):
    a, b = blobs(20, first, seed=0), blobs(30, second, seed=1)
    with torch.no_grad():
        found, _ = Joint(a, background_model=b).render(CAMERA, GREY, backend=backend)
        expected, _ = render_view(joined(a, b), CAMERA, GREY, backend=backend)
    assert torch.equal(found, expected)


def test_what_is_nearer_hides_the_other_whichever_model_it_is_of():
    def wall(depth: float, colour: float) -> GaussianModel:
        model = GaussianModel(1, 0)
        with torch.no_grad():
            model.xyz[:, 2] = depth
            model.scaling.fill_(1.0)
            model.scaling[:, 2] = -5.0
            model.opacity.fill_(10.0)
            model.feature_dc.fill_(colour)
        return model

    near, far = wall(-1.0, 1.0), wall(1.0, -1.0)
    with torch.no_grad():
        pictures = [
            Joint(a, background_model=b).render(CAMERA, GREY)[0] for a, b in ((near, far), (far, near))
        ]
    assert torch.allclose(*pictures, atol=1e-5)
    assert (pictures[0][12, 15] > 0.7).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_bands_that_the_model_does_not_use_yet_are_left_out_of_it_alone(degree, backend):
    a, b = blobs(20, 3, seed=0), blobs(30, 2, seed=1)
    image, _ = Joint(a, background_model=b).render(CAMERA, GREY, sh_degree=degree, backend=backend)
    image.square().sum().backward()
    bands = (degree + 1) ** 2 - 1
    assert a.feature_rest.grad[:, :bands].any() == (degree > 0)
    assert not a.feature_rest.grad[:, bands:].any()
    assert b.feature_rest.grad[:, -1].any()  # all of the background's
    cut = blobs(20, 3, seed=0)
    with torch.no_grad():
        cut.feature_rest[:, bands:] = 0
        expected, _ = render_view(joined(cut, b), CAMERA, GREY, backend=backend)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_one_model_with_the_rows_of_both(backend):
    a, b = blobs(20, 1, seed=0), blobs(30, 2, seed=1)
    both = joined(a, b)
    Joint(a, background_model=b).render(CAMERA, GREY, backend=backend)[0].square().sum().backward()
    render_view(both, CAMERA, GREY, backend=backend)[0].square().sum().backward()
    for name in ATTRIBUTES:
        expected = getattr(both, name).grad
        for model, rows in ((a, expected[:20]), (b, expected[20:])):
            found = getattr(model, name).grad
            used = rows[tuple(slice(size) for size in found.shape)]
            torch.testing.assert_close(found, used, rtol=1e-4, atol=1e-5, msg=name)


def test_a_frozen_background_gets_no_gradients_and_makes_no_graph():
    a, b = blobs(20, 1, seed=0), blobs(30, 1, seed=1).requires_grad_(False)
    Joint(a, background_model=b).render(CAMERA, GREY)[0].sum().backward()
    assert all(parameter.grad is None for parameter in b.parameters())
    assert all(parameter.grad is not None for parameter in a.parameters())
    frozen = Together(blobs(3, 1, seed=0).requires_grad_(False), b)
    assert not any(getattr(frozen, name).requires_grad for name in ATTRIBUTES)


# ------------------------------------------------------------------------------- info is of the model alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", ["trained", "frozen"])
def test_info_has_the_rows_and_gradients_of_the_model_alone(geometry, backend):
    """As the rasterizer gives them for both models, without the rows of the background."""
    a, b = blobs(20, 1, seed=0), blobs(30, 1, seed=1)
    both = joined(a, b)
    if geometry == "frozen":
        for model in (a, b, both):
            for name in ("xyz", "scaling", "rotation"):
                getattr(model, name).requires_grad_(False)
    image, info = Joint(a, background_model=b).render(CAMERA, GREY, absgrad=True, backend=backend)
    expected_image, whole = render_view(both, CAMERA, GREY, absgrad=True, backend=backend)
    for each, picture in ((info, image), (whole, expected_image)):
        each["means2d"].retain_grad()
        picture.square().sum().backward()
    assert info["means2d"].shape == (1, 20, 2)
    assert info["means2d"].grad.any()
    torch.testing.assert_close(info["means2d"].grad, whole["means2d"].grad[:, :20], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        info["means2d"].absgrad, whole["means2d"].absgrad[:, :20], rtol=1e-4, atol=1e-5
    )
    for name in ("means2d", "radii", "depths", "opacities", "conics"):
        assert torch.equal(info[name], whole[name][:, :20]), name
    for name in ("width", "height", "n_cameras", "tile_size"):
        assert info[name] == whole[name]
    assert info["tiles_per_gauss"].shape == (1, 20)


def test_without_retain_grad_there_is_no_gradient_to_be_found():
    image, info = Joint(blobs(20, 1, 0), background_model=blobs(9, 1, 1)).render(CAMERA, GREY)
    image.sum().backward()
    with pytest.warns(UserWarning, match="not a leaf Tensor"):  # as torch says of any such tensor
        assert info["means2d"].grad is None


@pytest.mark.parametrize("frozen", [(), ("xyz", "scaling", "rotation")], ids=["trained", "frozen"])
def test_a_hook_gets_the_gradient_of_the_models_own_rows(frozen):
    """It may put it where `retain_grad` would have, without torch's copy."""

    def gradient(ask) -> torch.Tensor:
        a, b = blobs(20, 1, 0), blobs(9, 1, 1).requires_grad_(False)
        for name in frozen:
            getattr(a, name).requires_grad_(False)
        image, info = Joint(a, background_model=b).render(CAMERA, GREY)
        ask(info["means2d"])
        image.square().sum().backward()
        return info["means2d"].grad

    found = gradient(lambda means2d: means2d.register_hook(lambda value: setattr(means2d, "grad", value)))
    assert found.shape == (1, 20, 2)
    assert torch.equal(found, gradient(lambda means2d: means2d.retain_grad()))


def test_a_term_of_the_loss_may_use_the_projected_centres():
    a = blobs(20, 1, seed=0)
    image, info = Joint(a, background_model=blobs(9, 1, seed=1)).render(CAMERA, GREY)
    term = info["means2d"].square().sum()
    assert type(term) is torch.Tensor
    (0 * image.sum() + term).backward()
    assert a.xyz.grad.any()


# ------------------------------------------------------------------------------- poses and exposure in a view


def test_pose_and_exposure_apply_to_the_training_view_they_belong_to():
    model, poses, exposure = blobs(20, 1, seed=0), PoseRefiner(3), Exposure(3, centred=False)
    with torch.no_grad():
        poses.delta[1, 3] = 0.2
        exposure.delta[2, :, 3] = 0.1
        joint = Joint(model, poses=poses, exposure=exposure)
        plain, _ = render_view(model, CAMERA, GREY)
        assert torch.equal(joint.render(CAMERA, GREY)[0], plain)  # a test view
        assert torch.equal(joint.render(CAMERA, GREY, 0)[0], plain)
        moved, _ = render_view(model, joint.refined(CAMERA, 1), GREY)
        assert torch.equal(joint.render(CAMERA, GREY, 1)[0], moved)
        assert not torch.equal(moved, plain)
        torch.testing.assert_close(joint.render(CAMERA, GREY, 2)[0], plain + 0.1)


def test_a_joint_state_is_refused_by_other_models():
    joint = Joint(blobs(2, 0, 0), poses=PoseRefiner(3))
    joint.load_state_dict(joint.state_dict())
    with pytest.raises(ValueError, match="expected the states of poses, found exposure"):
        joint.load_state_dict({"exposure": {}})


def test_one_optimizer_trains_object_background_poses_and_exposure():
    """Every part of it learns."""
    true = joined(blobs(20, 0, seed=0), blobs(20, 0, seed=1))
    with torch.no_grad():
        photos = [gain * render_view(true, CAMERA, GREY)[0] for gain in (0.8, 1.2)]
    a, b = blobs(20, 0, seed=0), blobs(20, 0, seed=1)
    refiner, exposure = PoseRefiner(2), Exposure(2)
    with torch.no_grad():
        a.feature_dc += 0.3
        b.feature_dc -= 0.3
        refiner.delta[0, 3] = 0.05
    parts: dict[str, nn.Module] = {"object": a, "background": b, "poses": refiner, "exposure": exposure}
    specs = gaussian_specs(1.0, 100) | {"poses": GroupSpec(1e-3), "exposure": GroupSpec(0.01)}
    opt = torch.optim.Adam(build_groups(parts, specs), lr=0.0, eps=1e-15)
    scheduler = build_scheduler(opt, specs)
    joint = Joint(a, poses=refiner, exposure=exposure, background_model=b)
    losses = []
    for step in range(120):
        image, _ = joint.render(CAMERA, GREY, step % 2)
        loss = (image - photos[step % 2]).abs().mean()
        loss.backward()
        opt.step()
        opt.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.4 * sum(losses[:4])
    assert refiner.delta[0, 3].abs() < 0.03
    assert exposure.matrices[0].diagonal().mean() < 0.95


def test_the_example_of_the_documentation(builtin_scene, tmp_path, monkeypatch):
    """docs/joint.md, three steps of it."""
    text = (builtin_scene.parents[1] / "docs" / "joint.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    for long, short in (("data/scene", str(builtin_scene)), ("range(1000)", "range(3)"), ("=320", "=64")):
        assert long in program
        program = program.replace(long, short)
    blobs(5, 2, seed=0).save_ply(tmp_path / "room.ply")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program, names)
    groups = {group["name"]: group for group in names["opt"].param_groups}
    assert list(groups)[:1] + list(groups)[-3:] == ["object.xyz", "background.opacity", "poses", "exposure"]
    assert groups["background.xyz"]["frozen"]
    assert names["refiner"].delta[:3].any(dim=1).all()
    assert names["info"]["means2d"].shape == (1, names["a"].num_gaussians, 2)
