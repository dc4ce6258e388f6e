"""Tiny scenes on disk for tests: a coloured ball seen from a ring of cameras, its pictures computed exactly.

    scene = scenes.write_colmap(tmp_path)                   # 6 photos of 32x24, binary model, 200 points
    scene = scenes.write_nerf_synthetic(tmp_path)           # 6 train, 2 test RGBA pictures of 24x24
    scene = scenes.write_transforms(tmp_path, k1=0.1)       # one transforms.json, distorted photos

Each returns the folder it filled. The ball has radius 1 and stands at the origin; the cameras look at it.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gsopt.cameras import Camera

SKY = (40, 50, 60)  # colour of what is not ball in pictures without alpha


def orbit(count: int, width: int = 32, height: int = 24, distance: float = 4.0) -> list[Camera]:
    """`count` cameras around the ball at different heights, named 0000.png, 0001.png, ..."""
    return [
        _look_at_origin(
            f"{i:04d}.png", width, height, distance, 2 * math.pi * i / count, 0.6 * math.sin(2.0 * i)
        )
        for i in range(count)
    ]


def _look_at_origin(
    name: str, width: int, height: int, distance: float, azimuth: float, elevation: float
) -> Camera:
    direction = np.array(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    forward = -direction
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    viewmat = np.eye(4)
    viewmat[:3, :3] = [right, np.cross(forward, right), forward]  # x right, y down, z forward
    viewmat[:3, 3] = -viewmat[:3, :3] @ (distance * direction)
    focal = 1.4 * min(width, height)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Camera(name, width, height, K, torch.tensor(viewmat, dtype=torch.float32))


def ball_color(xyz: np.ndarray) -> np.ndarray:
    """Colour 0..1 of points [P, 3] on the ball: smooth, different everywhere."""
    return 0.5 + 0.45 * np.sin(3.0 * xyz + np.array([0.0, 1.0, 2.0]))


def ball_points(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random points of the ball: xyz float32 [P, 3], rgb uint8 [P, 3]."""
    xyz = np.random.default_rng(seed).normal(size=(count, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    return xyz.astype(np.float32), np.rint(255 * ball_color(xyz)).astype(np.uint8)


def picture(
    camera: Camera, *, alpha: bool = False, model: str = "PINHOLE", distortion: tuple = ()
) -> np.ndarray:
    """The ball as `camera` sees it: uint8 [H, W, 3], or [H, W, 4] with straight alpha; 3x3 rays per pixel.

    `model`, `distortion`: the lens, a COLMAP camera model and its parameters after the principal point.
    """
    fine = camera.resized(3 * camera.width, 3 * camera.height)
    hits, color = _cast(fine, _rays(fine, model, distortion))
    hits = hits.reshape(camera.height, 3, camera.width, 3).mean(axis=(1, 3))[..., None]  # [H, W, 1] coverage
    color = (
        color.reshape(camera.height, 3, camera.width, 3, 3).sum(axis=(1, 3)) / 9
    )  # [H, W, 3] premultiplied
    if alpha:
        straight = np.divide(color, hits, out=np.zeros_like(color), where=hits > 0)
        return np.rint(255 * np.concatenate([straight, hits], axis=-1)).astype(np.uint8)
    return np.rint(255 * color + np.array(SKY) * (1 - hits)).astype(np.uint8)


def _rays(camera: Camera, model: str, distortion: tuple) -> np.ndarray:
    """[H * W, 3] directions through the pixel centres, camera axes."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)  # [H * W, 2]
    K = camera.K.numpy().astype(np.float64)
    if distortion:
        import pycolmap

        params = lens_params(camera, model, distortion)
        lens = pycolmap.Camera(model=model, width=camera.width, height=camera.height, params=params)
        flat = lens.cam_from_img(pixels)
    else:
        flat = (pixels - K[:2, 2]) / K[[0, 1], [0, 1]]
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)


def lens_params(camera: Camera, model: str, distortion: tuple) -> list[float]:
    """The parameters of a COLMAP camera model: one or two focal lengths, the principal point, distortion."""
    (fx, _, cx), (_, fy, cy), _ = camera.K.tolist()
    focal = [fx] if model.startswith(("SIMPLE", "RADIAL")) else [fx, fy]
    return [*focal, cx, cy, *distortion]


def _cast(camera: Camera, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet the unit ball: hit 0/1 [H * W], colour there [H * W, 3] (0 where missed)."""
    directions = rays @ camera.viewmat[:3, :3].numpy().astype(np.float64)  # world axes
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origin = camera.center.numpy().astype(np.float64)
    along = -directions @ origin  # distance to the point of the ray nearest to the ball's centre
    inside = 1.0 - (origin @ origin - along**2)
    hit = inside > 0
    xyz = origin + (along - np.sqrt(np.where(hit, inside, 0.0)))[:, None] * directions
    return hit.astype(np.float64), ball_color(xyz) * hit[:, None]


def depth(camera: Camera) -> np.ndarray:
    """z of the ball along the axis of `camera` at the centres of pixels: float32 [H, W], 0 where missed."""
    rays = _rays(camera, "PINHOLE", ())  # z = 1
    turned = rays @ camera.viewmat[:3, :3].numpy().astype(np.float64)  # world axes
    origin = camera.center.numpy().astype(np.float64)
    a, b, c = (turned**2).sum(1), turned @ origin, origin @ origin - 1  # a z^2 + 2 b z + c = 0
    root = b**2 - a * c
    z = np.where(root > 0, (-b - np.sqrt(root.clip(min=0))) / a, 0)
    return z.reshape(camera.height, camera.width).astype(np.float32)


def save_picture(path: Path, camera: Camera, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(camera, **how)).save(path)


def write_points(path: Path, xyz: np.ndarray, rgb: np.ndarray, *, text: bool = False) -> Path:
    """A coloured point cloud as PLY: x y z float, red green blue uchar."""
    from plyfile import PlyData, PlyElement

    vertex = np.empty(len(xyz), [*((n, "f4") for n in "xyz"), *((n, "u1") for n in ("red", "green", "blue"))])
    for name, column in zip(vertex.dtype.names, [*xyz.T, *rgb.T], strict=True):
        vertex[name] = column
    PlyData([PlyElement.describe(vertex, "vertex")], text=text).write(path)
    return path


def write_colmap(
    folder: Path,
    *,
    views: int = 6,
    width: int = 32,
    height: int = 24,
    points: int = 200,
    text: bool = False,
    rigs: bool = True,
    cameras: int = 1,
    model: str = "PINHOLE",
    distortion: tuple = (),
    names: str = "{:04d}.png",
) -> Path:
    """images/ and sparse/0: a COLMAP model as text or binary, binary with or without rigs.bin and frames.bin.

    `cameras` of them are shared by the views in turn; `distortion`: parameters after the principal point.
    """
    model_folder = folder / "sparse" / "0"
    model_folder.mkdir(parents=True)
    shots = [replace(c, name=names.format(i)) for i, c in enumerate(orbit(views, width, height))]
    for shot in shots:
        save_picture(folder / "images" / shot.name, shot, model=model, distortion=distortion)
    _write_colmap_text(model_folder, shots, cameras, model, distortion, *ball_points(points))
    if not text:
        import pycolmap

        pycolmap.Reconstruction(model_folder).write_binary(model_folder)
        for path in model_folder.iterdir():
            if path.suffix == ".txt" or (not rigs and path.stem in ("rigs", "frames")):
                path.unlink()
    return folder


def _write_colmap_text(
    folder: Path, shots: list, cameras: int, model: str, distortion: tuple, xyz, rgb
) -> None:
    from scipy.spatial.transform import Rotation

    params = " ".join(map(repr, lens_params(shots[0], model, distortion)))
    size = f"{shots[0].width} {shots[0].height}"
    (folder / "cameras.txt").write_text("".join(f"{i + 1} {model} {size} {params}\n" for i in range(cameras)))
    lines = []
    for i, shot in enumerate(shots):
        x, y, z, w = Rotation.from_matrix(shot.viewmat[:3, :3].numpy()).as_quat().tolist()
        pose = " ".join(map(repr, [w, x, y, z, *shot.viewmat[:3, 3].tolist()]))
        lines.append(f"{i + 1} {pose} {i % cameras + 1} {shot.name}\n\n")  # the empty line: no 2D points
    (folder / "images.txt").write_text("".join(lines))
    rows = zip(xyz.tolist(), rgb.tolist(), strict=True)
    (folder / "points3D.txt").write_text(
        "".join(
            f"{i + 1} {x!r} {y!r} {z!r} {r} {g} {b} 0.5\n" for i, ((x, y, z), (r, g, b)) in enumerate(rows)
        )
    )


def opengl_c2w(camera: Camera) -> list[list[float]]:
    """Camera-to-world matrix with OpenGL axes (x right, y up, z backward), as transforms.json has it."""
    c2w = np.linalg.inv(camera.viewmat.numpy().astype(np.float64))
    c2w[:3, 1:3] *= -1.0
    return c2w.tolist()


def write_nerf_synthetic(
    folder: Path, *, train: int = 6, test: int = 2, size: int = 24, points: int | None = 200
) -> Path:
    """transforms_train.json, transforms_test.json, RGBA pictures; points3d.ply unless `points` is None."""
    shots = orbit(train + test, size, size)
    angle = 2 * math.atan(0.5 * size / shots[0].K[0, 0].item())
    for split, part in (("train", shots[:train]), ("test", shots[train:])):
        frames = []
        for i, shot in enumerate(part):
            save_picture(folder / split / f"r_{i}.png", shot, alpha=True)
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": opengl_c2w(shot)})
        (folder / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": angle, "frames": frames})
        )
    if points is not None:
        write_points(folder / "points3d.ply", *ball_points(points))
    return folder


def write_transforms(
    folder: Path,
    *,
    views: int = 6,
    width: int = 32,
    height: int = 24,
    points: int | None = None,
    **distortion: float,
) -> Path:
    """images/ and one transforms.json with fl_x, fl_y, cx, cy, w, h and what of k1, k2, p1, p2 is given."""
    shots = orbit(views, width, height)
    lens = tuple(distortion.get(key, 0.0) for key in ("k1", "k2", "p1", "p2")) if distortion else ()
    frames = []
    for shot in shots:
        save_picture(folder / "images" / shot.name, shot, model="OPENCV", distortion=lens)
        frames.append({"file_path": f"images/{shot.name}", "transform_matrix": opengl_c2w(shot)})
    K = shots[0].K.tolist()
    content = {
        "fl_x": K[0][0],
        "fl_y": K[1][1],
        "cx": K[0][2],
        "cy": K[1][2],
        "w": width,
        "h": height,
    } | distortion
    if points is not None:
        write_points(folder / "points.ply", *ball_points(points))
        content["ply_file_path"] = "points.ply"
    (folder / "transforms.json").write_text(json.dumps(content | {"frames": frames}))
    return folder
