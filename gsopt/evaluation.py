"""A model seen through cameras: its images, and how close they are to the photos."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.datasets import Scene
from gsopt.datasets.scene import View
from gsopt.losses import inverse_depth
from gsopt.metrics import image_metrics, mean_metrics
from gsopt.ranks import Ranks
from gsopt.render import rasterization_of_parameters
from gsopt.runtime import spread

Metrics = dict[
    str, Any
]  # {"test": {"psnr": ...}, "train": {...}, "views": {"test": {NAME: {"psnr": ...}}, ...}}
OnView = Callable[[str, int, View, Tensor, Tensor], None]  # split, index, view, image, photo
# camera, background, number among the training views (None for another view) -> image, info
Render = Callable[[Camera, Tensor, int | None], tuple[Tensor, dict[str, Any]]]


class Rendered(Protocol):
    """What is asked of a model that is rendered: that of `GaussianModel`."""

    @property
    def xyz(self) -> Tensor: ...
    @property
    def rotation(self) -> Tensor: ...
    @property
    def scaling(self) -> Tensor: ...
    @property
    def opacity(self) -> Tensor: ...
    @property
    def feature_dc(self) -> Tensor: ...
    @property
    def feature_rest(self) -> Tensor: ...
    @property
    def max_sh_degree(self) -> int: ...


def render_view(
    model: Rendered, camera: Camera, background: Tensor, *, sh_degree: int | None = None, **options: Any
) -> tuple[Tensor, dict[str, Any]]:
    """The model's image [H, W, 3] from one camera over `background` [3], and the rasterizer's info.

    `sh_degree`: highest band used, by default all the model has. `options` go to `gsopt.rasterization`; with
    its `render_mode` "RGB+D" the info has "inverse_depth" [H, W], see `losses.inverse_depth`. Values above 1
    are not clipped.
    """
    images, _, info = _rasterized(model, camera, background, sh_degree, **options)
    return images.squeeze(0), info  # its gradient is a view, that of images[0] a copy


class Maps(NamedTuple):
    """What a model looks like from one camera."""

    image: Tensor  # [H, W, 3], over the background; not clipped
    depth: Tensor  # [H, W] expected depth (z along the view, world units); 0 where alpha is 0
    alpha: Tensor  # [H, W] opacity of all that is there, 0 to 1


def render_maps(model: Rendered, camera: Camera, background: Tensor, **options: Any) -> Maps:
    """The same with depth and alpha, all from one rasterization."""
    images, alphas, _ = _rasterized(model, camera, background, None, render_mode="RGB+ED", **options)
    return Maps(images[0, ..., :3], images[0, ..., 3], alphas[0, ..., 0])


def _rasterized(
    model: Rendered, camera: Camera, background: Tensor, sh_degree: int | None, **options: Any
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    device = background.device
    images, alphas, info = rasterization_of_parameters(
        model.xyz,
        model.rotation,
        model.scaling,
        model.opacity,
        (model.feature_dc, model.feature_rest),
        camera.viewmat.to(device)[None],
        camera.K.to(device)[None],
        camera.width,
        camera.height,
        sh_degree=model.max_sh_degree if sh_degree is None else sh_degree,
        backgrounds=background[None],
        packed=False,
        **options,
    )
    if options.get("render_mode") == "RGB+D":
        info["inverse_depth"] = inverse_depth(images[0, ..., 3], alphas[0, ..., 0])
        images = images[..., :3]
    return images, alphas, info


def beside_photo(
    render: Render, view: View, number: int | None, background: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A view's image, clipped to 0..1, and its photo, [H, W, 3] both, with its mask [H, W] or None.

    All on the device of `background`. `render`, `number` and `options` are those of :func:`evaluate_scene`.
    """
    image, _ = render(view.camera, background, number, **options)
    photo = view.rgb(background.cpu()).to(background.device)
    view.release()
    return image.clamp(0, 1), photo, None if view.mask is None else view.mask.to(background.device)


@torch.no_grad()
def evaluate_scene(
    render: Render,
    scene: Scene,
    background: Tensor,
    *,
    on_view: OnView | None = None,
    shown: int | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> Metrics:
    """PSNR, SSIM and L1 of the test views, and of as many training views (all where there are no test views).

    `render` makes the images, as `gsopt.joint.Joint.render` does; `options` go to it. Images are clipped to
    0..1 first; pixels that a view's mask ignores do not count. `on_view` is called with (split, index, view,
    image, photo) after each, or after the first `shown` of each split. Views have their camera's name; a
    split without views has means None. With `ranks`, each process renders a part of the views, and all get
    all results.
    """
    trained = list(enumerate(scene.train))
    splits: dict[str, list[tuple[int | None, View]]] = {
        "test": [(None, view) for view in scene.test],
        "train": spread(trained, len(scene.test) or len(trained)),
    }
    jobs = [(split, i, *one) for split, chosen in splits.items() for i, one in enumerate(chosen)]

    def look(job: tuple[str, int, int | None, View]) -> tuple[dict[str, float], tuple[Tensor, ...]]:
        _, index, number, view = job
        image, photo, mask = beside_photo(render, view, number, background, **options)
        wanted = on_view is not None and (shown is None or index < shown)
        return image_metrics(image, photo, mask), (image.cpu(), photo.cpu()) if wanted else ()

    views: dict[str, dict[str, dict[str, float]]] = {"test": {}, "train": {}}
    results = (ranks or Ranks()).map(look, jobs)
    for (split, index, _, view), (metrics, pair) in zip(jobs, results, strict=True):
        views[split][view.camera.name] = metrics
        if pair and on_view is not None:
            on_view(split, index, view, *pair)
    return {split: mean_metrics(views[split]) for split in splits} | {"views": views}
