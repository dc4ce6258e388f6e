"""The CUDA backend as far as it can be tested without CUDA: what gsplat is given, and what it is spared."""

import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
from small_scenes import C, N, arguments

from gsopt.errors import InputError, MissingExtra
from gsopt.render import cuda
from gsopt.render.call import RenderCall


@pytest.fixture(autouse=True)
def ask_anew():
    """Whether there are kernels is asked once in a process."""
    cuda._require_kernels.cache_clear()
    yield
    cuda._require_kernels.cache_clear()


def cuda_arguments(**changes) -> dict:
    return cuda.gsplat_arguments(RenderCall(**arguments(**changes)))


def test_gsplat_gets_the_call():
    gsplat = pytest.importorskip("gsplat")
    changes = {
        "near_plane": 0.1,
        "far_plane": 9.0,
        "radius_clip": 1.0,
        "eps2d": 0.2,
        "packed": False,
        "tile_size": 8,
        "backgrounds": torch.ones(C, 3),
        "render_mode": "RGB+ED",
        "absgrad": True,
        "rasterize_mode": "antialiased",
        "channel_chunk": 16,
        "segmented": True,
        "covars": torch.eye(3).repeat(N, 1, 1),
    }
    values = arguments(**changes)
    with torch.no_grad():
        handed = cuda.gsplat_arguments(RenderCall(**values))
    inspect.signature(gsplat.rasterization).bind(**handed)
    for name, value in values.items():
        assert handed[name] is value, name


def test_gsplat_gets_one_tensor_of_harmonics():
    colors = arguments()["colors"]
    handed = cuda_arguments(colors=(colors[:, :1], colors[:, 1:]))
    assert torch.equal(handed["colors"], colors)


@pytest.mark.parametrize("trained", [None, "means", "scales", "viewmats", "opacities"])
def test_gsplat_gets_something_to_differentiate_the_projection_by(trained):
    values = {} if trained is None else {trained: arguments()[trained].requires_grad_()}
    handed = cuda_arguments(**values)
    assert handed["means"].requires_grad == (trained in (None, "means", "opacities"))
    assert handed["means"].is_leaf
    with torch.no_grad():
        assert not cuda_arguments()["means"].requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Ks": arguments()["Ks"].requires_grad_()}, "^Ks: only the reference backend"),
        ({"absgrad": True, "channel_chunk": 2}, "^absgrad: .* at least the 3 channels rendered, found 2"),
    ],
)
def test_gradients_that_gsplat_would_drop(changes, message):
    with pytest.raises(NotImplementedError, match=message):
        cuda_arguments(**changes)


def test_missing_gsplat_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(MissingExtra, match=r'rendering on CUDA needs the package gsplat: .*"gsopt\[cuda\]"'):
        cuda.render(RenderCall(**arguments()))


def fake_gsplat(monkeypatch, kernels: object) -> None:
    """A gsplat whose rasterization returns its arguments."""
    gsplat = SimpleNamespace(rasterization=lambda **handed: handed)
    monkeypatch.setitem(sys.modules, "gsplat", gsplat)
    monkeypatch.setitem(sys.modules, "gsplat.cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(_C=kernels))


def test_gsplat_is_called(monkeypatch):
    fake_gsplat(monkeypatch, kernels=object())
    call = RenderCall(**arguments(eps2d=0.2))
    assert cuda.render(call)["eps2d"] == 0.2


def test_gsplat_without_kernels_says_what_to_install(monkeypatch):
    fake_gsplat(monkeypatch, kernels=None)
    with pytest.raises(
        InputError, match=r"gsplat has no compiled kernels.*: install the toolkit, or a wheel"
    ):
        cuda.render(RenderCall(**arguments()))


def test_gsplat_that_cannot_build_its_kernels_says_why(monkeypatch):
    fake_gsplat(monkeypatch, kernels=object())
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", None)  # importing it raises ImportError
    with pytest.raises(InputError, match=r"gsplat could not build its kernels \(.*_backend.*: install the"):
        cuda.render(RenderCall(**arguments()))


def test_gsplat_is_spared_empty_scenes():
    empty = {name: arguments()[name][:0] for name in ("means", "quats", "scales", "opacities", "colors")}
    colors, alphas, _ = cuda.render(RenderCall(**arguments(**empty)))
    assert colors.abs().sum() == alphas.sum() == 0
