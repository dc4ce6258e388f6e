"""A view in one call of the kernel: the bits that autograd gives, and nothing held is ever written to."""

from dataclasses import replace

import pytest
import scenes
import torch

from gsopt.bench.scenes import parse_size, synthetic
from gsopt.config import TrainConfig
from gsopt.datasets import load_scene
from gsopt.direct import DirectView
from gsopt.evaluation import render_view
from gsopt.losses import photometric
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.render.info import keep_gradient
from gsopt.strategy import DefaultStrategy
from gsopt.trainer import Trainer

CASES = {  # frozen attributes, options of the view, options of the rasterizer
    "nothing frozen": ((), {}, {}),
    "absolute gradients": ((), {}, {"absgrad": True}),
    "antialiased": ((), {}, {"rasterize_mode": "antialiased"}),
    "degree 0": ((), {"sh_degree": 0}, {}),
    "degree 1 of 3": ((), {"sh_degree": 1}, {}),
    "geometry frozen": (("xyz", "scaling", "rotation"), {}, {}),
    "geometry frozen, no statistics": (("xyz", "scaling", "rotation"), {"grad2d": False}, {}),
    "geometry frozen, antialiased": (("xyz", "scaling", "rotation"), {}, {"rasterize_mode": "antialiased"}),
    "colours frozen": (("feature_dc", "feature_rest"), {}, {}),
    "only opacity": (("xyz", "scaling", "rotation", "feature_dc", "feature_rest"), {}, {}),
    "only xyz": (("scaling", "rotation", "opacity", "feature_dc", "feature_rest"), {}, {}),
    "only higher bands": (("xyz", "scaling", "rotation", "opacity", "feature_dc"), {}, {}),
    "all frozen": (ATTRIBUTES, {}, {}),
}


@pytest.fixture(scope="module")
def ball():
    model, scene = synthetic(parse_size("700@70x52"))
    return model.state_dict(), [view.camera for view in scene.train], [view.image for view in scene.train]


@pytest.fixture
def model(ball):
    model = GaussianModel()
    model.load_state_dict(ball[0], take_sh_degree=True)
    return model


BACKGROUND = torch.tensor([0.2, 0.5, 0.9])


def through_autograd(model, camera, photo, sh_degree=3, grad2d=True, mask=None, **options):
    """Loss, terms, image, info; gradients are left in the model."""
    image, info = render_view(model, camera, BACKGROUND, sh_degree=sh_degree, **options)
    if grad2d:
        keep_gradient(info["means2d"])
    loss, terms = photometric(image, photo, 0.2, mask)
    loss.backward()
    return loss, terms, image, info


def gradients(model):
    found = {name: model.get_parameter(name).grad for name in ATTRIBUTES}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def same(a, b) -> bool:
    return a is b is None or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize(("frozen", "view", "options"), CASES.values(), ids=CASES)
def test_bits_of_autograd(ball, model, frozen, view, options, kind):
    _, cameras, photos = ball
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    direct = DirectView(model, **options)
    for camera, photo in zip(cameras, photos, strict=True):  # the second time with what is kept of the first
        photo = photo if kind == "uint8" else photo / 255
        expected = through_autograd(model, camera, photo, **view, **options)
        wanted = gradients(model)
        found = direct.backward(camera, BACKGROUND, photo, 0.2, **({"sh_degree": 3, "grad2d": True} | view))
        assert found.finite
        assert same(found.loss, expected[0].detach())
        assert all(same(found.terms[name], expected[1][name]) for name in ("l1", "ssim"))
        assert same(found.image, expected[2].detach())
        assert {name: same(g, wanted[name]) for name, g in gradients(model).items()} == dict.fromkeys(
            wanted, True
        )
        mine, theirs = found.info, expected[3]
        if view.get("grad2d", True):
            assert same(mine["means2d"].grad, theirs["means2d"].grad)
        if options.get("absgrad"):
            assert same(mine["means2d"].absgrad, theirs["means2d"].absgrad)
        assert set(mine) == set(theirs)
        for key, value in theirs.items():
            assert same(mine[key], value.detach()) if isinstance(value, torch.Tensor) else mine[key] == value


def test_masks_have_the_bits_of_autograd_and_are_forgotten(ball, model):
    """Some views are masked and others, after them, are not."""
    _, cameras, photos = ball
    direct = DirectView(model)
    for camera, photo in zip(cameras, photos, strict=True):
        mask = torch.rand(photo.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.6
        for used in (mask, None):
            expected = through_autograd(model, camera, photo, mask=used)
            wanted = gradients(model)
            found = direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True, mask=used)
            assert same(found.loss, expected[0].detach())
            assert all(same(g, wanted[name]) for name, g in gradients(model).items())
            assert same(found.info["means2d"].grad, expected[3]["means2d"].grad)


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 3, dtype=torch.bool), torch.ones(52, 70)], ids=["size", "kind"]
)
def test_a_mask_that_does_not_fit_is_refused(ball, model, mask):
    _, cameras, photos = ball
    with pytest.raises(ValueError, match=r"mask: expected bool \[52, 70\], found"):
        DirectView(model).backward(cameras[0], BACKGROUND, photos[0], 0.2, 3, True, mask)


def test_gradients_of_views_add_up(ball, model):
    _, cameras, photos = ball
    for camera, photo in zip(cameras, photos, strict=True):
        through_autograd(model, camera, photo)
    wanted = gradients(model)
    direct = DirectView(model)
    results = [
        direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True)
        for camera, photo in zip(cameras, photos, strict=True)
    ]
    assert all(same(g, wanted[name]) for name, g in gradients(model).items())
    assert [result.finite for result in results] == [
        True,
        *[False] * (len(photos) - 1),
    ]  # sums were not looked at


HOLD = {
    "image": lambda model, view: view.image,
    "gradient": lambda model, view: model.opacity.grad,
    "radii": lambda model, view: view.info["radii"],
    "a part": lambda model, view: view.info["means2d"].grad[0, :10],
    "looked at late": lambda model, view: view.info,
}


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
def test_what_is_held_is_not_written_to_again(ball, model, hold):
    _, cameras, photos = ball
    direct = DirectView(model)

    def value(held):
        return (
            torch.cat([held["depths"].flatten(), held["conics"].flatten()])
            if isinstance(held, dict)
            else held
        )

    expected = []
    for camera, photo in zip(cameras, photos, strict=True):
        held = hold(model, direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True))
        expected.append(value(held).clone())
        gradients(model)
    kept = []
    for camera, photo in zip(cameras, photos, strict=True):
        kept.append(hold(model, direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True)))
        gradients(model)
    assert all(same(value(held), before) for held, before in zip(kept, expected, strict=True))


def test_memory_is_kept_from_view_to_view_and_grows_with_nothing(ball, model):
    _, cameras, photos = ball
    direct = DirectView(model)
    places = []
    for camera, photo in zip(cameras, photos, strict=True):
        direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True)
        gradients(model)
        places.append(direct.kept)
    assert places == [places[0]] * len(places)
    rows = (
        700 * 4 * (2 + 2 + 3 + 1 + 1 + 3 + 2 + 3 + 3 + 1 + 59)
    )  # splats, gradients by them and by parameters
    assert sum(places[0].values()) == rows + 70 * 52 * 4 * 3


def moved_camera(model, camera):
    camera.viewmat[2, 3] += 0.25


def fewer_rows(model, camera):
    for name in ATTRIBUTES:
        setattr(model, name, torch.nn.Parameter(model.get_parameter(name).detach()[:300].clone()))


def another_parameter_in_the_same_memory(model, camera):
    model.xyz = torch.nn.Parameter(model.xyz.data)


def frozen(model, camera):
    model.rotation.requires_grad_(False)


def in_place(model, camera):
    with torch.no_grad():
        model.scaling += 0.1


@pytest.mark.parametrize(
    "change", [moved_camera, fewer_rows, another_parameter_in_the_same_memory, frozen, in_place]
)
def test_changes_between_views_are_seen(ball, model, change):
    _, (camera, *_), (photo, *_) = ball
    camera = replace(camera, viewmat=camera.viewmat.clone())
    direct = DirectView(model)
    direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True)
    gradients(model)
    change(model, camera)
    found = direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True)
    mine = gradients(model)
    loss, *_ = through_autograd(model, camera, photo)
    assert same(found.loss, loss.detach())
    assert all(same(g, mine[name]) for name, g in gradients(model).items())


UNFIT = {
    "hook on a parameter": lambda model: model.xyz.register_hook(lambda gradient: None),
    "hook after a gradient": lambda model: model.xyz.register_post_accumulate_grad_hook(lambda p: None),
    "float64": lambda model: model.double(),
    "other memory order": lambda model: setattr(
        model, "xyz", torch.nn.Parameter(torch.empty(3, model.num_gaussians).T)
    ),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_what_autograd_is_needed_for(ball, model, change):
    _, (camera, *_), (photo, *_) = ball
    direct = DirectView(model)
    assert direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True)
    gradients(model)
    change(model)
    assert direct.backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True) is None
    assert not any(gradient is not None for gradient in gradients(model).values())


def test_a_background_or_photo_of_another_dtype_is_for_autograd(ball, model):
    _, (camera, *_), (photo, *_) = ball
    direct, options = DirectView(model), {"sh_degree": 3, "grad2d": True}
    assert direct.backward(camera, BACKGROUND.double(), photo, 0.2, **options) is None
    assert direct.backward(camera, BACKGROUND, photo.double() / 255, 0.2, **options) is None


def test_what_is_not_finite_is_not_called_so(ball, model):
    _, (camera, *_), (photo, *_) = ball
    photo = photo / 255
    photo[3, 4, 1] = torch.nan
    assert not DirectView(model).backward(camera, BACKGROUND, photo, 0.2, sh_degree=3, grad2d=True).finite


def test_a_photo_of_another_size_is_an_error(ball, model):
    _, (camera, *_), (photo, *_) = ball
    with pytest.raises(ValueError, match="photo: expected 52x70x3"):
        DirectView(model).backward(camera, BACKGROUND, photo[1:], 0.2, sh_degree=3, grad2d=True)


RUNS = {
    "default": {},
    "accumulated": {"accumulate": 2},
    "frozen for a while": {"freeze": ("xyz@5:20", "rotation@10:")},
    "absolute gradients": {"densify": {"absgrad": True}},
    "locked": {"lock": ("box:-2,-2,-2,0,2,2",)},
    "visible_adam": {"optimizer": "visible_adam"},
    "mcmc": {"strategy": "mcmc"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return load_scene(scenes.write_nerf_synthetic(tmp_path_factory.mktemp("direct") / "ball", points=60))


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_trainings_with_and_without_have_the_same_bits(photos, tmp_path, settings):
    settings = dict(settings)
    densify = DefaultStrategy(
        **({"refine_start_iter": 5, "refine_every": 5, "grow_grad2d": 1e-5} | settings.pop("densify", {}))
    )
    config = TrainConfig(
        scene=photos.path,
        output=tmp_path,
        iterations=30,
        quiet=True,
        device="cpu",
        densify=densify,
        **({"strategy": "default"} | settings),
    )
    trainers = [Trainer(config, scene=photos) for _ in range(2)]
    assert trainers[0].direct is not None
    trainers[1].direct = None
    for _ in range(30):
        results = [trainer.train_step() for trainer in trainers]
        assert same(*(result.loss for result in results))
    states = [trainer.state_dict() for trainer in trainers]
    for part in ("model", "strategy"):
        assert all(same(states[0][part][key], states[1][part][key]) for key in states[0][part])
    for mine, theirs in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(same(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("settings", [{"optimize_poses": True}, {"exposure": True}, {"backend": "reference"}])
def test_runs_that_go_through_autograd(photos, tmp_path, settings):
    config = TrainConfig(
        scene=photos.path, output=tmp_path, iterations=3, quiet=True, device="cpu", **settings
    )
    assert Trainer(config, scene=photos).direct is None
