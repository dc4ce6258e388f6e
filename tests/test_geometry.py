"""Spherical harmonics, rotations and covariances: defining properties, and equality with gsplat."""

import math

import numpy as np
import pytest
import torch

from gsopt import geometry


@pytest.fixture
def gsplat():
    return pytest.importorskip("gsplat.cuda._torch_impl")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("degree", range(5))
def test_harmonics_are_gsplats(gsplat, degree):
    dirs, coeffs = randn(50, 3), randn(50, 25, 3, seed=1)
    expected = gsplat._spherical_harmonics(degree, dirs, coeffs)
    torch.testing.assert_close(geometry.spherical_harmonics(degree, dirs, coeffs), expected)


def test_harmonics_are_orthonormal():
    # Gauss-Legendre in z times equal steps around is exact for products of two harmonics of degree 4.
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(5))
    angles = torch.arange(10, dtype=torch.float64) * 2 * math.pi / 10
    z, angle = nodes.repeat_interleave(10), angles.repeat(5)
    across = (1 - z * z).sqrt()
    basis = geometry.sh_basis(4, torch.stack([across * angle.cos(), across * angle.sin(), z], dim=-1))
    area = weights.repeat_interleave(10) * 2 * math.pi / 10
    torch.testing.assert_close(basis.T @ (basis * area[:, None]), torch.eye(25, dtype=torch.float64))


def test_harmonics_need_no_unit_directions_and_ignore_higher_bands():
    dirs, coeffs = randn(7, 3), randn(7, 16, 2)
    low = coeffs.clone()
    low[:, 4:] = 0
    expected = geometry.spherical_harmonics(3, dirs, low)
    torch.testing.assert_close(geometry.spherical_harmonics(1, 100 * dirs, coeffs), expected)


def test_colour_and_coefficient_are_inverse():
    rgb = torch.linspace(0, 1, 5)
    coefficient = geometry.rgb_to_sh(rgb)
    torch.testing.assert_close(geometry.sh_to_rgb(coefficient), rgb)
    color = geometry.spherical_harmonics(0, torch.tensor([0.0, 0.0, 1.0]), coefficient[None]) + 0.5
    torch.testing.assert_close(color, rgb)


@pytest.mark.parametrize(("degree", "bases"), [(0, 1), (1, 4), (2, 9), (3, 16), (4, 25)])
def test_degree_and_number_of_bases(degree, bases):
    assert geometry.num_sh_bases(degree) == bases
    assert geometry.sh_degree_of(bases) == degree


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry.sh_degree_of(0), "found 0"),
        (lambda: geometry.sh_degree_of(5), "expected 1, 4, 9, 16 or 25, found 5"),
        (lambda: geometry.sh_degree_of(36), "found 36"),
        (lambda: geometry.sh_basis(5, torch.ones(3)), "degree: expected 0 to 4, found 5"),
        (lambda: geometry.sh_basis(-1, torch.ones(3)), "degree: expected 0 to 4, found -1"),
        (
            lambda: geometry.spherical_harmonics(2, torch.ones(3), torch.ones(4, 3)),
            r"degree 2 needs at least 9 coefficients, found shape \[4, 3\]",
        ),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("quat", "image_of_x", "image_of_y"),
    [
        ((1, 0, 0, 0), (1, 0, 0), (0, 1, 0)),
        ((HALF, HALF, 0, 0), (1, 0, 0), (0, 0, 1)),  # quarter turns: y to z,
        ((HALF, 0, HALF, 0), (0, 0, -1), (0, 1, 0)),  # z to x,
        ((HALF, 0, 0, HALF), (0, 1, 0), (-1, 0, 0)),  # x to y
        ((-3, 0, 0, -3), (0, 1, 0), (-1, 0, 0)),  # any norm, either sign
        ((0, 0, 0, 0), (1, 0, 0), (0, 1, 0)),
    ],
)
def test_rotations(quat, image_of_x, image_of_y):
    rotation = geometry.quat_to_rotmat(torch.tensor(quat, dtype=torch.float64))
    expected = torch.tensor([image_of_x, image_of_y], dtype=torch.float64).T
    torch.testing.assert_close(rotation[:, :2], expected)


def test_rotations_are_gsplats(gsplat):
    quats = randn(20, 4)
    torch.testing.assert_close(geometry.quat_to_rotmat(quats), gsplat._quat_to_rotmat(quats))


def test_covariances_are_gsplats(gsplat):
    quats, scales = randn(20, 4), randn(20, 3, seed=1).exp()
    expected, _ = gsplat._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    torch.testing.assert_close(geometry.quat_scale_to_covar(quats, scales), expected)


def test_covariances_have_the_scales_squared_as_eigenvalues():
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    covars = geometry.quat_scale_to_covar(randn(10, 4), scales.expand(10, 3))
    assert torch.equal(covars, covars.transpose(-1, -2))
    torch.testing.assert_close(torch.linalg.eigvalsh(covars), (scales**2).expand(10, 3))


def test_camera_centers():
    viewmats = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    viewmats[:, :3, :3] = geometry.quat_to_rotmat(randn(5, 4))
    viewmats[:, :3, 3] = randn(5, 3)
    centers = geometry.camera_centers(viewmats)
    seen = viewmats[:, :3, :3] @ centers[..., None] + viewmats[:, :3, 3:]
    torch.testing.assert_close(seen, torch.zeros_like(seen))


def test_inverse_sigmoid():
    x = torch.linspace(-8, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(geometry.inverse_sigmoid(x.sigmoid()), x)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda d, c: geometry.spherical_harmonics(4, d, c), [(2, 3), (2, 25, 3)]),
        (geometry.quat_to_rotmat, [(2, 4)]),
        (geometry.quat_scale_to_covar, [(2, 4), (2, 3)]),
        (lambda v: geometry.camera_centers(v + 3 * torch.eye(4)), [(2, 4, 4)]),
        (lambda x: geometry.inverse_sigmoid(x.sigmoid()), [(3,)]),
    ],
    ids=["spherical_harmonics", "quat_to_rotmat", "quat_scale_to_covar", "camera_centers", "inverse_sigmoid"],
)
def test_gradients(function, shapes):
    inputs = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    dirs, quats = randn(2, 3).to(dtype), randn(2, 4).to(dtype)
    assert geometry.spherical_harmonics(3, dirs, randn(2, 16, 3).to(dtype)).dtype == dtype
    assert geometry.quat_scale_to_covar(quats, dirs).dtype == dtype
    assert geometry.rgb_to_sh(dirs).dtype == dtype
