"""Points to start from where a scene has none: random in what the cameras see, coloured by the photos.

What that is worth, in dB on test views after 500 steps without densification: lego of NeRF-synthetic at
200x200, 10,000 points: 23.8, of grey 22.6, uniform in [-1.3, 1.3]^3 with random colours as in the original
3DGS 19.3. The photos of instant-ngp's `data/nerf/fox` at 135x240, 8,100 points: 20.9, of random colours
19.6.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gsopt.datasets.scene import PointCloud, View
from gsopt.errors import InputError

MAX_POINTS = 100_000  # the number of the original 3DGS for NeRF-synthetic scenes
MIN_POINTS = 1_000
_PIXELS_PER_POINT = 4
_VIEWS = 50  # at most so many, evenly taken, decide where points are and their colour
_SEEN = 1 / 3  # of the number of views that see the best-seen point
_OPAQUE = 0.9  # share of the views seeing a point in which its pixel is not fully transparent
_BATCHES = 20  # of candidates, at most


def random_points(views: Sequence[View], *, seed: int, volume: str, count: int | None = None) -> PointCloud:
    """Random points in the cameras' common viewing volume, each of the mean colour of the pixels that see it.

    `count` points; by default one per four pixels of a photo, from 1,000 to 100,000.

    The cameras look at a focus, the point nearest to all their optical axes, from a median distance d.
    Candidates are, with volume "box" (for objects, NeRF-synthetic), uniform in the cube around the focus that
    fills the narrower field of view at distance d; with "frustums" (for surroundings), on rays of random
    pixels at depths log-uniform in d/3..3d. Those stay that are seen by at least a third as many views as the
    best-seen one.

    Photos with alpha carve: a point stays if its pixel is not fully transparent in 90% of the views that see
    it (silhouettes; Laurentini 1994); the points are then uniform in what is left. If nothing is, alpha
    carves nothing.

    Deterministic: same views, seed and count, same points. Raises InputError if no candidate is
    seen, or too few for a `count` that was given.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    rig = _Rig(
        [views[i] for i in np.linspace(0, len(views) - 1, min(_VIEWS, len(views))).round().astype(int)]
    )
    pixels = np.mean([view.camera.width * view.camera.height for view in views])
    wanted = count or int(np.clip(pixels / _PIXELS_PER_POINT, MIN_POINTS, MAX_POINTS))
    batch = max(wanted, MIN_POINTS)
    draw = rig.box() if volume == "box" else rig.frustums

    carving = any(image.shape[-1] == 4 for image in rig.images)
    if carving:
        xyz, _ = rig.keep(draw(_uniform(generator, batch)), carving)
        carving = len(xyz) > 0
        if carving:
            margin = 0.1 * (xyz.max(axis=0) - xyz.min(axis=0))
            draw = _box(xyz.min(axis=0) - margin, xyz.max(axis=0) + margin)
    batches: list[tuple[np.ndarray, np.ndarray]] = []
    total = 0
    while total < wanted and len(batches) < _BATCHES:
        batches.append(rig.keep(draw(_uniform(generator, batch)), carving))
        total += len(batches[-1][0])
    if total == 0:
        raise InputError(
            f"{views[0].path}: this photo and the other {len(views) - 1} see no common volume to draw "
            "random points from; check the camera matrices (OpenGL axes), or give points with --init FILE.ply"
        )
    if count is not None and total < count:
        raise InputError(
            f"--init-points {count}: {views[0].path} and the other {len(views) - 1} photos see only {total} "
            f"of {len(batches) * batch:,} random points together; give a lower number, or --init FILE.ply"
        )
    xyz, rgb = (np.concatenate(column)[:wanted].astype(np.float32) for column in zip(*batches, strict=True))
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb))


def _uniform(generator: torch.Generator, rows: int) -> np.ndarray:
    """[rows, 4] float64 in 0..1."""
    return torch.rand(rows, 4, generator=generator, dtype=torch.float64, device="cpu").numpy()


def _box(low: np.ndarray, high: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uniform numbers [P, 4] to points [P, 3] of a box."""
    return lambda random: low + (high - low) * random[:, :3]


class _Rig:
    """The cameras as arrays, and what they look at."""

    def __init__(self, views: Sequence[View]) -> None:
        cameras = [view.camera for view in views]
        self.images = [view.image.numpy() for view in views]
        self.sizes = np.array([(camera.width, camera.height) for camera in cameras], np.float64)  # [C, 2]
        self.K = np.stack([camera.K.double().numpy() for camera in cameras])  # [C, 3, 3]
        self.viewmats = np.stack([camera.viewmat.double().numpy() for camera in cameras])  # [C, 4, 4]
        self.centers = np.stack([camera.center.double().numpy() for camera in cameras])  # [C, 3]
        self.focus, self.distance = self._focus()

    def _focus(self) -> tuple[np.ndarray, float]:
        """The point nearest to the optical axes in the sense of squares [3], and the cameras' distance to it.

        Weakly drawn to a point ahead of the cameras, which decides where their axes are parallel.
        """
        forward = self.viewmats[:, 2, :3]  # [C, 3]
        spread = np.linalg.norm(self.centers - self.centers.mean(axis=0), axis=1).max()
        ahead = (self.centers + (spread or 1.0) * forward).mean(axis=0)
        across = np.eye(3) - np.einsum("ci,cj->cij", forward, forward)  # [C, 3, 3] projections off the axes
        weight = 1e-3
        left = across.mean(axis=0) + weight * np.eye(3)
        right = np.einsum("cij,cj->ci", across, self.centers).mean(axis=0) + weight * ahead
        focus = np.linalg.solve(left, right)
        distance = float(np.median(np.linalg.norm(self.centers - focus, axis=1)))
        return focus, max(distance, spread) or 1.0

    def box(self) -> Callable[[np.ndarray], np.ndarray]:
        """Draws from the cube around the focus that fills the narrower field of view."""
        tangents = (0.5 * self.sizes / self.K[:, [0, 1], [0, 1]]).min(axis=1)  # [C] of half the angle
        half = self.distance * np.median(tangents)
        return _box(self.focus - half, self.focus + half)

    def frustums(self, random: np.ndarray) -> np.ndarray:
        """[P, 3] points along the rays of random pixels of random cameras, from uniform numbers [P, 4]."""
        which = (random[:, 0] * len(self.K)).astype(int)  # [P]
        K, viewmats = self.K[which], self.viewmats[which]
        pixels = random[:, 1:3] * self.sizes[which]  # [P, 2]
        flat = (pixels - K[:, :2, 2]) / K[:, [0, 1], [0, 1]]
        depth = self.distance * 3.0 ** (2.0 * random[:, 3:] - 1.0)  # [P, 1]
        local = np.concatenate([flat, np.ones_like(depth)], axis=1) * depth  # [P, 3] camera axes
        return np.einsum("pji,pj->pi", viewmats[:, :3, :3], local) + self.centers[which]

    def keep(self, xyz: np.ndarray, carving: bool) -> tuple[np.ndarray, np.ndarray]:
        """Those of the points [P, 3] that enough views see, with their colours."""
        seen, opaque, color = self.look(xyz)
        stays = seen >= max(1.0, _SEEN * seen.max())
        if carving:
            stays &= opaque >= _OPAQUE * seen
        return xyz[stays], color[stays]

    def look(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the photos say about points [P, 3].

        Returns in how many views each is seen [P], in how many its pixel is not fully transparent [P], and
        the mean colour 0..1 of those pixels [P, 3] (0.5 where there are none).
        """
        seen, opaque, color = np.zeros(len(xyz)), np.zeros(len(xyz)), np.zeros((len(xyz), 3))
        for image, K, viewmat in zip(self.images, self.K, self.viewmats, strict=True):
            # einsum, not BLAS: the same bits whatever its number of threads
            local = np.einsum("ij,pj->pi", viewmat[:3, :3], xyz) + viewmat[:3, 3]  # [P, 3]
            front = np.flatnonzero(local[:, 2] > 0)
            pixels = np.floor(local[front, :2] / local[front, 2:] * K[[0, 1], [0, 1]] + K[:2, 2])
            inside = ((pixels >= 0) & (pixels < image.shape[1::-1])).all(axis=1)
            rows, (column, line) = front[inside], pixels[inside].astype(int).T
            sampled = image[line, column]  # [Q, 3 or 4]
            seen[rows] += 1
            if sampled.shape[1] == 4:
                solid = sampled[:, 3] > 0
                rows, sampled = rows[solid], sampled[solid]
            opaque[rows] += 1
            color[rows] += sampled[:, :3] / 255.0
        return seen, opaque, np.where(opaque[:, None] > 0, color / np.maximum(opaque, 1)[:, None], 0.5)
