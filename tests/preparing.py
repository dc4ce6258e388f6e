"""Photos for `gsopt prepare`, drawn by COLMAP, whose cameras are known; and a run of the command.

A folder has everything that photos of people have: subfolders, endings in capitals, photos that lie on their
side, one that does not decode, one of a wall.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, FOCAL = 640, 480, 800.0
SIDEWAYS = 6  # EXIF orientation: to be turned clockwise by a quarter


def draw_photos(folder: Path, count: int = 6) -> dict[str, np.ndarray]:
    """PNGs 0.png, 1.png, ... in a folder; their camera centres [3] by name."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, count
    options.num_points3D = 150
    options.camera_width, options.camera_height = WIDTH, HEIGHT
    options.camera_params = [FOCAL, WIDTH / 2, HEIGHT / 2, 0.05]
    model = pycolmap.synthesize_dataset(options)
    folder.mkdir(parents=True)
    pycolmap.synthesize_images(pycolmap.SyntheticImageOptions(), model, folder)
    centers = {}
    for number, image in enumerate(sorted(model.images.values(), key=lambda image: image.name)):
        (folder / image.name).replace(folder / f"{number}.png")
        centers[f"{number}.png"] = image.projection_center()
    return centers


def make_untidy(folder: Path, centers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put photos of `draw_photos` in subfolders and other formats, and others beside; the centres again."""
    names = {"0.png": "first/a.JPG", "1.png": "first/b.jpeg", "2.png": "second/a.jpg", "3.png": "c.tif"}
    for old, new in names.items():
        path = folder / new
        path.parent.mkdir(exist_ok=True)
        with Image.open(folder / old) as image:
            exif = image.getexif()
            if new == "second/a.jpg":
                exif[0x0112] = SIDEWAYS
                image = image.transpose(Image.Transpose.ROTATE_90)
            image.save(
                path, exif=exif, **({} if path.suffix == ".tif" else {"quality": 97, "subsampling": 0})
            )
        (folder / old).unlink()
    Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(folder / "wall.png")
    (folder / "broken.jpg").write_bytes((folder / "first/a.JPG").read_bytes()[:2000])
    (folder / "notes.txt").write_text("not a photo")
    (folder / ".hidden.png").write_text("nor this")
    names["3.png"] = "c.tif.png"  # COLMAP gets it as PNG
    return {names.get(name, name): center for name, center in centers.items()}


def aligned_error(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest distance of `found` [P, 3], moved by the best similarity, from `truth`, by its extent."""
    a, b = found - found.mean(0), truth - truth.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)  # Umeyama 1991
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = (s * sign.diagonal()).sum() / (a**2).sum()
    error = scale * a @ (u @ sign @ vt).T - b
    return np.linalg.norm(error, axis=1).max() / np.linalg.norm(b, axis=1).max()


def start(*flags: object) -> subprocess.Popen:
    """`gsopt prepare` in a process of its own."""
    command = [sys.executable, str(ROOT / "scripts" / "prepare.py"), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(scene: Path) -> dict[str, bytes]:
    """Every file of a scene but its report, which has seconds in it."""
    return {
        path.relative_to(scene).as_posix(): path.read_bytes()
        for path in sorted(scene.rglob("*"))
        if path.is_file() and path.name != "prepare.json"
    }
