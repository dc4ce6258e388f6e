"""Teapot, cup and saucer of the built-in scene, in one family of teal glaze."""

from __future__ import annotations

import numpy as np
from item import CORAL, CREAM, MUSTARD, NAVY, Item, angle_of, plain
from patterns import band, cloud, mix, rgb, step, stripes
from shapes import Mesh, ellipsoid, lathe, points, rotation, tube


def _glazed(mesh: Mesh, seed: int) -> np.ndarray:
    """Teal glaze that pools darker below and breaks to a lighter tone at the top, with soft clouds."""
    z = mesh.vertices[:, 2]
    tone = np.clip((z - z.min()) / np.ptp(z), 0.0, 1.0)
    clouds = cloud(mesh.vertices * 7.0, seed) - 0.5
    return mix(rgb("1f6f78"), rgb("58aaa3"), np.clip(tone + 0.9 * clouds, 0, 1))


def _spout() -> tuple[Mesh, np.ndarray]:
    """The teapot's spout, towards +x, and its colour."""
    spout = tube(
        points("0.27 0 0.15, 0.37 0 0.19, 0.45 0 0.29, 0.5 0 0.4, 0.575 0 0.47"),
        [0.105, 0.085, 0.060, 0.045, 0.040],
        along=160,
        around=80,
    )
    spout_color = mix(_glazed(spout, 13), CREAM, step(0.545, spout.vertices[:, 0], 0.012))
    return spout, spout_color


def _handle() -> tuple[Mesh, np.ndarray]:
    """The teapot's handle, towards -x, wrapped in cane between glazed ends, and its colour."""
    handle = tube(
        points("-0.24 0 0.42, -0.36 0 0.47, -0.49 0 0.44, -0.53 0 0.31, -0.47 0 0.19, -0.33 0 0.13"),
        [0.035, 0.036, 0.036, 0.036, 0.034, 0.032],
        along=260,
        around=64,
    )
    wrap = stripes(handle.uv[:, 1] * 17 + handle.uv[:, 0], 0.5, 0.25)
    handle_color = mix(rgb("c98f4e"), rgb("7d4a22"), wrap * band(0.17, 0.83, handle.uv[:, 1], 0.01))
    ends = 1.0 - band(0.17, 0.83, handle.uv[:, 1], 0.02)
    handle_color = mix(handle_color, rgb("2a7a80"), ends)
    return handle, handle_color


def teapot() -> list[Item]:
    """A round teapot: teal glaze, a cream belt with leaves, brass knob and a cane-wrapped handle."""
    body = lathe(
        points(
            "0 0, 0.17 0, 0.205 0.012, 0.21 0.03, 0.27 0.07, 0.345 0.17, 0.365 0.27, 0.335 0.38, "
            "0.26 0.455, 0.19 0.49, 0.17 0.505, 0.155 0.5, 0 0.5"
        ),
        along=420,
        around=640,
    )
    z, turn = body.vertices[:, 2], angle_of(body.vertices)
    color = _glazed(body, 11)
    belt = band(0.185, 0.345, z, 0.010)
    color = mix(color, CREAM, belt)
    color = mix(color, NAVY, belt * band(0.203, 0.213, z, 0.008))
    color = mix(color, NAVY, belt * band(0.317, 0.327, z, 0.008))
    across = (turn * 14) % 1.0 - 0.5
    lean = (z - 0.265) * np.where(np.floor(turn * 14) % 2 < 1, 7.0, -7.0)
    leaf = 0.30 * np.sqrt(np.clip(1.0 - ((z - 0.265) / 0.043) ** 2, 0.0, 1.0))
    color = mix(color, CORAL, belt * step(0.0, leaf - np.abs(across - 0.5 * lean), 0.12))
    lid = lathe(
        points("0 0.495, 0.165 0.495, 0.185 0.505, 0.182 0.52, 0.15 0.55, 0.09 0.575, 0.03 0.585, 0 0.586"),
        along=200,
    )
    lid_color = mix(_glazed(lid, 12), CREAM, band(0.513, 0.527, lid.vertices[:, 2], 0.008))
    knob = ellipsoid((0.05, 0.05, 0.046)).moved(0, 0, 0.628)
    parts = [
        ("teapot body", body, color, "glaze"),
        ("teapot lid", lid, lid_color, "glaze"),
        ("teapot spout", *_spout(), "glaze"),
        ("teapot knob", knob, plain(knob, MUSTARD), "brass"),
        ("teapot handle", *_handle(), "satin"),
    ]
    spin = rotation("z", 205)
    return [Item(name, mesh.transformed(spin, (-0.33, 0.20, 0.002)), c, m) for name, mesh, c, m in parts]


def cup() -> list[Item]:
    """Cup and saucer of the teapot's family, with tea in it."""
    bowl = lathe(
        points(
            "0 0.03, 0.075 0.03, 0.085 0.04, 0.12 0.075, 0.142 0.13, 0.15 0.185, 0.146 0.193, "
            "0.138 0.188, 0.13 0.14, 0.105 0.085, 0.06 0.06, 0 0.058"
        ),
        along=260,
        around=360,
    )
    z = bowl.vertices[:, 2]
    inside = np.sum(bowl.normals[:, :2] * bowl.vertices[:, :2], axis=1) < 0
    color = mix(_glazed(bowl, 21), CREAM, step(0.145, z, 0.010))
    color = mix(color, NAVY, band(0.151, 0.159, z, 0.008))
    color[inside] = CREAM
    tea = lathe(points("0 0.15, 0.07 0.15, 0.1335 0.15"), along=24, around=128)
    ear = tube(
        points("0.133 0 0.155, 0.185 0 0.165, 0.212 0 0.125, 0.185 0 0.085, 0.118 0 0.08"),
        [0.016, 0.018, 0.019, 0.018, 0.016],
        along=96,
        around=40,
    )
    saucer = lathe(
        points(
            "0 0.002, 0.1 0.002, 0.12 0.006, 0.19 0.022, 0.243 0.045, 0.247 0.052, 0.238 0.053, "
            "0.185 0.036, 0.12 0.022, 0 0.02"
        ),
        along=240,
        around=400,
    )
    radius, turn = np.hypot(saucer.vertices[:, 0], saucer.vertices[:, 1]), angle_of(saucer.vertices)
    plate = mix(np.tile(CREAM, (len(radius), 1)), rgb("2a7f84"), step(0.215, radius, 0.010))
    plate = mix(plate, CORAL, band(0.160, 0.195, radius, 0.010) * stripes(20 * turn, 0.5, 0.15))
    plate = mix(plate, rgb("2a7f84"), step(0.0, -saucer.normals[:, 2], 0.1))
    parts = [
        ("cup", bowl, color, "glaze"),
        ("tea", tea, plain(tea, rgb("8a4a1c")), "glaze"),
        ("cup ear", ear, _glazed(ear, 22), "glaze"),
        ("saucer", saucer, plate, "glaze"),
    ]
    spin = rotation("z", -35)
    return [Item(name, mesh.transformed(spin, (-0.16, -0.54, 0.002)), c, m) for name, mesh, c, m in parts]
