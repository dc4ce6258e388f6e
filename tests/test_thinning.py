"""Clouds thinned by voxels: how many are left, where they are, and in how much memory."""

import tracemalloc

import numpy as np
import pytest
import scenes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsopt.datasets import load_points, read_points
from gsopt.datasets import point_files as files
from gsopt.datasets.thinning import Thinner, thinned
from gsopt.errors import InputError


def surface(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of a crumpled sheet, a tenth of them on a hundredth of it, with smooth colours."""
    random = np.random.default_rng(seed)
    flat = random.random((count, 2))
    flat[: count // 10] *= 0.1
    xyz = np.column_stack([flat, 0.1 * np.sin(9 * flat[:, 0])]) * 30 + [5000, -3000, 40]
    return xyz, np.clip(np.column_stack([flat, flat[:, :1]]), 0, 1).astype(np.float32)


def thin(xyz, rgb, most: int, portion: int = 1 << 19) -> Thinner:
    thinner = Thinner(most)
    for first in range(0, len(xyz), portion):
        thinner.add(xyz[first : first + portion], rgb[first : first + portion])
    return thinner


@pytest.mark.parametrize("most", [1, 7, 100, 2_000])
def test_thinned_clouds_have_nearly_the_number_asked_for_and_cover_the_same(most):
    xyz, rgb = surface(40_000)
    means, colors = thin(xyz, rgb, most).result()
    assert most // 2 <= len(means) <= most
    assert len(means) == len(colors)
    assert (means >= xyz.min(axis=0)).all()
    assert (means <= xyz.max(axis=0)).all()
    if most >= 100:  # every point has one that is left nearby, of much the same colour
        side = 30 / most**0.5
        apart = torch.cdist(torch.from_numpy(xyz[::50]), torch.from_numpy(means))
        nearest = apart.argmin(dim=1).numpy()
        assert apart.amin(dim=1).max() < 2.5 * side
        assert np.abs(colors[nearest] - rgb[::50]).max() < 0.2


def test_the_dense_part_is_thinned_more():
    xyz, rgb = surface(40_000)
    means, _ = thin(xyz, rgb, 2_000).result()
    corner = (means[:, 0] < 5003) & (means[:, 1] < -2997)
    assert corner.mean() < 0.02  # of the area a hundredth, of the points a tenth


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(-40, 40)] * 3), min_size=1, max_size=60),
    most=st.integers(1, 20),
    portion=st.integers(1, 60),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
)
def test_thinning_keeps_sums_whatever_the_portions(points, most, portion, scale):
    """However it is cut into portions: counts and sums over all voxels are those of the points."""
    xyz = scale * np.array(points, np.float64)
    rgb = np.random.default_rng(0).random((len(xyz), 3)).astype(np.float32)
    thinner = thin(xyz, rgb, most, portion)
    assert thinner.sums[6].sum() == len(xyz)
    assert len(thinner.keys) <= max(4 * most, 1)
    np.testing.assert_allclose(
        thinner.sums[:3].sum(axis=1), (xyz - thinner.origin).sum(axis=0), atol=1e-6 * scale
    )
    means, colors = thinner.result()
    assert 1 <= len(means) <= most
    np.testing.assert_array_equal(means, thin(xyz, rgb, most, portion).result()[0])
    assert (colors >= 0).all()
    assert (colors <= 1).all()


def test_voxels_against_a_slow_twin():
    """One grid, no doubling: the mean of each cell, by a loop."""
    xyz, rgb = surface(500)
    thinner = thin(xyz, rgb, 200)
    cells: dict[tuple, list[int]] = {}
    for i, offset in enumerate(xyz - thinner.origin):
        cells.setdefault(tuple(np.floor(offset / thinner.size + thinner.phase).astype(int)), []).append(i)
    order = sorted(cells)
    assert len(order) == len(thinner.keys)
    expected = np.array([(xyz[cells[cell]] - thinner.origin).sum(axis=0) for cell in order])
    np.testing.assert_allclose(thinner.sums[:3].T, expected, atol=1e-9)


@pytest.mark.parametrize("portion", [64, 1 << 19])
@pytest.mark.parametrize("name", ["a.ply", "a.npy", "a.npz"])
def test_a_file_is_thinned_while_it_is_read(tmp_path, monkeypatch, name, portion):
    monkeypatch.setattr(files, "PORTION", portion)
    xyz, rgb = surface(3_000)
    if name == "a.ply":
        scenes.write_points(tmp_path / name, xyz.astype(np.float32), np.rint(255 * rgb).astype(np.uint8))
    elif name == "a.npy":
        np.save(tmp_path / name, np.hstack([xyz, rgb]))
    else:
        np.savez(tmp_path / name, xyz=xyz, rgb=rgb)
    points = load_points(tmp_path / name, most=400)
    assert 240 <= len(points.xyz) <= 400
    assert torch.equal(points.xyz, load_points(tmp_path / name, most=400).xyz)
    whole = load_points(tmp_path / name)
    assert len(whole.xyz) == len(load_points(tmp_path / name, most=3_000).xyz) == 3_000  # enough: as they are
    twin = thinned(read_points(tmp_path / name), 400)
    if portion > 3_000:
        assert len(twin.xyz) == len(points.xyz)
        torch.testing.assert_close(points.xyz, twin.xyz.float())


def test_a_number_that_is_not_finite_is_named_by_its_row_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PORTION", 64)
    xyz, _ = surface(300)
    xyz[170, 1] = np.inf
    np.save(tmp_path / "a.npy", xyz)
    with pytest.raises(
        InputError, match=r"vertex 170: y is inf, expected a finite number \(1 of 64 vertices"
    ):
        load_points(tmp_path / "a.npy", most=10)


def test_the_memory_of_thinning_does_not_grow_with_the_cloud(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PORTION", 1 << 13)
    peaks = []
    for count in (1 << 14, 1 << 18):
        xyz, rgb = surface(count)
        path = tmp_path / f"{count}.ply"
        scenes.write_points(path, xyz.astype(np.float32), np.rint(255 * rgb).astype(np.uint8))
        del xyz, rgb
        tracemalloc.start()
        left = len(read_points(path, most=1_000).xyz)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert 600 <= left <= 1_000
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 300 * (4 * 1_000 + (1 << 13))  # bytes for each voxel, and each point of a portion
