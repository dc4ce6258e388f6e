"""The CUDA backend over gsplat's own code, on a CPU: what it is called with, and what comes back.

gsplat's Python runs as it is; only its kernels are stood in for (`gsplat_on_cpu`). So names, defaults, shapes
and the meaning of every argument are those of the installed version.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from gsplat_on_cpu import META, REQUIRED, SIGNATURES, gradients, without_kernels
from small_scenes import one_thread, scene, trained  # noqa: F401

import gsopt
from gsopt.geometry import quat_scale_to_covar
from gsopt.render import cuda, reference
from gsopt.render.call import RenderCall

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


@pytest.fixture
def gsplat(monkeypatch):
    pytest.importorskip("gsplat", reason="needs the extra cuda")
    cuda._require_kernels.cache_clear()
    yield without_kernels(monkeypatch)
    cuda._require_kernels.cache_clear()


def defaults(function) -> dict:
    """Parameters and defaults, enumerations by the name of the member."""
    return {
        name: REQUIRED if p.default is p.empty else getattr(p.default, "name", p.default)
        for name, p in inspect.signature(function).parameters.items()
    }


def signature(version: str) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    entries = SIGNATURES[version].items()
    ordered = sorted(entries, key=lambda entry: entry[1] is not REQUIRED)
    return inspect.Signature(
        inspect.Parameter(name, kind, default=inspect.Parameter.empty if value is REQUIRED else value)
        for name, value in ordered
    )


# ---- names and defaults


def test_the_installed_version_has_the_recorded_signature(gsplat):
    version = ".".join(gsplat.__version__.split(".")[:2])
    assert defaults(gsplat.rasterization) == SIGNATURES[version]


def test_ours_has_the_names_defaults_and_order_of_the_installed_version(gsplat):
    ours = defaults(gsopt.rasterization)
    assert ours.pop("backend") is None
    assert list(ours.items()) == list(defaults(gsplat.rasterization).items())


@pytest.mark.parametrize("version", SIGNATURES)
def test_every_version_takes_the_call(version, monkeypatch, gsplat):
    """With the recorded signature in place of gsplat's; what 1.6 lacks is not handed to it."""
    calls = []

    def recorded(**handed):
        calls.append(signature(version).bind(**handed).arguments)

    recorded.__signature__ = signature(version)
    monkeypatch.setattr(gsplat, "rasterization", recorded)
    cuda.render(RenderCall(**scene()))
    (handed,) = calls
    assert ("channel_chunk" in handed) == (version == "1.5")
    assert handed["sparse_grad"] is False
    assert handed["tile_size"] == 8


def test_the_range_of_versions_is_that_of_the_extra():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"gsplat([^"]*)"', text)) == {cuda.SUPPORTED}


# ---- what comes back

CASES = {
    "as in training": {},
    "packed": {"packed": True},
    "two cameras": {"cameras": 2},
    "two cameras, packed": {"cameras": 2, "packed": True},
    "antialiased": {"rasterize_mode": "antialiased"},
    "antialiased, packed": {"rasterize_mode": "antialiased", "packed": True, "cameras": 2},
    "depth": {"render_mode": "D"},
    "colour and expected depth": {"render_mode": "RGB+ED", "packed": True},
    "expected depth": {"render_mode": "ED"},
    "fewer bands": {"sh_degree": 0},
    "wide blur": {"eps2d": 1.5, "tile_size": 5, "size": 13},
    "few channels at once": {"channel_chunk": 2},
    "depth, packed": {"render_mode": "D", "packed": True},
}


@pytest.mark.parametrize("case", CASES)
def test_pictures_info_and_gradients_are_those_of_the_reference(case, gsplat):
    values = trained(scene(n=8, **CASES[case]), *INPUTS)
    call = RenderCall(**values)
    mine, theirs = reference.render(call), cuda.render(call)
    for ours, other in zip(mine[:2], theirs[:2], strict=True):
        torch.testing.assert_close(other, ours)
    info, meta = mine[2], theirs[2]
    assert set(meta) == META == set(info)
    for name in ("means2d", "depths", "conics", "opacities", "camera_ids", "gaussian_ids", "batch_ids"):
        if info[name] is None:
            assert meta[name] is None
        else:
            torch.testing.assert_close(meta[name], info[name])
    for name in META:
        if isinstance(info[name], torch.Tensor):
            assert (meta[name].dtype, meta[name].dim()) == (info[name].dtype, info[name].dim()), name
        elif info[name] is not None:
            assert meta[name] == info[name], name
    used = tuple(name for name in INPUTS if call.renders_color or name not in ("colors", "backgrounds"))
    for name, ours, other in zip(
        used, gradients(values, used, mine[:2]), gradients(values, used, theirs[:2]), strict=True
    ):
        if name == "viewmats":  # gsplat inverts the matrix as if its last row could move
            ours, other = ours[:, :3], other[:, :3]
        torch.testing.assert_close(other, ours, msg=lambda text, name=name: f"{name}: {text}")


def test_covariances_in_place_of_quaternions(gsplat):
    values = scene(n=8)
    covars = quat_scale_to_covar(values["quats"], values["scales"])
    picture, _, _ = cuda.render(RenderCall(**values | {"quats": None, "scales": None, "covars": covars}))
    torch.testing.assert_close(picture, reference.render(RenderCall(**values))[0])


def test_absolute_gradients(gsplat):
    call = RenderCall(**trained(scene(n=8, absgrad=True), *INPUTS))
    found = []
    for backend in (reference, cuda):
        picture, _, info = backend.render(call)
        (picture * torch.linspace(0, 1, picture.numel()).view_as(picture)).sum().backward()
        found.append(info["means2d"].absgrad)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("frozen", [INPUTS, ("means", "quats", "scales", "viewmats"), ("colors",)], ids=str)
def test_frozen_inputs_get_no_gradient_and_means2d_does(frozen, gsplat):
    moving = tuple(name for name in INPUTS if name not in frozen)
    values = scene(n=8) | ({} if not moving else trained(scene(n=8), *moving))
    handed = cuda.gsplat_arguments(RenderCall(**values))
    assert {name for name in INPUTS if handed[name] is values[name] and handed[name].requires_grad} == set(
        moving
    )
    picture, _, info = cuda.render(RenderCall(**values))
    info["means2d"].retain_grad()
    picture.sum().backward()
    assert info["means2d"].grad.abs().sum() > 0
    for name in INPUTS:
        assert (values[name].grad is not None) == (name in moving)


def test_a_model_is_handed_over_activated(gsplat):
    """The same through the interface that a training uses: logs, logits, harmonics in two tensors."""
    values = trained(scene(n=8), "colors")
    raw = (values["means"], values["quats"], values["scales"].log(), torch.logit(values["opacities"]))
    harmonics = (values["colors"][:, :1], values["colors"][:, 1:])
    call = RenderCall(
        *raw, harmonics, values["viewmats"], values["Ks"], 8, 8, sh_degree=1, raw=True, packed=False
    )
    picture, _, _ = cuda.render(call.activated())
    expected = reference.render(RenderCall(**values | {"backgrounds": None, "tile_size": 16}))[0]
    torch.testing.assert_close(picture, expected)
