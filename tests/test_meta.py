"""Nothing above the rasterizer knows its device: steps on the meta device, and refinement beside it.

What a step waits for is counted here, too: each wait is a gap in the work of a CUDA device.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from meta_device import Waits, meta_trainer
from optimizing import gaussian_groups
from refining import STEPS, give_gradients, random_info, random_model
from torch import Tensor

import gsopt
from gsopt.bench.scenes import parse_size, synthetic
from gsopt.config import TrainConfig
from gsopt.datasets.pyramid import ViewPyramid
from gsopt.feed import PhotoFeed
from gsopt.optim import build_optimizer
from gsopt.runtime import ViewOrder
from gsopt.strategy import BudgetStrategy, DefaultStrategy, MCMCStrategy, NoStrategy
from gsopt.surgery import append, keep, overwrite
from gsopt.trainer import Trainer

OPTIMIZERS = (
    *("adam", "adamw", "nadam", "radam", "adamax", "adadelta", "adagrad"),
    *("rmsprop", "rprop", "asgd", "sgd", "visible_adam"),
)
ONE_LOOK = Counter({"guards.py": 1})  # whether loss and gradients are finite, before anything changes


def steps(trainer: Trainer, count: int = 3) -> list[Counter[str]]:
    """What each of some steps waits for."""
    found = []
    for _ in range(count):
        with Waits() as waits:
            result = trainer.train_step()
        assert result.loss.device.type == result.image.device.type == "meta"
        found.append(waits.by_file)
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_every_optimizer(optimizer, monkeypatch):
    trainer = meta_trainer(monkeypatch, optimizer=optimizer)
    steps(trainer)
    for parameter in trainer.model.parameters():
        assert parameter.device.type == "meta"
        rows = [value for value in trainer.optimizer.state[parameter].values() if isinstance(value, Tensor)]
        assert all(value.device.type == "meta" for value in rows if value.dim())


SETTINGS = {
    "as it comes": {},
    "without densification": {"strategy": "none"},
    "budget": {"strategy": "budget", "max_gaussians": 60},
    "absolute gradients": {"densify": DefaultStrategy(absgrad=True)},
    "screen sizes": {"densify": DefaultStrategy(refine_scale2d_stop_iter=500)},
    "antialiased": {"antialiased": True},
    "frozen": {"freeze": ("xyz", "scaling", "rotation", "opacity@0:2")},
    "excluded": {"exclude": ("xyz", "opacity")},
    "locked": {"lock": True},
    "transparent photos": {"alpha": True},
    "random background": {"alpha": True, "background": "random"},
    "poses": {"optimize_poses": True},
    "exposure": {"exposure": True},
    "sgd": {"optimizer": "sgd", "optimizer_args": ("momentum=0.9",)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_waits_once(settings, monkeypatch):
    trainer = meta_trainer(monkeypatch, **settings)
    steps(trainer, 2)  # what is copied to the device once
    assert steps(trainer, 3) == [ONE_LOOK] * 3


def test_a_step_of_several_views_waits_once_a_view(monkeypatch):
    trainer = meta_trainer(monkeypatch, accumulate=3)
    steps(trainer, 2)
    assert steps(trainer, 2) == [Counter({"guards.py": 3})] * 2


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"strategy": "mcmc"}, [{}, {"noise.py": 1}, {}, {}, {}, {"noise.py": 1}]),  # which its noise moves
        ({"optimizer": "visible_adam"}, [{"visible.py": 6}] * 2),  # which rows each parameter updates
    ],
    ids=str,
)
def test_what_waits_more_often(settings, more, monkeypatch):
    """Told in docs/cuda.md."""
    trainer = meta_trainer(monkeypatch, **settings)
    steps(trainer, 2)
    assert steps(trainer, len(more)) == [ONE_LOOK + Counter(each) for each in more]


def test_waits_are_seen():
    """The counter itself: each kind of wait, and what is none."""
    value, mask = torch.ones(3, device="meta"), torch.ones(3, dtype=torch.bool, device="meta")
    for wait in (
        lambda: value.sum().item(),
        lambda: bool(mask.any()),
        lambda: mask.nonzero(),
        lambda: torch.ones(3).to("meta"),
        lambda: torch.ones(3, device="meta").copy_(torch.ones(3)),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
    ):
        with Waits() as waits:
            wait()
        assert waits.by_file.total() == 1
    with Waits() as waits:
        torch.ones(3).to("meta", non_blocking=True)
        torch.where(mask, value, 0).add_(1.5)
        torch.ones(3).sum().item()
    assert not waits.by_file


# ---- photos on their way


def test_the_next_photo_is_sent_ahead(monkeypatch):
    trainer = meta_trainer(monkeypatch)
    feed, begun, number = trainer.feed, [], trainer.order.next()
    monkeypatch.setattr(feed._uploader, "begin", lambda image: begun.append(image))
    view, photo = feed.take(number, 1, trainer.background)
    assert photo.device.type == view.camera.K.device.type == view.camera.viewmat.device.type == "meta"
    assert [id(image) for image in begun] == [id(trainer.scene.train[trainer.order.following].image)]
    assert feed.take(number, 1, trainer.background)[0].camera is view.camera  # sent once


def test_a_photo_that_was_sent_is_not_sent_again(monkeypatch):
    feed = meta_trainer(monkeypatch).feed
    image = feed.views.view(0, 1).image
    feed._uploader.begin(image)
    begun = feed._uploader._begun[1]
    assert feed._uploader.take(image) is begun
    assert feed._uploader.take(image) is not begun
    feed._uploader.begin(image)
    other = feed._uploader.take(feed.views.view(1, 1).image)  # a step was left out
    assert other is not begun
    assert feed._uploader._begun is None


def test_on_the_cpu_photos_and_cameras_stay_where_they_are():
    _, scene = synthetic(parse_size("5@24x16"))
    feed = PhotoFeed(ViewPyramid(scene.train), ViewOrder(len(scene.train), seed=0), torch.device("cpu"))
    view, photo = feed.take(1, 1, torch.zeros(3))
    assert view is scene.train[1]
    assert photo is scene.train[1].image


# ---- refinement, where a tensor made without its device is on another one


@pytest.fixture
def elsewhere():
    """Tensors made without naming a device are on the meta device."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


STRATEGIES = {
    "default": DefaultStrategy(**STEPS, pause_refine_after_reset=0, refine_scale2d_stop_iter=40),
    "absgrad": DefaultStrategy(
        **STEPS, pause_refine_after_reset=0, refine_scale2d_stop_iter=0, absgrad=True, revised_opacity=True
    ),
    "limit": DefaultStrategy(
        **STEPS, pause_refine_after_reset=0, refine_scale2d_stop_iter=0, max_gaussians=210
    ),
    "mcmc": MCMCStrategy(refine_start_iter=4, refine_stop_iter=40, refine_every=3, max_gaussians=230),
    "budget": BudgetStrategy(refine_start_iter=4, refine_stop_iter=40, refine_every=3, max_gaussians=300),
    "none": NoStrategy(),
}


@pytest.mark.parametrize("frozen", [(), ("xyz",), ("opacity", "scaling")], ids=str)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_refinement_makes_its_tensors_on_the_devices_of_the_model(name, frozen, elsewhere):
    generator = torch.Generator().manual_seed(0)
    model = random_model(200, generator)
    if name == "limit":
        gsopt.lock(model, torch.arange(200) < 20)
    for attribute in frozen:
        model.get_parameter(attribute).requires_grad_(False)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    strategy, changed = STRATEGIES[name], 0
    for step in range(1, 16):
        give_gradients(model, seed=step)
        info = random_info(len(model.xyz), 2, generator)
        elsewhere()
        strategy.regularization(model)
        strategy.observe(model, info, step)
        optimizer.step()
        changed += sum(strategy.refine(model, optimizer, step, generator).counts.values())
        saved = strategy.state_dict()
        strategy.load_state_dict(saved)
        torch.set_default_device(None)
    for parameter in model.parameters():
        entries = optimizer.state.get(parameter, {}).values()
        assert {tensor.device.type for tensor in (parameter, *entries)} == {"cpu"}
    assert (changed > 0) == (name != "none")


def test_surgery_makes_its_tensors_on_the_devices_of_the_model(elsewhere):
    generator = torch.Generator().manual_seed(0)
    model = random_model(20, generator)
    optimizer = build_optimizer("adam", gaussian_groups(model))
    names = [name for name, _ in model.named_parameters()]
    give_gradients(model, seed=0)
    optimizer.step()
    mask, rows = torch.arange(20) % 3 > 0, torch.tensor([1, 4])
    elsewhere()
    keep(model, names, optimizer, mask)
    append(model, names, optimizer, {name: p.detach()[rows] for name, p in model.named_parameters()})
    overwrite(model, optimizer, {"opacity": model.opacity.detach()[rows]}, rows)
    assert model.num_gaussians == 13 + 2
    for parameter in model.parameters():
        moments = [value for value in optimizer.state[parameter].values() if value.dim()]
        assert all(tensor.device.type == "cpu" for tensor in (parameter, *moments))
        assert all(len(tensor) == 15 for tensor in moments)


@pytest.mark.parametrize("strategy", ["default", "mcmc", "budget"])
def test_a_training_on_the_cpu_makes_no_tensor_elsewhere(strategy, elsewhere, tmp_path):
    """The whole trainer, its fast path included, and resumed."""
    _, scene = synthetic(parse_size("60@24x16"))
    elsewhere()
    for settings in ({}, {"optimize_poses": True, "exposure": True}):
        config = TrainConfig(
            scene=scene.path,
            output=tmp_path / str(len(settings)),
            iterations=30,
            schedule_iterations=1500,
            strategy=strategy,
            max_gaussians=100,
            device="cpu",
            quiet=True,
            checkpoint_every=20,
            **settings,
        )
        model, _ = synthetic(parse_size("60@24x16"))
        Trainer(config, scene=scene, model=model).train()
        trainer = Trainer(replace(config, resume=config.output, iterations=40), scene=scene)
        trainer.train()
        assert trainer.step == 40
        assert {parameter.device.type for parameter in trainer.model.parameters()} == {"cpu"}
