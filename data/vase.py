"""The striped vase of the built-in scene with its leaves and flowers."""

from __future__ import annotations

import numpy as np
from item import CORAL, CREAM, MUSTARD, NAVY, SAGE, Item, angle_of, plain
from patterns import mix, noise, rgb, step, stripes
from shapes import Mesh, ellipsoid, frame_from_direction, joined, lathe, points, tube

VASE_AT = np.array([0.40, 0.46, 0.0])


def vase() -> list[Item]:
    """A tall vase with stripes that twist about it."""
    body = lathe(
        points(
            "0 0.002, 0.12 0.002, 0.145 0.015, 0.185 0.1, 0.215 0.22, 0.205 0.34, 0.15 0.46, "
            "0.095 0.54, 0.085 0.59, 0.105 0.645, 0.112 0.655, 0.102 0.655, 0.075 0.59, 0.08 0.5, "
            "0 0.4"
        ),
        along=420,
        around=512,
    )
    z, turn = body.vertices[:, 2], angle_of(body.vertices)
    color = mix(np.tile(CREAM, (len(z), 1)), CORAL, stripes(11 * turn + 2.6 * z, 0.5, 0.14))
    color = mix(color, NAVY, (1.0 - step(0.045, z, 0.012)) + step(0.535, z, 0.012) - step(0.615, z, 0.012))
    color = mix(color, CREAM, step(0.615, z, 0.012))
    inside = (np.sum(body.normals[:, :2] * body.vertices[:, :2], axis=1) < 0) & (z > 0.39)
    color[inside] = rgb("b8a68a")
    return [Item("vase", body.moved(*VASE_AT), color, "satin")]


def _leaf(length: float, width: float, at, direction, seed: int) -> tuple[Mesh, np.ndarray]:
    """A bent, pointed leaf that starts at `at` and grows along `direction`, with its colour."""
    blade = ellipsoid((length / 2, width / 2, 0.011), along=72, around=96).moved(length / 2, 0, 0)
    along, side = blade.vertices[:, 0] / length, blade.vertices[:, 1] / (width / 2)
    vein = np.exp(-((side / 0.14) ** 2)) * 0.55
    ribs = 0.22 * stripes(6 * along - 1.1 * np.abs(side), 0.3, 0.4)
    tone = mix(SAGE * 0.80, SAGE * 1.12, noise(np.stack([along * 4, side * 2, side * 0 + seed], 1), seed))
    color = mix(tone, rgb("c3d2a4"), np.maximum(vein, ribs))

    def bend(v: np.ndarray) -> np.ndarray:
        t = v[:, 0] / length
        return np.stack(
            [v[:, 0], v[:, 1] * (1.15 - 0.55 * t), v[:, 2] + 0.18 * length * (t - 1.6 * t * t)], axis=1
        )

    return blade.deformed(bend).transformed(frame_from_direction(direction), at), np.clip(color, 0, 1)


def plant() -> list[Item]:
    """Leafy twigs and three yellow button flowers in the vase."""
    mouth = VASE_AT + np.array([0.0, 0.0, 0.50])
    twigs = [(20, 0.30, 0.52), (95, 0.26, 0.60), (165, 0.30, 0.46), (235, 0.22, 0.62), (305, 0.28, 0.54)]
    meshes, colors, stems = [], [], []
    for index, (degrees, reach, height) in enumerate(twigs):
        out = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0])
        path = [
            mouth + out * reach * s**1.6 + np.array([0, 0, height * s]) for s in (0.0, 0.3, 0.6, 0.85, 1.0)
        ]
        stems.append(tube(path, [0.013, 0.013, 0.012, 0.011, 0.009], along=64, around=24))
        for k, s in enumerate((0.48, 0.66, 0.82, 0.97)):
            at = mouth + out * reach * s**1.6 + np.array([0, 0, height * s])
            turn = np.radians(degrees + (70 if k % 2 else -70) * (1 if k < 3 else 0))
            direction = np.array([np.cos(turn), np.sin(turn), 0.45 if k < 3 else 0.75])
            mesh, color = _leaf(0.215 - 0.012 * k, 0.115 - 0.006 * k, at, direction, 10 * index + k)
            meshes.append(mesh)
            colors.append(color)
    items = [Item("leaves", joined(*meshes), np.concatenate(colors), "satin")]
    buttons = []
    for degrees, reach, height in ((60, 0.10, 0.60), (190, 0.14, 0.52), (290, 0.07, 0.46)):
        out = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0])
        path = [mouth + out * reach * s**1.5 + np.array([0, 0, height * s]) for s in (0.0, 0.35, 0.7, 1.0)]
        stems.append(tube(path, [0.012, 0.012, 0.012, 0.012], along=64, around=24))
        ball = ellipsoid((0.066, 0.066, 0.062))
        ball = ball.deformed(lambda v: v * (1.0 + 0.07 * (noise(v * 55.0, 4) - 0.5))[:, None])
        buttons.append(ball.moved(*path[-1]))
    flower = joined(*buttons)
    specks = mix(MUSTARD, rgb("dc9a2a"), step(0.5, noise(flower.vertices * 42.0, 9), 0.6))
    stem = joined(*stems)
    return [
        *items,
        Item("buttons", flower, specks, "matte"),
        Item("stems", stem, plain(stem, rgb("6f7f4b")), "satin"),
    ]
