"""The native kernel against the reference in float64, for every instruction set of this processor."""

import json
import os
import subprocess
import sys

import pytest
import torch
from random_scenes import KINDS, random_scene
from render_compare import TOLERANCE, disagreements, is_ambiguous, relative_error, results

from gsopt.errors import InputError
from gsopt.native import Frame, available_isas, get_num_threads, library, set_num_threads
from gsopt.render import _render, rasterization
from gsopt.render.call import RenderCall
from gsopt.render.info import keep_gradient
from gsopt.render.kernel import Watch

SEEDS = range(100)
GEOMETRY = ("means", "quats", "scales")


def differences(seed: int, kind: str | None = None) -> dict[str, str]:
    scene = random_scene(seed, kind)
    if is_ambiguous(scene):
        return {}
    return disagreements(results(scene, "cpu", torch.float32), results(scene, "reference", torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_gradients_of_each_kind_of_scene(kind):
    problems = {seed: found for seed in range(3) if (found := differences(seed, kind))}
    assert not problems


@pytest.mark.parametrize("first", range(0, len(SEEDS), 25))
def test_images_and_gradients_of_mixed_scenes(first):
    problems = {seed: found for seed in SEEDS[first : first + 25] if (found := differences(seed))}
    assert not problems


@pytest.mark.slow
def test_images_and_gradients_of_a_thousand_scenes():
    problems = {seed: found for seed in range(1000) if (found := differences(seed))}
    assert not problems


def test_most_scenes_are_compared():
    assert sum(not is_ambiguous(random_scene(seed)) for seed in range(60)) > 45


def as_stored(scene: dict) -> dict:
    """The same Gaussians with scales as logs and opacities as logits."""
    return scene | {"scales": scene["scales"].log(), "opacities": scene["opacities"].logit(eps=1e-6)}


def stored_rasterization(**scene):
    """What `rasterization_of_parameters` does, with colours of any kind."""
    backend = scene.pop("backend", None)
    return _render(RenderCall(**scene, raw=True), backend)


def raw_differences(seed: int) -> dict[str, str]:
    scene = random_scene(seed)
    if is_ambiguous(scene) or scene.get("covars") is not None:
        return {}
    scene = as_stored(scene)
    found = results(scene, "cpu", torch.float32, render=stored_rasterization)
    return disagreements(found, results(scene, "reference", torch.float64, render=stored_rasterization))


def test_logs_and_logits_are_activated_on_the_way():
    problems = {seed: found for seed in range(40) if (found := raw_differences(seed))}
    assert not problems


@pytest.mark.parametrize(
    ("scale", "logit"), [(-200.0, 0.0), (0.0, -200.0), (0.0, 200.0), (85.0, 0.0), (float("nan"), 0.0)]
)
def test_extreme_logs_and_logits_leave_finite_pictures_and_gradients(scale, logit):
    scene = many_gaussians(3)
    scene["scales"] = torch.full((3, 3), -1.0).index_fill_(0, torch.tensor([1]), scale).requires_grad_()
    scene["opacities"] = torch.tensor([[0.5], [logit], [0.1]]).requires_grad_()
    image, _, _ = stored_rasterization(**scene)
    image.sum().backward()
    assert image.isfinite().all()
    assert scene["scales"].grad.isfinite().all()
    assert scene["opacities"].grad.isfinite().all()


_OTHER_ISA = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from test_render_cpu import differences, raw_differences
from gsopt.native import library
problems = {seed: found for seed in range(40) if (found := differences(seed))}
problems |= {f"raw {seed}": found for seed in range(20) if (found := raw_differences(seed))}
print(json.dumps([library().gsopt_isa().decode(), problems]))
"""


@pytest.mark.parametrize("isa", available_isas())
def test_every_instruction_set_of_this_processor(isa):
    command = [sys.executable, "-c", _OTHER_ISA, os.path.dirname(__file__)]
    done = subprocess.run(
        command, env={**os.environ, "GSOPT_ISA": isa}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [isa, {}]


def test_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv("GSOPT_ISA", "mmx")
    library.cache_clear()
    with pytest.raises(InputError, match=r"GSOPT_ISA: expected one of .*, found 'mmx'"):
        library()
    library.cache_clear()


def test_bits_do_not_depend_on_the_number_of_threads():
    before, found = get_num_threads(), []
    scene = random_scene(3, "crowded")
    try:
        for threads in (1, 2, 3, 7):
            set_num_threads(threads)
            found.append(results(scene, "cpu", torch.float32))
    finally:
        set_num_threads(before)
    for other in found[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, found[0][name]), name


def many_gaussians(n: int = 3000) -> dict:
    """A cloud that fills many tiles with long lists: several batches a tile, several chunks of Gaussians."""
    generator = torch.Generator().manual_seed(0)
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    return {
        "means": torch.randn(n, 3, generator=generator),
        "quats": torch.randn(n, 4, generator=generator),
        "scales": torch.rand(n, 3, generator=generator) * 0.1 + 0.02,
        "opacities": torch.rand(n, generator=generator) * 0.3,
        "colors": torch.rand(n, 3, generator=generator),
        "viewmats": viewmat[None],
        "Ks": torch.tensor([[[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]]]),
        "width": 64,
        "height": 48,
        "packed": False,
        "render_mode": "RGB",
        "absgrad": True,
    }


def test_long_lists_of_splats():
    scene = many_gaussians()
    found = results(scene, "cpu", torch.float32)
    twin = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in scene.items()}
    expected = results(twin, "reference", torch.float64)
    # thousands of float32 thresholds are crossed here, one pixel of one splat each: compare as a whole
    assert relative_error(found["images"], expected["images"]) < 5e-3
    for name, wanted in expected.items():
        if name.startswith("grad"):
            error = (found[name] - wanted).norm() / wanted.norm()
            assert error < 2e-3, name


def test_bits_of_long_lists_with_any_number_of_threads():
    before, found = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            found.append(results(many_gaussians(), "cpu", torch.float32))
    finally:
        set_num_threads(before)
    for other in found[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, found[0][name]), name


@pytest.mark.parametrize("frozen", [GEOMETRY, ("opacities",), (*GEOMETRY, "opacities"), ("colors",)], ids=str)
def test_frozen_inputs_do_not_change_the_other_gradients(frozen):
    scene = random_scene(5, "crowded")
    if isinstance(scene["colors"], tuple):
        scene["colors"] = torch.cat(scene["colors"], -2)
    everything = results(scene, "cpu", torch.float32)
    some = results(scene, "cpu", torch.float32, frozen=frozen)
    assert set(everything) - set(some) == {f"grad of {name}" for name in frozen}
    for name, tensor in some.items():
        assert relative_error(tensor, everything[name]) < 1e-6, name


def test_gradient_of_means2d_is_left_out_when_nobody_asks(monkeypatch):
    ask = Watch.asks_gradient
    scene = many_gaussians(50) | {"absgrad": False}
    scene["colors"].requires_grad_()
    image, _, info = rasterization(**scene)
    assert info["means2d"].requires_grad
    asked = []
    monkeypatch.setattr(Watch, "asks_gradient", lambda self: asked.append(ask(self)) or asked[-1])
    image.sum().backward()
    image, _, info = rasterization(**scene)
    info["means2d"].retain_grad()
    image.sum().backward()
    assert asked == [False, True]
    assert info["means2d"].grad.abs().sum() > 0


def test_backward_twice_through_a_retained_graph():
    scene = many_gaussians(50)
    scene["means"].requires_grad_()
    image, _, _ = rasterization(**scene)
    first = torch.autograd.grad(image.sum(), scene["means"], retain_graph=True)[0]
    rasterization(**many_gaussians(80))  # another rendering in between must not touch this one's buffers
    second = torch.autograd.grad(image.sum(), scene["means"])[0]
    assert torch.equal(first, second)


def test_cameras_may_be_refilled_before_the_backward_pass():
    scene = many_gaussians(50)
    scene["means"].requires_grad_()
    expected = torch.autograd.grad(rasterization(**scene)[0].sum(), scene["means"])[0]
    image, _, _ = rasterization(**scene)
    scene["viewmats"][0, 2, 3] = 100.0
    assert torch.equal(torch.autograd.grad(image.sum(), scene["means"])[0], expected)


@pytest.mark.parametrize("render", [rasterization, stored_rasterization])
def test_opacities_alone_cost_no_gradient_of_places_and_shapes(render, monkeypatch):
    """Neither compositing nor projection works them out."""
    asked = {}
    kernel = library()
    backward = kernel.gsopt_rasterize_backward
    monkeypatch.setattr(
        kernel,
        "gsopt_rasterize_backward",
        lambda *arguments: asked.update(means2d=arguments[5], covars2d=arguments[7]) or backward(*arguments),
    )
    scene = many_gaussians(50) | {"absgrad": False}
    scene["opacities"].requires_grad_()
    render(**scene)[0].sum().backward()
    assert asked == {"means2d": None, "covars2d": None}
    assert scene["opacities"].grad.abs().sum() > 0


def test_more_tiles_than_can_be_counted():
    """Gaussians that all cover all 65,536 tiles: more than 2^32 pairs."""
    n = 66_000
    scene = many_gaussians(n) | {"absgrad": False, "width": 4096, "height": 4096}
    scene |= {
        "means": torch.zeros(n, 3),
        "scales": torch.full((n, 3), 1e3),
        "opacities": torch.full((n,), 0.9),
    }
    with torch.no_grad(), pytest.raises(MemoryError, match="4 billion pairs"):
        rasterization(**scene)


def test_an_image_too_wide_for_the_kernel_is_refused():
    with pytest.raises(ValueError, match="width: the cpu backend renders up to 1,048,560"):
        rasterization(**many_gaussians(5) | {"width": 2_000_000, "height": 1})


def test_frames_are_used_again():
    scene = many_gaussians(50)
    with torch.no_grad():
        rasterization(**scene)
        idle = len(Frame._idle)
        for _ in range(5):
            rasterization(**scene)
        assert len(Frame._idle) == idle


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"covars": torch.eye(3).expand(50, 3, 3)}, "covars"),
        ({"colors": torch.zeros(50, 25, 3), "sh_degree": 4}, "sh_degree"),
        ({"Ks": torch.eye(3)[None].requires_grad_()}, "Ks"),
        ({"colors": torch.zeros(50, 33)}, "absgrad"),
    ],
)
def test_what_the_kernel_lacks_is_named(change, argument):
    with pytest.raises(NotImplementedError, match=f"^{argument}: "):
        rasterization(**(many_gaussians(50) | change))


def test_tolerance_is_that_of_the_promise():
    assert TOLERANCE == 1e-4


def test_a_picture_may_be_changed_in_place():
    """It lies in memory that is used again, which autograd must not see."""
    call = dict(
        means=torch.tensor([[0.0, 0.0, 3.0]]).requires_grad_(),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        scales=torch.full((1, 3), 0.3),
        opacities=torch.tensor([0.8]),
        colors=torch.ones(1, 3),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]]),
        width=16,
        height=16,
    )
    image, _, _ = rasterization(**call)
    image.mul_(2).sum().backward()
    twice = call["means"].grad.clone()
    call["means"].grad = None
    (2 * rasterization(**call)[0]).sum().backward()
    assert torch.equal(call["means"].grad, twice)


def test_a_gradient_that_is_kept_is_that_of_retain_grad():
    grads = []
    for keep in (torch.Tensor.retain_grad, keep_gradient):
        scene = many_gaussians(50)
        scene["means"].requires_grad_()
        image, _, info = rasterization(**scene)
        keep(info["means2d"])
        image.sum().backward()
        grads.append(info["means2d"].grad)
    assert torch.equal(*grads)
    assert grads[0].abs().sum() > 0


def test_a_gradient_that_nobody_holds_any_more_is_not_kept():
    scene = many_gaussians(50)
    scene["means"].requires_grad_()
    image, _, info = rasterization(**scene)
    keep_gradient(info["means2d"])
    del info
    image.sum().backward()
    assert scene["means"].grad.abs().sum() > 0
