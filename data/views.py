"""Cameras of the built-in scene: OpenGL camera-to-world matrices (x right, y up, z backward), world z up."""

from __future__ import annotations

import math

import numpy as np

SIZE = 256  # pixels, width and height
TARGET = np.array([0.0, 0.0, 0.42])
COUNTS = {"train": 60, "test": 20, "val": 10}


def camera_angle_x() -> float:
    """Horizontal field of view over the full width, radians."""
    return 0.65


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rigid camera-to-world matrix [4, 4] of an upright camera at `eye` that looks at `target`."""
    back = eye - target
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return pose


def on_sphere(azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """Point [3] at `distance` from TARGET; angles in radians, elevation above the horizon."""
    flat = math.cos(elevation)
    return TARGET + distance * np.array(
        [flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)]
    )


def split_poses(split: str) -> np.ndarray:
    """Camera-to-world matrices [N, 4, 4] of "train", "test" or "val".

    train: a jittered Fibonacci spiral over the hemisphere from 4 to 78 degrees, in shuffled order. test: one
    turn around the scene that rises and falls, 14 to 58 degrees. val: a second spiral.
    """
    count = COUNTS[split]
    golden = math.pi * (3 - math.sqrt(5))
    if split == "test":
        turns = np.arange(count) / count
        azimuths = 2 * math.pi * turns + 0.11
        elevations = np.radians(36 + 22 * np.sin(6 * math.pi * turns))
        eyes = [on_sphere(a, e, 4.05) for a, e in zip(azimuths, elevations, strict=True)]
        return np.stack([look_at(eye, TARGET) for eye in eyes])
    low, high = math.sin(math.radians(4)), math.sin(math.radians(78))
    start, seed = (0.0, 1) if split == "train" else (1.9, 2)
    generator = np.random.default_rng(seed)
    poses = []
    for i in range(count):
        height = low + (high - low) * (i + 0.5 + generator.uniform(-0.3, 0.3)) / count
        azimuth = start + i * golden + generator.uniform(-0.05, 0.05)
        aim = TARGET + generator.uniform(-0.02, 0.02, 3)
        poses.append(look_at(on_sphere(azimuth, math.asin(height), generator.uniform(3.95, 4.35)), aim))
    return np.stack(poses)[generator.permutation(count)]


def mitsuba_pose(pose: np.ndarray) -> np.ndarray:
    """Mitsuba's camera-to-world (x left, y up, z forward) of an OpenGL one; [4, 4]."""
    return pose @ np.diag([-1.0, 1.0, -1.0, 1.0])
