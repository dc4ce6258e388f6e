"""Partitions for tests: models with tracks, blocks as if they were trained, how a command refuses."""

import re
from pathlib import Path

import numpy as np
import torch

from gsopt.blocks.partition import Partition
from gsopt.blocks.scenes import partition
from gsopt.commands import main
from gsopt.config import TrainConfig
from gsopt.datasets import colmap_scene
from gsopt.model import GaussianModel
from gsopt.rundir import write_json

PHOTOS = 17  # of which 3 are for testing


def with_tracks(scene: Path) -> Path:
    """Let each image of a model observe the points that it has in its frame, on the side of its camera."""
    import pycolmap

    folder = scene / "sparse" / "0"
    old, new = pycolmap.Reconstruction(folder), pycolmap.Reconstruction()
    for camera in old.cameras.values():
        new.add_camera_with_trivial_rig(camera)
    tracks = {i: pycolmap.Track() for i in old.point3D_ids()}
    for image in old.images.values():
        seen = [
            (i, xy)
            for i, point in old.points3D.items()
            if point.xyz @ image.projection_center() > 1.0
            and (xy := image.project_point(point.xyz)) is not None
            and (xy >= 0).all()
            and (xy < (image.camera.width, image.camera.height)).all()
        ]
        shape = np.array([xy for _, xy in seen]).reshape(-1, 2)
        copy = pycolmap.Image(image.name, shape, image.camera_id, image.image_id)
        new.add_image_with_trivial_frame(copy, image.cam_from_world())
        for index, (i, _) in enumerate(seen):
            tracks[i].add_element(image.image_id, index)
    for i in sorted(tracks):
        new.add_point3D(old.points3D[i].xyz, tracks[i], old.points3D[i].color)
    new.write_binary(folder)
    return scene


def made(scene: Path, output: Path, blocks=(2,), overlap=0.0, min_seen=0.5) -> Partition:
    return partition(colmap_scene(scene, 8), output, blocks, overlap, min_seen)


def finish(parts: Partition, *, count: int = 300) -> None:
    """As if each block were trained: Gaussians all over the place, and far beyond."""
    for number, block in enumerate(parts.blocks):
        run = parts.run_of(block)
        config = TrainConfig(scene=parts.scene_of(block).absolute(), output=run.path, iterations=10)
        write_json(run.config, config.to_json())
        write_json(run.metrics, {"iterations": 10})
        generator = torch.Generator().manual_seed(7 + number)
        xyz = 10 * torch.randn(count, 3, generator=generator)
        xyz[::10] *= 1e4
        rgb = torch.full((count, 3), number / len(parts.blocks))
        ply = run.ply(10)
        ply.parent.mkdir(parents=True)
        GaussianModel.from_points(xyz, rgb, sh_degree=number % 2).save_ply(ply)


def refused(capsys, words, message: str) -> None:
    """A command ends with 2 and one line that has all parts of the message in order."""
    assert main([str(word) for word in words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(".*".join(map(re.escape, message.split(" ... "))), line), line
