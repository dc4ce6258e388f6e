"""The interface of rasterization: gsplat's signature, the checks, the choice of a backend, the info."""

import dataclasses
import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
from small_scenes import C, N, arguments

from gsopt.render import rasterization
from gsopt.render.call import RenderCall
from gsopt.render.info import RenderInfo, tile_intersections


def test_names_order_and_defaults_are_gsplats():
    gsplat = pytest.importorskip("gsplat")
    theirs = inspect.signature(gsplat.rasterization).parameters
    ours = dict(inspect.signature(rasterization).parameters)
    backend = ours.pop("backend")
    assert backend.kind is inspect.Parameter.KEYWORD_ONLY
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        # The one default that is a member of an enumeration of gsplat's stands here by its name.
        assert ours[name].default == getattr(parameter.default, "name", parameter.default), name
        assert ours[name].kind == parameter.kind, name


def test_call_has_the_defaults_of_the_interface():
    ours = inspect.signature(rasterization).parameters
    for field in dataclasses.fields(RenderCall):
        if field.default is not dataclasses.MISSING and field.name != "raw":  # of parameters, not values
            assert ours[field.name].default == field.default, field.name


BAD = [
    ({"means": torch.zeros(N, 2)}, ValueError, r"means: expected shape \[N, 3\] with N = 5, found \[5, 2\]"),
    ({"means": torch.zeros(3)}, ValueError, r"means: expected shape \[N, 3\], found \[3\]"),
    ({"means": torch.zeros(N, 3).int()}, ValueError, "means: expected dtype float32 or float64, found int32"),
    ({"means": torch.zeros(N, 3).half()}, ValueError, "means: expected dtype float32 .*, found float16"),
    ({"means": [[0.0, 0, 0]]}, TypeError, "means: expected a tensor, found list"),
    ({"quats": torch.zeros(N, 3)}, ValueError, r"quats: expected shape \[N, 4\] with N = 5, found \[5, 3\]"),
    ({"quats": None}, TypeError, "quats: expected a tensor, found NoneType"),
    ({"scales": torch.ones(N + 1, 3)}, ValueError, r"scales: .* N = 5, found \[6, 3\]"),
    ({"scales": torch.ones(N, 3).double()}, ValueError, "scales: expected dtype float32 like means, found"),
    (
        {"scales": torch.ones(N, 3, device="meta")},
        ValueError,
        "scales: expected device cpu like means, found meta",
    ),
    (
        {"opacities": torch.ones(N, 1)},
        ValueError,
        r"opacities: expected shape \[N\] with N = 5, found \[5, 1\]",
    ),
    ({"viewmats": torch.eye(4)}, ValueError, r"viewmats: expected shape \[C, 4, 4\], found \[4, 4\]"),
    ({"Ks": torch.eye(3)[None]}, ValueError, r"Ks: expected shape \[C, 3, 3\] with C = 2, found \[1, 3, 3\]"),
    (
        {"colors": torch.ones(N, 3)},
        ValueError,
        r"colors: expected shape \[N, K, 3\] or \[C, N, K, 3\] with N = 5",
    ),
    (
        {"colors": torch.ones(N, 4, 3)},
        ValueError,
        "colors: sh_degree 2 needs at least 9 coefficients, found 4",
    ),
    ({"colors": (torch.ones(N, 1, 3),)}, ValueError, r"colors: expected two tensors in the tuple, found 1"),
    (
        {"colors": (torch.ones(N, 3), torch.ones(N, 8, 3))},
        ValueError,
        r"colors\[0\]: expected shape \[N, 1, 3\] or \[C, N, 1, 3\] .*found \[5, 3\]",
    ),
    (
        {"colors": (torch.ones(N, 1, 3), torch.ones(C, N, 8, 3))},
        ValueError,
        r"colors\[1\]: expected shape \[N, K, 3\] with N = 5, found \[2, 5, 8, 3\]",
    ),
    (
        {"colors": (torch.ones(N, 1, 3), torch.ones(N, 3, 3))},
        ValueError,
        "colors: sh_degree 2 needs at least 9 coefficients, found 4",
    ),
    ({"sh_degree": None}, ValueError, r"colors: expected shape \[N, D\] or \[C, N, D\] .* found \[5, 9, 3\]"),
    (
        {"sh_degree": None, "colors": (torch.ones(N, 1, 3), torch.ones(N, 8, 3))},
        ValueError,
        "a pair .* needs sh_degree",
    ),
    ({"sh_degree": None, "colors": torch.ones(N, 0)}, ValueError, "colors: expected at least one channel"),
    ({"sh_degree": -1}, ValueError, "sh_degree: expected at least 0, found -1"),
    ({"sh_degree": 2.0}, TypeError, "sh_degree: expected an integer or None, found 2.0"),
    (
        {"backgrounds": torch.ones(3)},
        ValueError,
        r"backgrounds: expected shape \[C, 3\] with C = 2, found \[3\]",
    ),
    ({"backgrounds": torch.ones(C, 4)}, ValueError, r"backgrounds: .* found \[2, 4\]"),
    (
        {"covars": torch.ones(N, 6)},
        ValueError,
        r"covars: expected shape \[N, 3, 3\] with N = 5, found \[5, 6\]",
    ),
    ({"width": 0}, ValueError, "width: expected at least 1, found 0"),
    ({"height": 2.5}, TypeError, "height: expected an integer, found 2.5"),
    ({"tile_size": 0}, ValueError, "tile_size: expected at least 1"),
    ({"channel_chunk": True}, TypeError, "channel_chunk: expected an integer, found True"),
    ({"near_plane": -1.0}, ValueError, "near_plane: expected at least 0, found -1.0"),
    ({"eps2d": float("nan")}, ValueError, "eps2d: expected at least 0, found nan"),
    ({"render_mode": "rgb"}, ValueError, r"render_mode: expected one of RGB, D, ED, .*, found 'rgb'"),
    (
        {"rasterize_mode": "fast"},
        ValueError,
        "rasterize_mode: expected one of classic, antialiased, found 'fast'",
    ),
    ({"camera_model": "fish"}, ValueError, "camera_model: expected one of pinhole, .* found 'fish'"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of reference, cpu, cuda or None, found 'gpu'"),
    ({"backend": "cuda"}, ValueError, "backend: 'cuda' needs float32 tensors on a CUDA device, found .* cpu"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        rasterization(**arguments(**{"backend": "reference"} | changes))


def test_backend_cpu_refuses_float64():
    doubles = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    with pytest.raises(ValueError, match=r"'cpu' needs float32 tensors on a CPU device, found .*float64"):
        rasterization(**doubles, backend="cpu")


UNSUPPORTED = [
    {"means": torch.zeros(2, N, 3)},
    {"sh_degree": 5},
    {"sparse_grad": True},
    {"distributed": True},
    {"camera_model": "ortho"},
    {"camera_model": "fisheye"},
    {"with_ut": True},
    {"with_eval3d": True},
    {"radial_coeffs": torch.zeros(C, 6)},
    {"tangential_coeffs": torch.zeros(C, 2)},
    {"thin_prism_coeffs": torch.zeros(C, 4)},
    {"ftheta_coeffs": object()},
    {"rolling_shutter": SimpleNamespace(name="ROLLING_TOP_TO_BOTTOM")},
    {"viewmats_rs": torch.eye(4).repeat(C, 1, 1)},
]


@pytest.mark.parametrize("changes", UNSUPPORTED, ids=lambda changes: next(iter(changes)))
def test_unsupported_arguments_are_named(changes):
    name = next(iter(changes))
    with pytest.raises(NotImplementedError, match=rf"^{name}: "):
        rasterization(**arguments(**changes), backend="reference")


def test_gsplats_own_shutter_is_accepted():
    shutter = SimpleNamespace(name="GLOBAL", value=4)
    rasterization(**arguments(rolling_shutter=shutter), backend="reference")


def test_depth_alone_has_no_background():
    plain = rasterization(**arguments(render_mode="D"), backend="reference")[0]
    behind = rasterization(**arguments(render_mode="D", backgrounds=torch.ones(C, 7)), backend="reference")[0]
    assert torch.equal(plain, behind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_backend(dtype, monkeypatch):
    called = []
    for name in ("cpu", "reference"):
        module = SimpleNamespace(render=lambda call, name=name: called.append((name, call)))
        monkeypatch.setitem(sys.modules, f"gsopt.render.{name}", module)
    values = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    rasterization(**values)
    [(name, call)] = called
    assert name == {torch.float32: "cpu", torch.float64: "reference"}[dtype]
    assert (call.num_gaussians, call.num_cameras, call.tile_width, call.tile_height) == (N, C, 2, 1)


def test_harmonics_come_in_two_parts():
    call = RenderCall(**arguments())
    first, others = call.sh_parts
    assert torch.equal(torch.cat([first, others], dim=-2), call.colors)
    assert RenderCall(**arguments(colors=(first, others))).sh_parts == (first, others)


# ---- info


def info_of(packed: bool, **changes) -> dict:
    return rasterization(**arguments(packed=packed, **changes), backend="reference")[2]


def test_info_unpacked():
    info = info_of(packed=False)
    shapes = {k: (list(v.shape), v.dtype) for k, v in info.items() if isinstance(v, torch.Tensor)}
    total = int(info["tiles_per_gauss"].sum())
    assert shapes == {
        "radii": ([C, N, 2], torch.int32),
        "means2d": ([C, N, 2], torch.float32),
        "depths": ([C, N], torch.float32),
        "conics": ([C, N, 3], torch.float32),
        "opacities": ([C, N], torch.float32),
        "tiles_per_gauss": ([C, N], torch.int32),
        "isect_ids": ([total], torch.int64),
        "flatten_ids": ([total], torch.int32),
        "isect_offsets": ([C, 1, 2], torch.int32),
    }
    others = {k: v for k, v in info.items() if not isinstance(v, torch.Tensor)}
    assert others == {
        "batch_ids": None,
        "camera_ids": None,
        "gaussian_ids": None,
        "tile_width": 2,
        "tile_height": 1,
        "width": 20,
        "height": 16,
        "tile_size": 16,
        "n_batches": 1,
        "n_cameras": C,
    }


def test_info_packed():
    means = arguments()["means"]
    means[0, 2] = -5  # behind the cameras
    info = info_of(packed=True, means=means)
    shapes = {k: (list(v.shape), v.dtype) for k, v in info.items() if isinstance(v, torch.Tensor)}
    nnz, total = C * (N - 1), int(info["tiles_per_gauss"].sum())
    assert shapes == {
        "batch_ids": ([nnz], torch.int64),
        "camera_ids": ([nnz], torch.int64),
        "gaussian_ids": ([nnz], torch.int64),
        "radii": ([nnz, 2], torch.int32),
        "means2d": ([nnz, 2], torch.float32),
        "depths": ([nnz], torch.float32),
        "conics": ([nnz, 3], torch.float32),
        "opacities": ([nnz], torch.float32),
        "tiles_per_gauss": ([nnz], torch.int32),
        "isect_ids": ([total], torch.int64),
        "flatten_ids": ([total], torch.int32),
        "isect_offsets": ([C, 1, 2], torch.int32),
    }
    assert info["camera_ids"].tolist() == [0] * (N - 1) + [1] * (N - 1)
    assert info["gaussian_ids"].tolist() == [1, 2, 3, 4] * 2


def lazy_info() -> RenderInfo:
    """An info dictionary whose intersections nobody has looked at."""
    eager = {k: v for k, v in dict(info_of(packed=False)).items() if k not in RenderInfo.INTERSECTIONS}
    return RenderInfo(eager, {})


@pytest.mark.parametrize(
    "look",
    [
        lambda info: info["isect_ids"],
        lambda info: info.get("flatten_ids"),
        lambda info: dict(info)["isect_offsets"],
        lambda info: {**info}["isect_offsets"],
        lambda info: dict(info.items())["tiles_per_gauss"],
        lambda info: dict(zip(info.keys(), info.values(), strict=True))["tiles_per_gauss"],
        lambda info: {key: info[key] for key in info}["isect_ids"],
    ],
)
def test_intersections_are_computed_when_looked_at(look, monkeypatch):
    computed = []

    def spy(*args, **kwargs):
        computed.append(True)
        return tile_intersections(*args, **kwargs)

    info = lazy_info()
    monkeypatch.setattr("gsopt.render.info.tile_intersections", spy)
    assert info["radii"] is not None
    assert "isect_ids" in info
    assert "nonsense" not in info
    assert info.get("nonsense", 7) == 7
    assert not computed
    assert look(info) is not None
    assert len(info) == 19
    assert info["isect_ids"] is info["isect_ids"]
    assert computed == [True]


def test_unknown_key_of_info():
    with pytest.raises(KeyError, match="nonsense"):
        lazy_info()["nonsense"]
