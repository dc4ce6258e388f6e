"""What every object of the built-in scene shares: its record, the palette, the materials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from patterns import rgb
from shapes import Mesh

CREAM, TEAL, NAVY = rgb("f3e8d2"), rgb("2f8a8c"), rgb("23405c")
CORAL, MUSTARD, SAGE = rgb("e2664a"), rgb("efb83c"), rgb("7fa06c")
OAK, WALNUT = (rgb("dcb27c"), rgb("ab7440")), (rgb("8f5a35"), rgb("55301a"))

# Mitsuba plug-in of each material; the colour of the surface is put in by make_scene.py.
MATERIALS = {
    "glaze": {"type": "principled", "roughness": 0.32, "specular": 0.7},
    "satin": {"type": "principled", "roughness": 0.50, "specular": 0.4},
    "matte": {"type": "diffuse"},
    "brass": {"type": "principled", "roughness": 0.48, "metallic": 0.9, "specular": 0.6},
}


@dataclass(frozen=True)
class Item:
    """One object: mesh in world units, sRGB colour [V, 3] of its vertices, material."""

    name: str
    mesh: Mesh
    color: np.ndarray
    material: str


def plain(mesh: Mesh, color: np.ndarray) -> np.ndarray:
    """One colour for all vertices: [V, 3]."""
    return np.tile(color, (len(mesh.vertices), 1))


def angle_of(points: np.ndarray) -> np.ndarray:
    """Angle about the z axis in turns, 0..1."""
    return np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1.0
