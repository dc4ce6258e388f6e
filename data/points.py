"""The sparse, noisy point cloud of the built-in scene, as a structure-from-motion program might give it."""

from __future__ import annotations

from pathlib import Path

import mitsuba as mi
import numpy as np
from PIL import Image
from plyfile import PlyData, PlyElement
from views import SIZE, camera_angle_x, split_poses

COUNT = 5000
OUTLIERS = 0.015  # fraction of the points that lie anywhere in the scene's sphere
NOISE = 0.010  # standard deviation of the position, world units: 0.5 % of the scene's size of about 2
SEED = 7


def pixel_rays(pose: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [P, 3] of the rays through the centres of `pixels` [P, 2] (column, row)."""
    focal = 0.5 * SIZE / np.tan(0.5 * camera_angle_x())
    x = (pixels[:, 0] + 0.5 - 0.5 * SIZE) / focal
    y = (pixels[:, 1] + 0.5 - 0.5 * SIZE) / focal
    directions = np.stack([x, -y, -np.ones_like(x)], axis=1) @ pose[:3, :3].T
    return np.broadcast_to(pose[:3, 3], directions.shape), directions / np.linalg.norm(
        directions, axis=1, keepdims=True
    )


def seen_points(
    scene: mi.Scene, folder: Path, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] under random opaque pixels of the train pictures, and their colours uint8 [P, 3]."""
    poses = split_poses("train")
    per_view = -(-2 * COUNT // len(poses))
    xyz, rgb = [], []
    for index, pose in enumerate(poses):
        image = np.asarray(Image.open(folder / "train" / f"r_{index}.png"))
        rows, columns = np.nonzero(image[..., 3] == 255)
        chosen = generator.choice(len(rows), per_view, replace=False)
        pixels = np.stack([columns[chosen], rows[chosen]], axis=1)
        for (column, row), origin, direction in zip(pixels, *pixel_rays(pose, pixels), strict=True):
            hit = scene.ray_intersect(mi.Ray3f(mi.Point3f(origin), mi.Vector3f(direction)))
            if hit.is_valid():
                xyz.append(np.array(hit.p, dtype=float))
                rgb.append(image[row, column, :3])
    return np.array(xyz), np.array(rgb)


def write_points(scene: mi.Scene, folder: Path) -> None:
    """Write points3d.ply: seen points with position noise, and some outliers with colours of others."""
    generator = np.random.default_rng(SEED)
    xyz, rgb = seen_points(scene, folder, generator)
    keep = generator.choice(len(xyz), COUNT, replace=False)
    xyz, rgb = xyz[keep] + generator.normal(0.0, NOISE, (COUNT, 3)), rgb[keep]
    outliers = generator.choice(COUNT, round(OUTLIERS * COUNT), replace=False)
    away = generator.normal(size=(len(outliers), 3))
    away *= (generator.uniform(0, 1, len(outliers)) ** (1 / 3) / np.linalg.norm(away, axis=1))[:, None]
    xyz[outliers] = away * 1.2 + np.array([0.0, 0.0, 0.4])
    layout = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    table = np.empty(COUNT, dtype=layout)
    for name, column in zip(("x", "y", "z"), xyz.T, strict=True):
        table[name] = column
    for name, column in zip(("red", "green", "blue"), rgb.T, strict=True):
        table[name] = column
    PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(str(folder / "points3d.ply"))
    print(f"{COUNT} points, {len(outliers)} of them outliers")
