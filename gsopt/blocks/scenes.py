"""Each block as a COLMAP scene of its own: its photos as links, its part of the model, its test views."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsopt.blocks.division import camera_centers, divide, ground_axes, margins, to_plane
from gsopt.blocks.partition import Block, Partition
from gsopt.datasets import ColmapScene
from gsopt.datasets.colmap import TEST_NAMES
from gsopt.datasets.depths import ENDINGS as DEPTH_ENDINGS
from gsopt.datasets.depths import FOLDER as DEPTHS
from gsopt.datasets.depths import PARAMETERS
from gsopt.datasets.images import Photo
from gsopt.datasets.maps import find_map
from gsopt.datasets.masks import ENDINGS as MASK_ENDINGS
from gsopt.datasets.masks import FOLDER as MASKS
from gsopt.errors import InputError

if TYPE_CHECKING:
    import pycolmap

COPIES = ("", "_2", "_4", "_8")  # endings of the photos' folder


@dataclass(frozen=True)
class _Model:
    """A COLMAP model as arrays. plane: of the points, [P, 2]. seen: points of each photo, rows of them."""

    reconstruction: "pycolmap.Reconstruction"
    ids: np.ndarray  # [P]
    plane: np.ndarray
    images: "dict[str, pycolmap.Image]"  # by name
    seen: dict[str, np.ndarray]


def partition(
    scene: ColmapScene, output: Path, blocks: tuple[int, ...], overlap: float, min_seen: float
) -> Partition:
    """Divide a scene and write a scene for each block, then `partition.json`.

    A block has the photos that stand in its cell, grown by `overlap` times its size on each side, and those
    of whose points at least the share `min_seen` lies in its cell. Its points are those in the grown cell,
    and all that its photos see.

    Raises InputError: too many blocks, or a block without photos to train on.
    """
    viewmats = np.stack([photo.viewmat for photo in scene.train])
    axes = ground_axes(viewmats)
    cameras = to_plane(axes, camera_centers(viewmats))
    cells = divide(cameras, blocks)
    model = _read(scene.model, axes)
    photos = [*scene.train, *scene.test]
    stands = to_plane(axes, camera_centers(np.stack([photo.viewmat for photo in photos])))
    written = []
    digits = len(str(len(cells) - 1))
    for number, cell in enumerate(cells):
        name = f"block_{number:0{digits}d}"
        wide = cell.grown(margins(cell, cameras, model.plane, overlap))
        inside = cell.holds(model.plane)
        shares = np.array([_share(inside[model.seen[photo.name]]) for photo in photos])
        chosen = wide.holds(stands) | (shares >= min_seen)
        train = [photo for photo, own in zip(scene.train, chosen, strict=False) if own]
        test = [photo for photo, own in zip(scene.test, chosen[len(scene.train) :], strict=True) if own]
        points = wide.holds(model.plane)
        for photo in (*train, *test):
            points[model.seen[photo.name]] = True
        if not points.any():
            raise InputError(
                f"{scene.model}: {name} of {len(cells)} has no points, and its {len(train)} photos see none; "
                "give fewer blocks or more --overlap"
            )
        folder = output / "scenes" / name
        _write_model(folder / "sparse" / "0", model, [*train, *test], np.flatnonzero(points))
        names = "".join(f"{photo.name}\n" for photo in test)
        (folder / "sparse" / "0" / TEST_NAMES).write_text(names, encoding="utf-8")
        _link(scene, folder, [*train, *test])
        written.append(Block(name, cell, len(train), len(test), int(points.sum())))
    made = Partition(output, scene.root.absolute(), axes, written)
    made.write()
    return made


def _share(inside: np.ndarray) -> float:
    return float(inside.mean()) if len(inside) else 0.0


def _read(folder: Path, axes: np.ndarray) -> _Model:
    import pycolmap

    reconstruction = pycolmap.Reconstruction(folder)
    ids = np.array(sorted(reconstruction.point3D_ids()), np.int64)
    if not len(ids):
        raise InputError(f"{folder}: no points, expected some in each block; triangulate them by COLMAP")
    xyz = np.stack([reconstruction.points3D[i].xyz for i in ids])
    images = {image.name: image for image in reconstruction.images.values() if image.has_pose}
    seen = {
        name: np.unique(
            np.searchsorted(ids, [point.point3D_id for point in image.get_observation_points2D()])
        ).astype(np.int64)
        for name, image in images.items()
    }
    return _Model(reconstruction, ids, to_plane(axes, xyz), images, seen)


def _write_model(folder: Path, model: _Model, photos: Sequence[Photo], points: np.ndarray) -> None:
    """Cameras, images with what they see of the points, and the points (rows), as a binary model."""
    import pycolmap

    written, tracks = pycolmap.Reconstruction(), {int(model.ids[row]): pycolmap.Track() for row in points}
    chosen = sorted((model.images[photo.name] for photo in photos), key=lambda image: image.image_id)
    for camera in sorted({image.camera_id for image in chosen}):
        written.add_camera_with_trivial_rig(model.reconstruction.cameras[camera])
    for image in chosen:
        observed = list(image.get_observation_points2D())
        xy = np.array([point.xy for point in observed], np.float64).reshape(-1, 2)
        copy = pycolmap.Image(image.name, xy, image.camera_id, image.image_id)
        written.add_image_with_trivial_frame(copy, image.cam_from_world())
        for index, point in enumerate(observed):
            tracks[point.point3D_id].add_element(image.image_id, index)
    for identity, track in tracks.items():
        whole = model.reconstruction.points3D[identity]
        written.add_point3D(whole.xyz, track, whole.color)
    folder.mkdir(parents=True)
    written.write_binary(folder)


def _link(scene: ColmapScene, folder: Path, photos: Sequence[Photo]) -> None:
    """Links to photos, their smaller copies, masks and depth maps."""
    for photo in photos:
        for ending in COPIES:
            source = scene.images.with_name(f"{scene.images.name}{ending}")
            if (source / photo.name).is_file():
                _link_file(source / photo.name, folder / f"images{ending}" / photo.name)
        for name, endings in ((MASKS, MASK_ENDINGS), (DEPTHS, DEPTH_ENDINGS)):
            place = scene.images.parent / name
            if (path := find_map(place, photo.name, endings)) is not None:
                _link_file(path, folder / name / path.relative_to(place))
    if (scene.model / PARAMETERS).is_file():
        shutil.copyfile(scene.model / PARAMETERS, folder / "sparse" / "0" / PARAMETERS)


def _link_file(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source.absolute())
