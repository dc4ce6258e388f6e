"""Procedural colours of the built-in scene: functions of surface position, numpy only.

Colours are sRGB-encoded, 0..1, as a designer writes them; `to_linear` turns them into reflectances.
"""

from __future__ import annotations

import numpy as np


def rgb(code: str) -> np.ndarray:
    """Colour [3] in 0..1 of a code such as "2f7f86"."""
    return np.array([int(code[i : i + 2], 16) / 255.0 for i in (0, 2, 4)])


def to_linear(color: np.ndarray) -> np.ndarray:
    """sRGB-encoded 0..1 to linear 0..1 (IEC 61966-2-1)."""
    color = np.asarray(color, dtype=float)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear 0..1 to sRGB-encoded 0..1 (IEC 61966-2-1)."""
    linear = np.clip(np.asarray(linear, dtype=float), 0.0, 1.0)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """a where weight [...] is 0, b where it is 1: [..., 3]."""
    weight = np.asarray(weight, dtype=float)[..., None]
    return a * (1.0 - weight) + b * weight


def step(edge: float, x: np.ndarray, width: float) -> np.ndarray:
    """Smooth step from 0 to 1 around `edge`, over `width`."""
    t = np.clip((x - edge) / width + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def band(low: float, high: float, x: np.ndarray, width: float) -> np.ndarray:
    """1 between low and high, 0 elsewhere, edges `width` wide."""
    return step(low, x, width) * (1.0 - step(high, x, width))


def stripes(phase: np.ndarray, fill: float, width: float) -> np.ndarray:
    """1 in the middle `fill` of each period of `phase` (period 1), 0 elsewhere, edges `width` of a period."""
    distance = np.abs(phase - np.floor(phase) - 0.5)
    return 1.0 - step(fill / 2, distance, width)


def _hash(cell: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random 0..1 for integer cells [..., 3]."""
    x = cell.astype(np.int64).astype(np.uint64)
    h = x[..., 0] * np.uint64(0x9E3779B97F4A7C15) ^ x[..., 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    h = h ^ (x[..., 2] * np.uint64(0x165667B19E3779F9) + np.uint64(seed * 0x27D4EB2F + 1))
    for shift in (33, 29, 32):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(0xFF51AFD7ED558CCD)
    return (h >> np.uint64(40)).astype(float) / float(1 << 24)


def noise(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Value noise 0..1 of points [..., 3], feature size 1."""
    cell = np.floor(points)
    f = points - cell
    f = f * f * (3.0 - 2.0 * f)
    total = np.zeros(points.shape[:-1])
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(np.array(corner) == 1, f, 1.0 - f), axis=-1)
        total += weight * _hash(cell + np.array(corner), seed)
    return total


def cloud(points: np.ndarray, seed: int = 0, octaves: int = 3) -> np.ndarray:
    """Sum of `octaves` value noises, each half as large and half as strong as the one before; 0..1."""
    total, strength = np.zeros(points.shape[:-1]), 0.0
    for octave in range(octaves):
        total += noise(points * 2.0**octave + 17.3 * octave, seed + octave) * 0.5**octave
        strength += 0.5**octave
    return total / strength


def wood(points: np.ndarray, light: np.ndarray, dark: np.ndarray, ring: float, seed: int = 0) -> np.ndarray:
    """Year rings about an axis near z, `ring` world units apart, softly wavering: [..., 3]."""
    wobble = cloud(points * np.array([3.0, 3.0, 0.8]), seed) - 0.5
    radius = np.hypot(points[..., 0] + 0.05 * points[..., 2], points[..., 1]) + 0.10 * wobble
    saw = radius / ring - np.floor(radius / ring)
    late = step(0.55, saw, 0.7) * (1.0 - step(0.94, saw, 0.12))
    streak = cloud(points * np.array([14.0, 14.0, 1.5]), seed + 7, octaves=2) - 0.5
    return np.clip(mix(light, dark, 0.75 * late) * (1.0 + 0.16 * streak)[..., None], 0.0, 1.0)
