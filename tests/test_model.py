"""GaussianModel: from points, activations, state_dict, PLY."""

import math

import numpy as np
import pytest
import torch

from gsopt.datasets.ply import write_splat
from gsopt.errors import InputError
from gsopt.geometry import SH_C0
from gsopt.model import ATTRIBUTES, GaussianModel

NAN = float("nan")


def points(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.rand(n, 3, generator=generator)


def noisy(n: int, sh_degree: int = 3, seed: int = 0) -> GaussianModel:
    """A model whose every number is another."""
    generator = torch.Generator().manual_seed(seed)
    model = GaussianModel(n, sh_degree)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


# ---------------------------------------- construction


@pytest.mark.parametrize(("degree", "rest"), [(0, 0), (1, 3), (2, 8), (3, 15)])
def test_the_six_parameters_in_order_with_their_shapes(degree, rest):
    model = GaussianModel(5, degree)
    assert [(name, tuple(p.shape)) for name, p in model.named_parameters()] == [
        ("xyz", (5, 3)),
        ("feature_dc", (5, 1, 3)),
        ("feature_rest", (5, rest, 3)),
        ("scaling", (5, 3)),
        ("rotation", (5, 4)),
        ("opacity", (5, 1)),
    ]
    assert tuple(name for name, _ in model.named_parameters()) == ATTRIBUTES
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert model.max_sh_degree == degree
    assert model.num_gaussians == 5


def test_from_points_follows_the_original():
    xyz, rgb = points(50)
    model = GaussianModel.from_points(xyz, rgb)
    torch.testing.assert_close(model.means, xyz)
    torch.testing.assert_close(model.feature_dc[:, 0] * SH_C0 + 0.5, rgb)
    assert (model.feature_rest == 0).all()
    torch.testing.assert_close(model.opacities, torch.full((50,), 0.1))
    assert (model.quats == torch.tensor([1.0, 0, 0, 0])).all()


def test_scale_is_the_mean_distance_to_the_3_nearest():
    xyz, rgb = points(200)
    distance = torch.cdist(xyz.double(), xyz.double()).sort(dim=1).values[:, 1:4].mean(dim=1)
    scales = GaussianModel.from_points(xyz, rgb).scales
    torch.testing.assert_close(scales, distance[:, None].expand(-1, 3).float())


FEW = {  # positions along x: expected scales
    "one point has no neighbour": ([0.0], [1.0]),
    "two points": ([0.0, 2.0], [2.0, 2.0]),
    "three points": ([0.0, 1.0, 3.0], [2.0, 1.5, 2.5]),
    "four points": ([0.0, 1.0, 2.0, 4.0], [7 / 3, 5 / 3, 5 / 3, 3.0]),
    "all in one place": ([2.0, 2.0, 2.0, 2.0, 2.0], [1.0] * 5),
    "four in one place, floor 1/1000 of the median": ([0.0] * 4 + [1.0], [1e-3] * 4 + [1.0]),
}


@pytest.mark.parametrize("case", FEW)
def test_scale_with_few_or_coinciding_points(case):
    along_x, expected = FEW[case]
    xyz = torch.tensor([[x, 0.0, 0.0] for x in along_x])
    scales = GaussianModel.from_points(xyz, torch.zeros_like(xyz)).scales
    torch.testing.assert_close(scales[:, 0], torch.tensor(expected))


def test_from_points_takes_arrays_lists_and_float64():
    xyz, rgb = points(10)
    expected = GaussianModel.from_points(xyz, rgb).state_dict()
    for given in ((xyz.numpy(), rgb.numpy()), (xyz.tolist(), rgb.tolist()), (xyz.double(), rgb.double())):
        got = GaussianModel.from_points(*given).state_dict()
        assert all(torch.equal(got[name], expected[name]) for name in ATTRIBUTES)


def test_from_points_has_the_same_bits_with_any_number_of_threads():
    xyz, rgb = points(70_001)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(GaussianModel.from_points(xyz, rgb).state_dict())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], results[1][name]) for name in ATTRIBUTES)


BAD_POINTS = {
    "no points": (np.zeros((0, 3)), np.zeros((0, 3)), "at least one point, found none"),
    "two columns": (np.zeros((4, 2)), np.zeros((4, 3)), r"xyz: expected the shape \[N, 3\], found \[4, 2\]"),
    "flat": (np.zeros(3), np.zeros((1, 3)), r"xyz: expected the shape \[N, 3\], found \[3\]"),
    "another number of colours": (np.zeros((4, 3)), np.zeros((5, 3)), "found 5 and 4"),
    "NaN": ([[0, 0, 0], [0, NAN, 0], [1, 1, 1], [NAN, 0, 0]], np.zeros((4, 3)), "xyz: .* in row 1, 3;"),
    "infinite": ([[0, 0, math.inf]], np.zeros((1, 3)), "xyz: expected finite numbers"),
    "many NaN": (np.full((9, 3), NAN), np.zeros((9, 3)), "in row 0, 1, 2, 3, 4 and 4 more"),
    "NaN colour": ([[0, 0, 0]], [[0, 0, NAN]], "rgb: .* in row 0"),
    "8-bit colours": (
        np.zeros((1, 3)),
        [[0, 255, 0]],
        "0..1, found 255 in row 0; divide 8-bit colours by 255",
    ),
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_bad_points_are_named(case):
    xyz, rgb, message = BAD_POINTS[case]
    with pytest.raises(InputError, match=message):
        GaussianModel.from_points(xyz, rgb)


@pytest.mark.parametrize("degree", [-1, 4])
def test_bad_degree(degree):
    with pytest.raises(ValueError, match=f"sh_degree: expected 0 to 3, found {degree}"):
        GaussianModel(1, degree)


# ---------------------------------------- activations


def test_activated_values():
    model = noisy(7)
    torch.testing.assert_close(model.scales, torch.exp(model.scaling))
    torch.testing.assert_close(model.opacities, torch.sigmoid(model.opacity)[:, 0])
    assert model.opacities.shape == (7,)
    assert model.means is model.xyz
    assert model.quats is model.rotation
    assert model.sh[0] is model.feature_dc
    assert model.sh[1] is model.feature_rest


# ---------------------------------------- state_dict


def same(a: GaussianModel, b: GaussianModel) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_load_state_dict_takes_over_the_saved_rows():
    saved, model = noisy(9), GaussianModel(2)
    model.opacity.requires_grad_(False)
    model.load_state_dict(saved.state_dict())
    assert same(model, saved)
    assert not model.opacity.requires_grad
    assert model.xyz.requires_grad


def test_load_state_dict_keeps_the_parameters_where_the_shape_agrees():
    model = GaussianModel(9)
    before = dict(model.named_parameters())
    model.load_state_dict(noisy(9).state_dict())
    assert all(before[name] is p for name, p in model.named_parameters())


def test_load_state_dict_as_part_of_a_larger_module():
    def pair(a, b):
        return torch.nn.ModuleDict({"coarse": a, "fine": b})

    saved, models = pair(noisy(3), noisy(4, seed=1)), pair(GaussianModel(0), GaussianModel(0))
    models.load_state_dict(saved.state_dict())
    assert same(models["coarse"], saved["coarse"])
    assert same(models["fine"], saved["fine"])


def test_load_state_dict_takes_over_the_degree_only_when_asked():
    saved, model = noisy(9, sh_degree=1), GaussianModel(2, sh_degree=3)
    with pytest.raises(RuntimeError, match="feature_rest"):
        model.load_state_dict(saved.state_dict())
    assert (model.num_gaussians, model.max_sh_degree) == (2, 3)
    model.load_state_dict(saved.state_dict(), take_sh_degree=True)
    assert same(model, saved)
    assert model.max_sh_degree == 1


def test_load_state_dict_refuses_rows_that_disagree():
    state = noisy(9).state_dict() | {"opacity": torch.zeros(8, 1)}
    model = GaussianModel(2)
    with pytest.raises(RuntimeError, match="size mismatch for xyz"):
        model.load_state_dict(state)
    assert model.num_gaussians == 2


# ---------------------------------------- PLY


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_and_back_has_the_same_bits(tmp_path, degree):
    model = noisy(11, degree)
    model.save_ply(tmp_path / "a.ply")
    assert same(GaussianModel.load_ply(tmp_path / "a.ply"), model)


@pytest.mark.parametrize(("saved", "wanted"), [(3, 1), (1, 3), (0, 2), (2, 0), (2, 2)])
def test_ply_with_another_degree_is_cut_or_padded(tmp_path, saved, wanted):
    noisy(5, saved).save_ply(tmp_path / "a.ply")
    model = GaussianModel.load_ply(tmp_path / "a.ply", sh_degree=wanted)
    assert model.max_sh_degree == wanted
    common = (min(saved, wanted) + 1) ** 2 - 1
    assert torch.equal(model.feature_rest[:, :common], noisy(5, saved).feature_rest[:, :common])
    assert (model.feature_rest[:, common:] == 0).all()


def test_ply_with_numbers_that_are_not_finite_names_the_rows(tmp_path):
    model = noisy(5)
    with torch.no_grad():
        model.scaling[3, 1] = NAN
    model.save_ply(tmp_path / "a.ply")
    with pytest.raises(InputError, match=r"a\.ply: vertex 3: scale_1 is nan"):
        GaussianModel.load_ply(tmp_path / "a.ply")


def test_ply_without_gaussians(tmp_path):
    GaussianModel(0).save_ply(tmp_path / "a.ply")
    with pytest.raises(InputError, match=r"a\.ply: expected at least one Gaussian, found none"):
        GaussianModel.load_ply(tmp_path / "a.ply")


def test_ply_with_more_bands_than_a_model_has_needs_a_degree(tmp_path):
    values = {name: p.detach().numpy() for name, p in noisy(5).named_parameters()}
    write_splat(tmp_path / "a.ply", values | {"feature_rest": np.ones((5, 24, 3), np.float32)})
    with pytest.raises(InputError, match="expected harmonics of degree 3 or less, found 4; give a degree"):
        GaussianModel.load_ply(tmp_path / "a.ply")
    assert GaussianModel.load_ply(tmp_path / "a.ply", sh_degree=3).max_sh_degree == 3
