"""The comparison of two precisions: random scenes on which they agree, and those on which they need not."""

import math

import pytest
import torch
from random_scenes import KINDS, random_scene
from render_compare import ambiguity, disagreements, relative_error, results
from small_scenes import on_axis, one_thread, scene  # noqa: F401
from torch import Tensor

from gsopt.geometry import rgb_to_sh
from gsopt.render.call import ALPHA_MIN


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64(kind):
    for seed in range(4):
        values = random_scene(seed, kind)
        expected = results(values, "reference", torch.float64)
        found = results(values, "reference", torch.float32)
        assert not disagreements(found, expected, tolerance=6e-5), seed


def test_random_scenes_are_float32_and_reproducible():
    first, second = random_scene(3), random_scene(3)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name])
            assert torch.equal(value, value.float().double())


FLAT = torch.tensor([1e-3, 1e-3, 30.0], dtype=torch.float64).expand(4, 3)
AT_A_TILE = torch.tensor([[[1.0, 0, 13], [0, 1, 14.3], [0, 0, 1]]], dtype=torch.float64)  # radius 3
AT_THE_MARGIN = torch.tensor([[[1.0, 0, 11.5], [0, 1, 0.5], [0, 0, 1]]], dtype=torch.float64)
AMBIGUOUS = {
    "depth at the near or far plane": on_axis((2, 0.5, 1), near_plane=2.0),
    "opacity at 1/255": on_axis((2, ALPHA_MIN, 1)),
    "splat too thin for float32": scene(scales=FLAT, size=64),
    "radius at a whole number": on_axis((2, ALPHA_MIN * math.exp(2.0), 1), eps2d=0.75),  # 2 deviations of 1
    "rectangle at the edge of a tile or of the image": on_axis(
        (2, 0.5, 1), Ks=AT_A_TILE, width=32, height=32
    ),
    "nearly equal depths": on_axis((2, 0.5, 1), (2 + 1e-8, 0.5, 1)),
    "alpha at 0.999": on_axis((2, 0.999, 1)),
    "transmittance at 1e-4": on_axis((2, 0.99, 1), (3, 0.99, 1)),
    "colour at zero": on_axis((2, 0.5, 1), sh_degree=0, colors=rgb_to_sh(torch.zeros(1, 1, 3).double())),
    "alpha at 1/255": on_axis((2, ALPHA_MIN * math.exp(1.0), 1), eps2d=0.75, width=3, height=3),
    "slope at the edge of the field of view": on_axis((2, 0.9, 1), width=10, Ks=AT_THE_MARGIN),
}


@pytest.mark.parametrize("reason", AMBIGUOUS)
def test_ambiguous_scenes_are_recognised(reason):
    assert ambiguity(AMBIGUOUS[reason]) == reason


def test_disagreements_are_found():
    expected = {"a": torch.tensor([1.0, 100.0]), "radii": torch.tensor([3], dtype=torch.int32)}
    assert not disagreements({"a": torch.tensor([1.0, 100.009]), "radii": expected["radii"]}, expected)
    found = {"a": torch.tensor([1.02, 100.0]), "radii": torch.tensor([4], dtype=torch.int32)}
    assert disagreements(found, expected) == {"a": "relative error 2.00e-04", "radii": "1 of 1 differ"}
    assert relative_error(torch.tensor([math.nan]), torch.tensor([1.0])) == math.inf
    assert relative_error(torch.tensor([1e-9]), torch.tensor([0.0])) == math.inf
