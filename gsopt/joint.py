"""Several models in one training: what is trained beside the Gaussians, and how a view of all of it looks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsopt.cameras import Camera
from gsopt.datasets import Scene
from gsopt.errors import InputError
from gsopt.evaluation import Maps, Rendered, render_maps, render_view
from gsopt.exposure import Exposure
from gsopt.geometry import num_sh_bases
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.poses import PoseRefiner
from gsopt.render.rows import first_rows
from gsopt.rundir import read_json, write_json
from gsopt.similarity import Similarity

if TYPE_CHECKING:
    from gsopt.config import TrainConfig

BACKGROUND_FILE, VIEWS_FILE = "background.ply", "views.json"  # beside the model's PLY
_OF_A_VIEW = {"pose": (6,), "exposure": (3, 4)}  # what VIEWS_FILE may have of a view, and its shape


class Joint:
    """A model of Gaussians with what is trained beside it. Of what is None there is nothing, at no cost.

    Args:
        model: the Gaussians that densification changes.
        poses: motions of the training cameras.
        exposure: maps of the colours of the training views.
        background_model: more Gaussians, seen in the same pictures; their number stays as it is.
        world: the move that made the world of all this from that of the scene's files (`Scene.world`).
    """

    def __init__(
        self,
        model: GaussianModel,
        *,
        poses: PoseRefiner | None = None,
        exposure: Exposure | None = None,
        background_model: GaussianModel | None = None,
        world: Similarity | None = None,
    ) -> None:
        self.model = model
        self.world = world
        self.poses = poses
        self.exposure = exposure
        self.background_model = background_model

    @classmethod
    def of_config(cls, config: "TrainConfig", scene: Scene, model: GaussianModel, *, read: bool) -> "Joint":
        """As a training begins. Without `read`, the background is empty, for a checkpoint to fill it.

        Raises InputError where the background's file cannot be used.
        """
        views, device = len(scene.train), model.xyz.device
        background = None
        if config.background_model is not None:
            path = config.background_model
            background = GaussianModel(device=device)
            if read:
                background = GaussianModel.load_ply(path, device=device).moved(scene.world)
        return cls(
            model,
            poses=PoseRefiner(views, scene.extent, device) if config.optimize_poses else None,
            exposure=Exposure(views, device=device) if config.exposure else None,
            background_model=background,
            world=scene.world,
        )

    @property
    def sides(self) -> dict[str, nn.Module]:
        """What is beside the model, by the name of its groups."""
        sides = {"poses": self.poses, "exposure": self.exposure, "background": self.background_model}
        return {name: side for name, side in sides.items() if side is not None}

    @property
    def models(self) -> dict[str, nn.Module]:
        """All, for `build_groups`: the groups of the model itself have the bare names of its parameters."""
        return {"": self.model, **self.sides}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All, by the names they have in the optimizer."""
        for owner, module in self.models.items():
            for name, parameter in module.named_parameters():
                yield (f"{owner}.{name}" if owner else name), parameter

    def render(
        self,
        camera: Camera,
        background: Tensor,
        view: int | None = None,
        *,
        sh_degree: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The image [H, W, 3] of everything over `background` [3], and the info of the model's own rows.

        Args:
            camera: as given in the scene.
            view: number of the training view that this is, whose pose and exposure apply; None for another.
            sh_degree: highest band of the model that is used, by default all; of a background always all.
            options: for `gsopt.rasterization`.
        """
        if self.poses is not None and view is not None:
            camera = self.refined(camera, view)
        if self.background_model is None:
            image, info = render_view(self.model, camera, background, sh_degree=sh_degree, **options)
        else:
            both = Together(self.model, self.background_model, sh_degree)
            image, info = render_view(both, camera, background, **options)
            seen = info
            info = first_rows(seen, self.model.num_gaussians)
            if "inverse_depth" in seen:
                info["inverse_depth"] = seen["inverse_depth"]
        if self.exposure is not None and view is not None:
            image = self.exposure(image, view)
        return image, info

    def maps(self, camera: Camera, background: Tensor, view: int | None = None, **options: Any) -> Maps:
        """The image that `render` gives, with depth and alpha."""
        camera = camera if view is None else self.refined(camera, view)
        both = self.background_model
        model: Rendered = self.model if both is None else Together(self.model, both)
        maps = render_maps(model, camera, background, **options)
        if self.exposure is not None and view is not None:
            maps = maps._replace(image=self.exposure(maps.image, view))
        return maps

    def refined(self, camera: Camera, view: int | None) -> Camera:
        """The camera of a training view where training has moved it to; as it is where poses are given."""
        if self.poses is None or view is None:
            return camera
        return replace(camera, viewmat=self.poses(camera.viewmat, view))

    @property
    def _units(self) -> Tensor:
        """What a twist is divided by to be in world units. [6]"""
        scale = 1.0 if self.world is None else self.world.scale
        return torch.tensor([1.0] * 3 + [scale] * 3, device=self.model.xyz.device)

    def state_dict(self) -> dict[str, Any]:
        """Of what is beside the model."""
        return {name: side.state_dict() for name, side in self.sides.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Parameters may be new objects: load first, then build groups.

        Raises:
            ValueError: it is the state of other models.
        """
        if set(state) != set(self.sides):
            raise ValueError(
                f"joint: expected the states of {', '.join(self.sides) or 'none'}, found {', '.join(state)}"
            )
        for name, side in self.sides.items():
            options = {"take_sh_degree": True} if side is self.background_model else {}
            side.load_state_dict(state[name], **options)

    # ------------------------------------------------------------------------------ beside the model's PLY

    @torch.no_grad()
    def save_beside(self, ply: Path, views: Sequence[str], *, background: bool) -> None:
        """Write what an evaluation needs beside the model's PLY: `background.ply` if asked for, `views.json`.

        All is in world units.

        `views`: names of the training views, in order.
        """
        if background and self.background_model is not None:
            back = self.world and self.world.inverse()
            self.background_model.moved(back).save_ply(ply.with_name(BACKGROUND_FILE))
        values = {
            "pose": None if self.poses is None else self.poses.twists / self._units,
            "exposure": None if self.exposure is None else self.exposure.matrices,
        }
        rows = {key: value.tolist() for key, value in values.items() if value is not None}
        if rows:
            content = {name: {key: rows[key][i] for key in rows} for i, name in enumerate(views)}
            write_json(ply.with_name(VIEWS_FILE), content)

    @classmethod
    @torch.no_grad()
    def of_saved(
        cls,
        config: "TrainConfig",
        scene: Scene,
        model: GaussianModel,
        ply: Path,
        background_model: Path | None = None,
    ) -> "Joint":
        """As it was when `save_beside` wrote: to look at. Views that were not trained on are as given.

        `background_model`: file to use instead of the one that the run says.

        Raises InputError where a file is missing or damaged.
        """
        own = ply.with_name(BACKGROUND_FILE) if config.background_model_trainable else config.background_model
        config = replace(config, background_model=background_model or own)
        # Twists are saved in world units.
        extent = 1.0 if scene.world is None else scene.world.scale
        joint = cls.of_config(config, replace(scene, extent=extent), model, read=True)
        if joint.poses is None and joint.exposure is None:
            return joint
        if joint.exposure is not None:  # some of the views may be others by now: no mean over these
            joint.exposure = Exposure(len(scene.train), centred=False, device=model.xyz.device)
        wanted = {"pose": joint.poses is not None, "exposure": joint.exposure is not None}
        saved = _read_views(ply.with_name(VIEWS_FILE), [key for key in wanted if wanted[key]])
        for number, view in enumerate(scene.train):
            row = saved.get(view.camera.name, {})
            if "pose" in row:
                assert joint.poses is not None
                joint.poses.delta[number] = row["pose"].to(joint.poses.delta)
            if "exposure" in row:
                assert joint.exposure is not None
                joint.exposure.delta[number] = (row["exposure"] - torch.eye(3, 4)).to(joint.exposure.delta)
        return joint


class Together:
    """Two models as one, their rows one after the other; with the properties that rendering asks a model for.

    Args:
        first: its first `sh_degree` bands are used, by default all; the others get no gradient.
        second: all its bands are used. Whichever of the two has fewer gets zeros for the others.
    """

    xyz: Tensor
    feature_dc: Tensor
    feature_rest: Tensor
    scaling: Tensor
    rotation: Tensor
    opacity: Tensor

    def __init__(self, first: GaussianModel, second: GaussianModel, sh_degree: int | None = None) -> None:
        degree = first.max_sh_degree if sh_degree is None else sh_degree
        self.max_sh_degree = max(degree, second.max_sh_degree)
        used = num_sh_bases(degree) - 1
        parts = {name: [getattr(model, name) for model in (first, second)] for name in ATTRIBUTES}
        parts["feature_rest"] = [
            F.pad(rest, (0, 0, 0, num_sh_bases(self.max_sh_degree) - 1 - rest.shape[1]))
            for rest in (first.feature_rest[:, :used], second.feature_rest)
        ]
        for name, tensors in parts.items():
            setattr(self, name, torch.cat(tensors))

    means = GaussianModel.means
    quats = GaussianModel.quats
    scales = GaussianModel.scales
    opacities = GaussianModel.opacities
    sh = GaussianModel.sh


def _read_views(path: Path, wanted: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """What is `wanted` of each view in a `views.json`, by the view's name. Raises InputError."""
    content = read_json(path)
    remedy = "let the run save it again: gsopt train --resume RUN --iterations M"
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with the views by name; {remedy}")
    found: dict[str, dict[str, Tensor]] = {}
    for name, row in content.items():
        found[name] = {}
        for key in wanted:
            shape = _OF_A_VIEW[key]
            try:
                found[name][key] = value = torch.tensor(row[key], dtype=torch.float32)
            except (TypeError, ValueError, LookupError):
                value = None
            if value is None or value.shape != shape or not value.isfinite().all():
                raise InputError(f"{path}: {name}: {key}: expected numbers {list(shape)}; {remedy}")
    return found
