"""The objects of the built-in scene, placed. z is up; they stand on z = 0, the top of a round board."""

from __future__ import annotations

import numpy as np
from item import CORAL, CREAM, MUSTARD, NAVY, OAK, TEAL, WALNUT, Item, angle_of, plain
from patterns import band, cloud, mix, noise, rgb, step, stripes, wood
from shapes import ellipsoid, lathe, points, rotation, rounded_box, tube
from teaware import cup, teapot
from vase import plant, vase


def still_life() -> list[Item]:
    """Every object of the scene, placed."""
    return [*base(), *teapot(), *cup(), *vase(), *plant(), *blocks(), checker_ball(), *fruit()]


def base() -> list[Item]:
    """A round walnut board with a woven cloth on it."""
    board = lathe(
        points(
            "0 -0.13, 0.55 -0.13, 0.99 -0.13, 1.05 -0.125, 1.075 -0.1, 1.08 -0.07, 1.075 -0.035, "
            "1.055 -0.008, 1.025 -0.003, 0.6 -0.003, 0 -0.003"
        ),
        along=420,
        around=512,
    )
    grain = board.vertices @ rotation("y", 84).T + np.array([0.0, 0.25, 0.3])
    board_color = wood(grain * np.array([1.0, 1.0, 0.6]), WALNUT[0], WALNUT[1], ring=0.13, seed=3)
    cloth = lathe(points("0 0, 0.5 0, 0.96 0, 0.978 -0.002, 0.985 -0.006"), along=420, around=640)
    radius = np.hypot(cloth.vertices[:, 0], cloth.vertices[:, 1])
    turn = angle_of(cloth.vertices)
    color = np.tile(CREAM * 0.97, (len(radius), 1))
    scallop = 0.865 + 0.035 * np.abs(np.sin(np.pi * 28 * turn))
    color = mix(color, TEAL, step(0.0, radius - scallop, 0.012) * (1 - step(0.945, radius, 0.012)))
    color = mix(color, CORAL, band(0.77, 0.80, radius, 0.012))
    color = mix(color, NAVY, band(0.655, 0.715, radius, 0.012) * stripes(36 * turn, 0.5, 0.10))
    petals = 0.50 + 0.06 * np.cos(2 * np.pi * 12 * turn)
    color = mix(color, MUSTARD, band(-0.02, 0.02, radius - petals, 0.014))
    color = mix(color, TEAL, band(0.10, 0.36, radius - 0.03 * np.cos(2 * np.pi * 12 * turn), 0.014) * 0.55)
    weave = cloud(cloth.vertices * 26.0, seed=5, octaves=2) - 0.5
    color = np.clip(color * (1.0 + 0.14 * weave)[:, None], 0.0, 1.0)
    return [Item("board", board, board_color, "satin"), Item("cloth", cloth, color, "matte")]


def blocks() -> list[Item]:
    """Three wooden blocks in a stack; the middle one is painted."""
    items = []
    for index, (half, turn, offset, paint) in enumerate(
        [(0.165, 14, (0.0, 0.0), None), (0.135, 52, (-0.012, 0.015), TEAL), (0.105, 24, (0.012, -0.01), None)]
    ):
        box = rounded_box((half, half, half), 0.022, cells=150)
        local = box.vertices
        color = wood(
            local @ rotation("x", 90).T + np.array([0.13, 0.1, 0]), *OAK, ring=0.055, seed=30 + index
        )
        if paint is not None:
            flat = np.sort(np.abs(local) / half, axis=1)
            inset = step(0.0, 0.70 - flat[:, 1], 0.06) * step(0.93, flat[:, 2], 0.03)
            dots = np.hypot(flat[:, 0], flat[:, 1]) * half
            color = mix(np.tile(MUSTARD, (len(local), 1)), CREAM, inset)
            color = mix(color, CORAL, (1 - step(0.055, dots, 0.012)) * step(0.93, flat[:, 2], 0.03))
        z = sum((0.165, 0.135, 0.105)[:index]) * 2 + half + 0.002
        mesh = box.transformed(rotation("z", turn), (0.60 + offset[0], -0.20 + offset[1], z))
        items.append(Item(f"block {index}", mesh, color, "satin"))
    return items


def checker_ball() -> Item:
    """A ball with a checker of navy and cream and a coral belt."""
    ball = ellipsoid((0.175, 0.175, 0.175), along=360, around=512)
    latitude = np.arcsin(np.clip(ball.vertices[:, 2] / 0.175, -1, 1)) / np.pi + 0.5
    one = (
        np.clip(np.sin(2 * np.pi * 5 * ball.uv[:, 0]) * np.sin(2 * np.pi * 3.5 * latitude) / 0.16, -1, 1)
        * 0.5
        + 0.5
    )
    color = mix(np.tile(CREAM, (len(one), 1)), NAVY, one)
    color = mix(color, CORAL, band(0.465, 0.535, latitude, 0.02))
    mesh = ball.transformed(rotation("z", 20) @ rotation("x", 28), (0.27, -0.66, 0.177))
    return Item("checker ball", mesh, color, "glaze")


def fruit() -> list[Item]:
    """Two pears in front of the teapot and two lemons behind it."""
    items = []
    for index, (x, y, lean, turn) in enumerate([(-0.70, -0.28, 9, 200), (-0.53, -0.52, -7, 120)]):
        pear = lathe(
            points(
                "0 0.004, 0.05 0, 0.1 0.03, 0.133 0.095, 0.125 0.165, 0.085 0.225, 0.06 0.275, "
                "0.045 0.305, 0.018 0.317, 0 0.312"
            ),
            along=180,
            around=240,
        )
        pear = pear.deformed(lambda v: v * (1.0 + 0.05 * (noise(v * 9.0, 51) - 0.5))[:, None])
        z, side = pear.vertices[:, 2], pear.vertices[:, 0] / 0.13
        blush = np.clip(0.75 * side + 0.8 * (cloud(pear.vertices * 9.0, 52 + index) - 0.5), 0, 1)
        color = mix(mix(rgb("b9bd3f"), rgb("dcc354"), z / 0.32), rgb("c9562f"), 0.85 * blush)
        stalk = tube(
            points("0 0 0.3, 0.004 0 0.335, 0.016 0 0.375"), [0.010, 0.010, 0.013], along=40, around=24
        )
        pose = rotation("z", turn) @ rotation("y", lean)
        items.append(Item(f"pear {index}", pear.transformed(pose, (x, y, 0.008)), color, "satin"))
        items.append(
            Item(
                f"stalk {index}", stalk.transformed(pose, (x, y, 0.008)), plain(stalk, rgb("5b3d22")), "matte"
            )
        )
    for index, (x, y, turn) in enumerate([(-0.12, 0.74, 35), (-0.42, 0.78, -20)]):
        lemon = lathe(
            points(
                "0 -0.165, 0.018 -0.162, 0.034 -0.145, 0.075 -0.115, 0.112 -0.05, 0.118 0.02, "
                "0.095 0.09, 0.05 0.135, 0.024 0.148, 0 0.15"
            ),
            along=180,
            around=240,
        )
        peel = cloud(lemon.vertices * 22.0, 61 + index, octaves=2)
        color = mix(rgb("e9b92c"), rgb("f6d858"), peel)
        color = mix(color, rgb("a5a548"), 0.7 * step(0.128, np.abs(lemon.vertices[:, 2]), 0.03))
        mesh = lemon.transformed(rotation("z", turn) @ rotation("y", 86), (x, y, 0.119))
        items.append(Item(f"lemon {index}", mesh, color, "satin"))
    return items
