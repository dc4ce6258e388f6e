"""What `gsopt bench` measures, on tiny scenes: parts that add up, work that stays, exponents that fit."""

import json
import math

import pytest
import torch

from gsopt import native
from gsopt.bench import machine, measure, model, quality, studies, tables, variants
from gsopt.bench.gsplat_trainer import GsplatTimer, measure_gsplat
from gsopt.bench.marks import STAGES, TrainerMarks
from gsopt.bench.scenes import SIZES, parse_size, synthetic, trainer_of
from gsopt.errors import InputError

pytestmark = pytest.mark.usefixtures("small_probes")
TINY = "300@40x24"


@pytest.fixture(scope="module")
def case():
    trainer = trainer_of(parse_size(TINY), device="cpu", threads=1)
    return measure.measure_case(TINY, trainer, None, rounds=2, steps=3)


# ------------------------------------------------------------------------------------------------ the scenes


def test_sizes_are_what_the_documentation_says():
    shapes = {name: (size.gaussians, size.width, size.height) for name, size in SIZES.items()}
    assert shapes == {
        "small": (30_000, 400, 400),
        "medium": (100_000, 960, 540),
        "large": (1_000_000, 1600, 1066),
    }


def test_a_scene_is_the_same_whatever_was_drawn_before():
    first, scene = synthetic(parse_size(TINY))
    torch.rand(17)
    second, again = synthetic(parse_size(TINY))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a.image, b.image) for a, b in zip(scene.train, again.train, strict=True))
    assert scene.train[0].image.dtype == torch.uint8
    assert first.feature_rest.shape[1] == 15
    assert first.feature_rest.abs().amin(dim=(0, 2)).min() >= 0
    assert (first.feature_rest.std(dim=(0, 2)) > 0.01).all()  # every band is in use


@pytest.mark.slow
def test_small_has_as_much_to_do_as_the_kernel_was_tuned_on():
    trainer = trainer_of(SIZES["small"], device="cpu")
    work = measure.measure_case("small", trainer, None, 1, 1).work
    assert work["visible"] > 29_000
    assert 5e6 < work["forward_blocks"] * model.LANES < 9e6


def test_steps_change_nothing_but_the_moments():
    trainer = trainer_of(parse_size(TINY), device="cpu", threads=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    works = []
    with measure.Timer(trainer) as timer:
        for _ in range(2):  # every view twice
            works.append(sorted(str(timer.step().work) for _ in range(5)))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert works[0] == works[1]
    assert trainer.sh_degree == 3
    assert not trainer.optimizer._optimizer_step_pre_hooks


# ------------------------------------------------------------------------------------------------- measuring


def test_the_parts_of_a_step_are_all_of_it(case):
    names = [*native.stage_seconds(), measure.TORCH_OPTIMIZER, measure.GLUE]
    for step in case.steps:
        parts = step.parts
        assert [name for name in names if name in parts] == list(parts)
        assert sum(parts.values()) == pytest.approx(step.seconds)
        assert set(native.stage_seconds()) <= set(parts)
        assert 0 < step.optimizer < step.seconds
        assert min(parts.values()) >= 0
    assert 0 < case.least <= case.median
    assert len(case.steps) == 6
    assert case.work["visible"] <= 300
    assert case.work["pairs"] >= case.work["visible"]
    assert case.memory["frames"] > 0


def step(seconds: float, **stages: float) -> measure.Step:
    return measure.Step(seconds, stages, 0.25, {})


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        (
            {"forward": 0.5, "optimizer": 0.0},
            {"forward": 0.5, "optimizer": 0, "torch optimizer": 0.25, "glue": 0.25},
        ),
        ({"forward": 0.5, "optimizer": 0.125}, {"forward": 0.5, "optimizer": 0.125, "glue": 0.375}),
        ({}, {"torch optimizer": 0.25, "glue": 0.75}),  # on CUDA
    ],
)
def test_torch_optimizer_counts_where_the_kernel_has_none(stages, parts):
    assert step(1.0, **stages).parts == parts


def test_the_ratio_follows_the_drift_of_the_machine():
    rounds = [[step(1.0), step(3.0), step(2.0)], [step(4.0)] * 3, [step(20.0)] * 3]
    speeds = [machine.Speed(seconds, 1.0, None) for seconds in (1.0, 2.0, 10.0)]
    drifting = measure.Case("drift", 1, 1, 1, rounds, speeds)
    assert drifting.per_matmul == 2.0
    assert drifting.median == 4.0
    assert drifting.raster_of_peak is None
    assert measure.Case("alone", 1, 1, 1, rounds).per_matmul is None


def test_a_case_without_a_kernel_is_told_too():
    """As on CUDA: no stages, no work, no peak."""
    cuda = measure.Case("small", 1, 2, 3, [[step(0.5)]], [machine.Speed(1.0, 1e9, None)], {"peak": 5_000_000})
    text = "\n".join(tables.case_lines(cuda))
    assert "500.00 ms median" in text
    assert "2.0 a second" in text
    assert "peak on the card 5.0 MB" in text
    json.dumps(cuda.to_json(), allow_nan=False)


def test_steps_in_turn():
    trainer = trainer_of(parse_size(TINY), strategy="none", device="cpu", threads=1)
    order = []
    with measure.Timer(trainer) as timer:
        found = measure.repeat(
            {"a": timer, "b": timer}, 2, 3, prepare=order.append, between=lambda: order.append("-")
        )
    assert order == ["a", "b", "-", "a", "b", "-", "a", "b"]
    lengths = {name: [len(steps) for steps in rounds] for name, rounds in found.items()}
    assert lengths == {"a": [3, 3], "b": [3, 3]}


# --------------------------------------------------------------------------------------- the peak, the model


def test_the_peak_is_plausible_and_grows_with_the_threads():
    native.set_num_threads(1)
    one = max(native.fma_peak(0.02) for _ in range(3))
    assert 5e8 < one < 1e12  # a core does 1 to 64 multiply-adds a cycle, at 1 to 6 GHz
    native.set_num_threads(2)
    two = max(native.fma_peak(0.02) for _ in range(3))
    assert 0.4 * one < two < 2.5 * one  # two threads may have to share a core
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="seconds: expected more than 0"):
            native.fma_peak(seconds)


@pytest.mark.slow
def test_no_stage_does_more_than_the_peak():
    trainer = trainer_of(SIZES["small"], device="cpu")
    probes = machine.Probes(trainer.device, trainer.threads)
    found = measure.measure_case("small", trainer, probes, 3, 3)
    peak = native.fma_peak(0.1)
    assert found.raster_of_peak > 0.02
    for name, (_, flops) in found.costs.items():
        assert flops <= peak * found.parts[name] or not found.parts[name], name


def test_the_model_has_every_stage_of_the_kernel(case):
    assert set(native.stage_seconds()) <= set(model.COSTS)
    units = model.counts(10, 20, {"visible": 3, "pairs": 4, "forward_blocks": 5, "backward_blocks": 6})
    for name, cost in model.COSTS.items():
        moved, flops = model.cost_of(name, units)
        assert moved > 0, name
        assert flops >= 0, name
        assert set(cost.bytes) | set(cost.flops) <= set(units), name
    assert model.cost_of("tea", units) is None
    assert model.cost_of("forward", units) == (4 * 74 + 20 * 24, 16 * 5 * 29)
    text = tables.case_lines(measure.Case("x", 1, 2, 3, [[measure.Step(1.0, {"tea": 0.5}, 0.0, case.work)]]))
    assert [line.split()[-6:] for line in text if line.startswith("  tea")] == [["-"] * 6]


# ------------------------------------------------------------------------------------------------ the tables


@pytest.mark.parametrize(
    ("power", "noise", "expected"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (1.5, 0.0, 1.5), (-0.5, 0.0, -0.5), (1.0, 0.02, 1.0)],
)
def test_the_exponent_of_a_power_law(power, noise, expected):
    amounts = [10, 100, 1_000, 10_000]
    values = [3e-3 * amount**power * (1 + noise * (-1) ** index) for index, amount in enumerate(amounts)]
    assert studies.exponent(amounts, values) == pytest.approx(expected, abs=1e-9 + noise)


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, -1.0], [1.0]])
def test_no_exponent_where_there_is_none(values):
    assert studies.exponent([1, 2][: len(values)], values) is None


def test_growth_keeps_what_it_says(monkeypatch):
    monkeypatch.setattr(studies, "GROWING_GAUSSIANS", (200, 800))
    monkeypatch.setattr(studies, "GROWING_SIDES", (16, 32))
    monkeypatch.setattr(studies, "FIXED_SIDE", 48)
    monkeypatch.setattr(studies, "FIXED_GAUSSIANS", 250)
    by_n, by_pixels = studies.growing_gaussians(1), studies.growing_pixels(1)
    assert by_n.amounts == [200, 800]
    assert by_pixels.amounts == [256, 1024]
    assert {case.width for case in by_n.cases} == {48}
    assert {case.gaussians for case in by_pixels.cases} == {250}
    for growth in (by_n, by_pixels):
        assert growth.bytes_each() > 4
        exponents = growth.exponents()
        assert set(exponents) == {"step", *growth.cases[0].parts}
        assert exponents["step"] is not None
        json.dumps(growth.to_json(), allow_nan=False)
        assert "exponent" in "\n".join(tables.growth_lines(growth))


def test_covering_keeps_the_coverage_and_filling_the_density():
    assert studies.covering(120_000) == pytest.approx(studies.covering(30_000) / 2)
    assert studies.filling(240_000) == pytest.approx(studies.filling(30_000) / 2)


def test_memory_of_a_step_is_the_kernels_and_the_tensors():
    trainer = trainer_of(parse_size("5000@64x64"), device="cpu", threads=1)
    with measure.Timer(trainer) as timer:
        native.Frame.free_idle()
        timer.warm_up()
        found = studies.step_bytes(timer)
    frames = native.Frame.idle_bytes()
    floats = 2 + 3 + 1 + 2 + 3  # at least means2d, covariances, depths, radii, colours
    assert frames + 5000 * 4 * floats < found < frames + 5000 * 4 * 200


@pytest.mark.parametrize("chosen", [slice(-1, None), pytest.param(slice(None), marks=pytest.mark.slow)])
def test_variants_run_in_processes_of_their_own(monkeypatch, chosen):
    isas = native.available_isas()[chosen]
    monkeypatch.setattr(native, "available_isas", lambda: isas)
    found = variants.variants(TINY, 1, 1, 1)
    assert list(found) == isas
    for isa, result in found.items():
        assert result["isa"] == isa
        assert result["fma_flops_per_second"] > 0
        assert set(native.stage_seconds()) <= set(result["stage_seconds"])
    assert found["baseline"]["work"]["visible"] == pytest.approx(
        next(iter(found.values()))["work"]["visible"], rel=0.01
    )


def test_a_variant_that_fails_is_an_input_error(monkeypatch):
    monkeypatch.setattr(native, "available_isas", lambda: ["tea"])
    with pytest.raises(InputError, match=r"--isas: the variant tea failed with exit code 1 \(.*GSOPT_ISA"):
        variants.variants(TINY, 1, 1, 1)


@pytest.mark.parametrize(
    ("psnr", "expected"),
    [
        (20.0, {"iteration": 10, "seconds": 1.0}),
        (22.5, {"iteration": 20, "seconds": 2.5}),  # the first, though it falls again
        (30.0, {"iteration": None, "seconds": None}),
    ],
)
def test_the_first_test_that_reaches_a_quality(psnr, expected):
    history = [
        {"iteration": 10, "seconds": 1.0, "psnr": 20.0},
        {"iteration": 20, "seconds": 2.5, "psnr": 23.0},
        {"iteration": 30, "seconds": 4.0, "psnr": 22.0},
    ]
    assert quality.first_reaching(history, psnr) == expected


# ------------------------------------------------------------------------- as on CUDA: stages by marks


def test_marks_of_a_step_are_all_of_it_but_a_rest(monkeypatch):
    """On the plain path of another device, by the CPU's clock; events take its place on CUDA."""
    trainer = trainer_of(parse_size("40@24x16"), device="cpu", threads=1, backend="reference")
    own = set(vars(trainer.strategy)) | set(vars(trainer.joint)) | set(vars(trainer.feed))
    timer = measure.Timer(trainer)
    timer.on_cpu, timer.marks = False, TrainerMarks(trainer)
    with timer:
        timer.warm_up(2)
        steps = [timer.step() for _ in range(3)]
    for step in steps:
        assert list(step.stages) == list(STAGES)
        assert 0 < sum(step.stages.values()) <= step.seconds
        assert min(step.stages[name] for name in ("render", "loss", "backward", "optimizer")) > 0
        assert step.parts.keys() == {*STAGES, measure.GLUE}
    assert set(vars(trainer.strategy)) | set(vars(trainer.joint)) | set(vars(trainer.feed)) == own
    case = measure.Case("small", 40, 24, 16, [steps], [], {"peak": 1})
    assert "  backward" in "\n".join(tables.case_lines(case))


def test_a_step_with_gsplats_settings_has_the_same_to_do():
    """Its loss, gradients and statistics are those of our own first step over the same view."""
    size = parse_size("200@40x24")
    timer, trainer = GsplatTimer(size, torch.device("cpu")), trainer_of(size, device="cpu", threads=1)
    trainer.order.queue = list(timer.order.queue) or [0]
    timer.order.queue = list(trainer.order.queue)
    loss = timer.train_step()
    assert loss == pytest.approx(trainer.train_step().loss.item(), rel=1e-5)
    ours, theirs = trainer.strategy.state_dict(), timer.statistics.rows
    torch.testing.assert_close(theirs["count"], ours["count"])
    torch.testing.assert_close(theirs["grad2d"], ours["grad2d"], rtol=1e-3, atol=1e-7)
    for optimizer, (name, parameter) in zip(timer.optimizers, timer.model.named_parameters(), strict=True):
        moments = trainer.optimizer.state[trainer.model.get_parameter(name)]
        torch.testing.assert_close(
            optimizer.state[parameter]["exp_avg"], moments["exp_avg"], rtol=1e-3, atol=1e-8
        )
    found = measure_gsplat(size, torch.device("cpu"), rounds=2, steps=2)
    assert len(found.steps) == 4
    assert found.parts["render"] > 0
    json.dumps(found.to_json(), allow_nan=False)
