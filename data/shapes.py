"""Triangle meshes of the built-in scene: lathes, tubes, ellipsoids and rounded boxes, numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with smooth outward normals and the parameters its surface was built from."""

    vertices: np.ndarray  # [V, 3] world units
    faces: np.ndarray  # [F, 3] indices, anticlockwise seen from outside
    normals: np.ndarray  # [V, 3] unit length
    uv: np.ndarray  # [V, 2] u around 0..1, v along 0..1

    def transformed(self, rotation: np.ndarray, translation) -> Mesh:
        """Rotate (rotation [3, 3], orthonormal), then move (translation [3])."""
        return replace(
            self,
            vertices=self.vertices @ rotation.T + np.asarray(translation, dtype=float),
            normals=self.normals @ rotation.T,
        )

    def moved(self, x: float, y: float, z: float) -> Mesh:
        """Move by (x, y, z) world units."""
        return self.transformed(np.eye(3), (x, y, z))

    def deformed(self, displace) -> Mesh:
        """Replace the vertices by `displace(vertices)` and compute the normals anew."""
        vertices = displace(self.vertices)
        return replace(self, vertices=vertices, normals=vertex_normals(vertices, self.faces))


def joined(*meshes: Mesh) -> Mesh:
    """One mesh of several, in order."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
    )


def rotation(axis: str, degrees: float) -> np.ndarray:
    """Right-handed rotation [3, 3] about the world axis "x", "y" or "z"."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def frame_from_direction(direction, up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """Rotation [3, 3] whose columns are: along `direction`, sideways, and the rest (nearest to `up`)."""
    x = np.asarray(direction, dtype=float)
    x = x / np.linalg.norm(x)
    y = np.cross(np.asarray(up, dtype=float), x)
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals [V, 3]; vertices at the same place (poles, seams) share one normal."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    per_face = np.cross(b - a, c - a)
    _, place = np.unique(np.round(vertices, 7), axis=0, return_inverse=True)
    place = place.reshape(-1)
    sums = np.zeros((place.max() + 1, 3))
    for corner in range(3):
        np.add.at(sums, place[faces[:, corner]], per_face)
    normals = sums[place]
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def points(text: str) -> np.ndarray:
    """Control points [P, D] of a text such as "0.1 0, 0.2 0.05, 0.1 0.3"."""
    return np.array([[float(number) for number in point.split()] for point in text.split(",")])


def curve(control, samples: int) -> np.ndarray:
    """Centripetal Catmull-Rom spline through `control` [P, D], at equal arc lengths: [samples, D]."""
    control = np.asarray(control, dtype=float)
    padded = np.concatenate([[2 * control[0] - control[1]], control, [2 * control[-1] - control[-2]]])
    pieces = []
    for i in range(len(control) - 1):
        p = padded[i : i + 4]
        t = np.concatenate([[0.0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(p, axis=0), axis=1)))])
        s = np.linspace(t[1], t[2], 64, endpoint=False)[:, None]
        a = [((t[k + 1] - s) * p[k] + (s - t[k]) * p[k + 1]) / (t[k + 1] - t[k]) for k in range(3)]
        b = [((t[k + 2] - s) * a[k] + (s - t[k]) * a[k + 1]) / (t[k + 2] - t[k]) for k in range(2)]
        pieces.append(((t[2] - s) * b[0] + (s - t[1]) * b[1]) / (t[2] - t[1]))
    dense = np.concatenate([*pieces, control[-1:]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    at = np.linspace(0.0, length[-1], samples)
    return np.stack([np.interp(at, length, dense[:, d]) for d in range(dense.shape[1])], axis=1)


def grid_mesh(rings: np.ndarray) -> Mesh:
    """Mesh over rings [R, S, 3] of S points each; every ring is closed, u starts anew at its first point."""
    count, around = rings.shape[:2]
    rings = np.concatenate([rings, rings[:, :1]], axis=1)
    index = np.arange(count * (around + 1)).reshape(count, around + 1)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    vertices = rings.reshape(-1, 3)
    u = np.tile(np.linspace(0.0, 1.0, around + 1), count)
    v = np.repeat(np.linspace(0.0, 1.0, count), around + 1)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), np.stack([u, v], axis=1))


def lathe(profile, along: int = 256, around: int = 320) -> Mesh:
    """Turn the curve through `profile` [P, 2] of (radius, height), from the bottom up, about the z axis."""
    radius, height = curve(profile, along).T
    angle = np.linspace(0.0, 2 * np.pi, around, endpoint=False)
    radius = np.maximum(radius, 0.0)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rings = np.concatenate(
        [radius[:, None, None] * ring, np.broadcast_to(height[:, None, None], (along, around, 1))], axis=2
    )
    return grid_mesh(rings)


def tube(path, radii, along: int = 96, around: int = 48, flatten: float = 1.0) -> Mesh:
    """Sweep a round section along the curve through `path` [P, 3]; the ends are closed by half spheres.

    radii: [P], interpolated along the curve; flatten scales the section across its first axis.
    """
    samples = curve(
        np.concatenate([np.asarray(path, float), np.asarray(radii, float)[:, None]], axis=1), along
    )
    centre, radius = samples[:, :3], samples[:, 3]
    tangent = np.gradient(centre, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    cap = np.linspace(0.0, np.pi / 2, 10)[:-1]
    centre = np.concatenate(
        [
            centre[0] - radius[0] * np.cos(cap)[:, None] * tangent[0],
            centre,
            centre[-1] + radius[-1] * np.sin(np.pi / 2 - cap)[::-1, None] * tangent[-1],
        ]
    )
    radius = np.concatenate([radius[0] * np.sin(cap), radius, (radius[-1] * np.sin(cap))[::-1]])
    tangent = np.concatenate([np.tile(tangent[0], (9, 1)), tangent, np.tile(tangent[-1], (9, 1))])
    side = np.cross(tangent[0], (0.31, 0.87, 0.38))
    angle = np.linspace(0.0, 2 * np.pi, around, endpoint=False)[:, None]
    rings = []
    for c, r, t in zip(centre, radius, tangent, strict=True):
        side = side - t * (side @ t)  # parallel transport: no twist about the curve
        side /= np.linalg.norm(side)
        other = np.cross(t, side)
        rings.append(c + r * (flatten * np.cos(angle) * side + np.sin(angle) * other))
    return grid_mesh(np.stack(rings))


def ellipsoid(radii, along: int = 96, around: int = 128) -> Mesh:
    """Ellipsoid at the origin with half axes `radii` (x, y, z)."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, along)
    angle = np.linspace(0.0, 2 * np.pi, around, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), np.ones_like(angle)], axis=1)
    scale = np.stack([np.cos(latitude), np.cos(latitude), np.sin(latitude)], axis=1)
    return grid_mesh(scale[:, None] * ring[None] * np.asarray(radii, float))


def rounded_box(half, radius: float, cells: int = 72) -> Mesh:
    """Box at the origin with half sizes `half` (x, y, z) and edges rounded to `radius`."""
    half = np.asarray(half, float)
    line = np.linspace(-1.0, 1.0, cells)
    s, t = np.meshgrid(line, line, indexing="ij")
    index = np.arange(cells * cells).reshape(cells, cells)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    square = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    parts = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            cube = np.empty((cells * cells, 3))
            cube[:, axis] = sign
            cube[:, (axis + 1) % 3] = s.reshape(-1)
            cube[:, (axis + 2) % 3] = t.reshape(-1)
            inner = np.clip(cube * half, radius - half, half - radius)
            outward = cube * half - inner
            outward /= np.linalg.norm(outward, axis=1, keepdims=True)
            faces = square if sign > 0 else square[:, ::-1]
            uv = np.stack([s.reshape(-1), t.reshape(-1)], axis=1) * 0.5 + 0.5
            parts.append(Mesh(inner + radius * outward, faces, outward, uv))
    return joined(*parts)
