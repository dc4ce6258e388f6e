"""A step over several views is a step by the mean of their losses, however they are dealt out."""

from dataclasses import replace

import pytest
import scenes
import torch

from gsopt import InputError, build_groups, rasterization
from gsopt.batches import average_gradients, mean_terms
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.datasets.pyramid import reduce_view
from gsopt.evaluation import render_view
from gsopt.group_options import GroupOptions, Groups
from gsopt.losses import photometric_reference
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.native import workspace
from gsopt.recorder import Recorder
from gsopt.runtime import ViewOrder
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer

DENSIFY = DefaultStrategy(
    refine_start_iter=2, refine_stop_iter=40, refine_every=3, reset_every=8, grow_grad2d=1e-5, prune_opa=0.02
)
WATCHING = DefaultStrategy(refine_start_iter=1_000, refine_stop_iter=1_000, reset_every=1_000)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("batches") / "ball", points=60))


@pytest.fixture(scope="module")
def mixed(ball):
    """The same with every other photo at half of its size."""
    train = [reduce_view(view, 2) if index % 2 else view for index, view in enumerate(ball.train)]
    assert {view.camera.width for view in train} == {12, 24}
    return replace(ball, train=train)


@pytest.fixture
def config(ball, tmp_path):
    return TrainConfig(
        scene=ball.path,
        output=tmp_path / "run",
        iterations=20,
        test_iterations=(),
        save_iterations=(),
        device="cpu",
        quiet=True,
        strategy="default",
        densify=DENSIFY,
    )


def bits(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Values and moments of a trainer."""
    found = {name: getattr(trainer.model, name).detach().clone() for name in ATTRIBUTES}
    for group in trainer.optimizer.param_groups:
        for key, value in trainer.optimizer.state[group["params"][0]].items():
            found[f"{group['name']}.{key}"] = value.clone()
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stepped(config: TrainConfig, scene, steps: int = 1, **changes) -> Trainer:
    trainer = Trainer(replace(config, **changes), scene=scene)
    for _ in range(steps):
        trainer.train_step()
    return trainer


def by_hand(config: TrainConfig, scene, steps: int, views: int) -> GaussianModel:
    """The same training in plain PyTorch: one graph of all views of a step, one mean, one backward pass."""
    model = config.first_model(scene)
    specs = config.resolved("cpu").specs(scene.extent)
    optimizer = torch.optim.SGD(build_groups(model, specs), lr=0.0)
    order = ViewOrder(len(scene.train), config.seed)
    background = config.plain_background(scene)
    for _ in range(steps):
        losses = []
        for view in [scene.train[order.next()] for _ in range(views)]:
            image, _ = render_view(model, view.camera, background, sh_degree=0, backend="reference")
            losses.append(photometric_reference(image, view.rgb(background), config.ssim_weight)[0])
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# ---------------------------------------------------------------------------------------------- the update

DEALS = [(4, 1), (1, 4), (2, 2)]  # --accumulate, --batch-size


@pytest.mark.parametrize("which", ["ball", "mixed"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_update_is_that_of_the_mean_loss(config, request, which, backend):
    scene = request.getfixturevalue(which)
    rates = Groups(**{name: GroupOptions(lr=5.0, schedule="constant") for name in ATTRIBUTES})
    rates.rotation.lr = 500.0  # it starts round, so that it hardly matters
    plain = replace(config, optimizer="sgd", groups=rates, strategy="none", backend=backend)
    start = plain.first_model(scene)
    expected = by_hand(plain, scene, steps=2, views=4)
    found = [stepped(plain, scene, 2, accumulate=k, batch_size=b).model for k, b in DEALS]
    for name in ATTRIBUTES:
        before = getattr(start, name).detach()
        update = getattr(expected, name).detach() - before
        assert (update.norm() > 1e-3) == (name != "feature_rest"), name  # its bands come into play later
        for model in found:
            change = getattr(model, name).detach() - before
            assert (change - update).norm() <= 1e-4 * update.norm(), name
    single = stepped(plain, scene, 2).model
    assert not torch.allclose(single.feature_dc, expected.feature_dc, atol=1e-4)  # it is not just any views


@pytest.mark.parametrize("background", ["auto", "random"])
def test_how_views_are_dealt_out_makes_no_difference(config, ball, background):
    """Bit for bit, through densification."""
    plain = replace(config, background=background)
    first, *others = [stepped(plain, ball, 12, accumulate=k, batch_size=b) for k, b in DEALS]
    assert first.model.num_gaussians != len(ball.points.xyz)
    assert all(same(bits(first), bits(other)) for other in others)
    assert not same(bits(first), bits(stepped(plain, ball, 12)))


def test_gradients_add_up_in_the_memory_of_the_kernel(config, ball):
    """Sums over six views, in memory that the kernel reuses, are the sums of gradients kept apart."""
    together, apart = (Trainer(config, scene=ball) for _ in range(2))
    workspace.clear()
    sums: dict[str, torch.Tensor] = {}
    for _ in range(6):
        together._backward(*together._next_views()[0])
        apart._backward(*apart._next_views()[0])
        for name, parameter in apart.model.named_parameters():
            gradient = parameter.grad.clone()
            sums[name] = sums[name] + gradient if name in sums else gradient
            parameter.grad = None
    for name, parameter in together.model.named_parameters():
        assert torch.equal(parameter.grad, sums[name]), name
    assert sums["xyz"].abs().max() > 0


@pytest.mark.parametrize("how", ["freeze", "exclude"])
def test_what_is_frozen_has_no_gradient(config, ball, how):
    trainer = Trainer(replace(config, **{how: ("xyz", "opacity")}, accumulate=3), scene=ball)
    start = bits(trainer)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append({n for n, p in trainer.model.named_parameters() if p.grad is not None})
    )
    trainer.train_step()
    assert seen == [set(ATTRIBUTES) - {"xyz", "opacity"}]
    assert all(torch.equal(start[name], getattr(trainer.model, name)) for name in ("xyz", "opacity"))


def test_gradients_are_averaged_in_place():
    a, b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    a.grad = gradient = torch.tensor([3.0, 6.0, -9.0])
    average_gradients(optimizer, 1)
    assert gradient.tolist() == [3, 6, -9]
    average_gradients(optimizer, 3)
    assert a.grad is gradient
    assert gradient.tolist() == [1, 2, -3]
    assert b.grad is None


def test_reports_are_means_over_the_views(config, ball):
    trainer = Trainer(replace(config, batch_size=3, strategy="none"), scene=ball)
    each = []
    backward = trainer._backward

    def watched(*of_view):
        each.append(backward(*of_view))
        return each[-1]

    trainer._backward = watched
    result = trainer.train_step()
    assert len(each) == 3
    assert result.loss.item() == pytest.approx(sum(terms["total"].item() for terms, *_ in each) / 3)
    assert result.terms["l1"].item() == pytest.approx(sum(terms["l1"].item() for terms, *_ in each) / 3)
    assert "total" not in result.terms
    assert result.image is each[-1][1]
    assert mean_terms([{"a": torch.tensor(1.0)}, {"a": torch.tensor(4.0)}]) == {"a": 2.5}


# --------------------------------------------------------------------------------- statistics and counting


@pytest.mark.parametrize("which", ["ball", "mixed"])
def test_statistics_count_every_view_as_if_it_were_alone(config, request, which):
    """And not a fraction of it: the mean over the views of a step leaves no trace in them."""
    scene = request.getfixturevalue(which)
    watching = replace(config, densify=WATCHING)
    dealt = [stepped(watching, scene, accumulate=k, batch_size=b).strategy.state_dict() for k, b in DEALS]
    alone, model = WATCHING.resolve(1_000), config.first_model(scene)
    order, background = ViewOrder(len(scene.train), config.seed), config.plain_background(scene)
    for view in [scene.train[order.next()] for _ in range(4)]:
        image, info = render_view(model, view.camera, background, sh_degree=0, backend="reference")
        info["means2d"].retain_grad()
        photometric_reference(image, view.rgb(background))[0].backward()
        alone.observe(model, info, 1)
    expected = alone.state_dict()
    assert expected["count"].max() == 4
    assert expected["grad2d"].max() > 1e-4
    for state in dealt:
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-6)


def test_statistics_are_those_of_one_rendering_of_all_cameras(config, ball):
    """With gsplat's convention for several cameras in one call: the loss is a mean over them."""
    found = stepped(replace(config, densify=WATCHING), ball, accumulate=4).strategy.state_dict()
    together, model = WATCHING.resolve(1_000), config.first_model(ball)
    order, background = ViewOrder(len(ball.train), config.seed), config.plain_background(ball)
    views = [ball.train[order.next()] for _ in range(4)]
    cameras = [view.camera for view in views]
    images, _, info = rasterization(
        *(model.means, model.quats, model.scales, model.opacities, model.sh),
        torch.stack([camera.viewmat for camera in cameras]),
        torch.stack([camera.K for camera in cameras]),
        *(cameras[0].width, cameras[0].height),
        sh_degree=0,
        backgrounds=background.expand(4, 3),
        packed=False,
    )
    info["means2d"].retain_grad()
    pairs = zip(images, views, strict=True)
    losses = [photometric_reference(image, view.rgb(background))[0] for image, view in pairs]
    torch.stack(losses).mean().backward()
    together.observe(model, info, 1)
    for name, value in together.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


def test_steps_are_counted_and_not_views(config, ball):
    """By --iterations, harmonics, resolution, schedules and the strategy alike."""
    calls = []

    class Watching(DefaultStrategy):
        def observe(self, model, info, step):
            calls.append(("observe", step))
            super().observe(model, info, step)

        def refine(self, model, optimizer, step, generator):
            calls.append(("refine", step))
            return super().refine(model, optimizer, step, generator)

    settings = replace(config, iterations=3, accumulate=2, batch_size=2, sh_degree_every=1)
    trainer = Trainer(settings, scene=ball, strategy=Watching(**vars_of(WATCHING)))
    drawn = []
    draw = trainer.order.next
    trainer.order.next = lambda: drawn.append(draw()) or drawn[-1]
    degrees = []
    for _ in range(3):
        trainer.train_step()
        degrees.append(trainer.sh_degree)
    assert calls == [call for s in (1, 2, 3) for call in [("observe", s)] * 4 + [("refine", s)]]
    assert degrees == [0, 1, 2]
    assert len(drawn) == 12
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))  # each view once before any comes again
    assert trainer.scheduler.last_epoch == 3
    assert trainer.optimizer.state[trainer.model.xyz]["step"] == 3


def vars_of(strategy: DefaultStrategy) -> dict:
    return {name: value for name, value in vars(strategy).items() if not name.startswith("_")}


def test_views_have_backgrounds_of_their_own(config, ball):
    trainer = Trainer(replace(config, background="random", batch_size=3), scene=ball)
    backgrounds = []
    draw = trainer._view_background
    trainer._view_background = lambda: backgrounds.append(draw()) or backgrounds[-1]
    trainer.train_step()
    assert len({tuple(background.tolist()) for background in backgrounds}) == 3


# ----------------------------------------------------------------------------------- the same bits, resumed

SEVERAL = dict(accumulate=2, batch_size=2, background="random", scale_rates=True)  # of 6 views: passes split


@pytest.mark.parametrize("at", [1, 8, 13])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(config, mixed, tmp_path, at):
    straight = Trainer(replace(config, output=tmp_path / "straight", **SEVERAL), scene=mixed)
    straight.train()
    stopped = Trainer(replace(config, **SEVERAL), scene=mixed)
    Recorder(stopped).begin()
    while stopped.step < at:
        stopped.train_step()
    stopped.save()
    stopped.monitor.close()
    resumed = Trainer(TrainConfig.of_run(config.output), scene=mixed)
    assert (resumed.step, resumed.config.views_per_step) == (at, 4)
    resumed.train()
    assert same(bits(straight), bits(resumed))


def test_the_same_bits_with_any_number_of_threads(config, mixed):
    one, two = (stepped(config, mixed, 12, threads=threads, **SEVERAL) for threads in (1, 2))
    assert same(bits(one), bits(two))


def test_the_number_of_views_may_change_on_resume(config, ball):
    Trainer(replace(config, iterations=3), scene=ball).train()
    changed = replace(TrainConfig.of_run(config.output), iterations=5, accumulate=4, scale_rates=True)
    trainer = Trainer(changed, scene=ball)
    assert trainer.optimizer.param_groups[0]["betas"] == pytest.approx((0.9**4, 0.999**4))
    assert trainer.train()["iterations"] == 5


@pytest.mark.parametrize("name", ["accumulate", "batch_size"])
def test_no_views_are_refused(config, ball, name):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} 0: expected 1 or more"):
        Trainer(replace(config, **{name: 0}), scene=ball)


def test_scale_rates(config, ball):
    trainer = Trainer(replace(config, accumulate=2, batch_size=8, scale_rates=True), scene=ball)
    single = Trainer(config, scene=ball)
    for scaled, plain in zip(trainer.optimizer.param_groups, single.optimizer.param_groups, strict=True):
        assert scaled["lr"] == pytest.approx(4 * plain["lr"])
        assert scaled["betas"] == pytest.approx((0.9**16, 0.999**16))
    trainer.train_step()
    [xyz] = [group for group in trainer.optimizer.param_groups if group["name"] == "xyz"]
    assert xyz["lr"] == pytest.approx(4 * single.specs["xyz"].lr * 0.01 ** (1 / 20))  # as its schedule says
