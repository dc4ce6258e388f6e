"""Render the built-in scene into data/scene: photos in NeRF-synthetic layout and a sparse point cloud.

    pip install mitsuba==3.9.1 numpy pillow plyfile
    python data/make_scene.py                  # resumes: pictures that exist are kept; 20 to 30 minutes
    python data/make_scene.py --preview 4      # four quick pictures into a temporary folder, to look at

The same command gives the same files: every random number is seeded, and rendering runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import drjit as dr
import mitsuba as mi
import numpy as np
from item import MATERIALS, Item
from patterns import to_linear, to_srgb
from PIL import Image
from points import write_points
from still_life import still_life
from views import SIZE, camera_angle_x, mitsuba_pose, split_poses

SUPER = 2  # pictures are rendered this many times larger, then filtered down
SPLITS = ("train", "test", "val")


def mitsuba_mesh(item: Item) -> mi.Mesh:
    """The item's mesh with its colours as a vertex attribute and its material."""
    bsdf = dict(MATERIALS[item.material])
    bsdf["base_color" if bsdf["type"] == "principled" else "reflectance"] = {
        "type": "mesh_attribute",
        "name": "vertex_color",
    }
    props = mi.Properties()
    props["mesh_bsdf"] = mi.load_dict({"type": "twosided", "bsdf": bsdf})
    mesh = mi.Mesh(
        item.name.replace(" ", "_"),
        len(item.mesh.vertices),
        len(item.mesh.faces),
        props,
        has_vertex_normals=True,
    )
    mesh.add_attribute("vertex_color", 3, to_linear(item.color).astype(np.float32).ravel())
    params = mi.traverse(mesh)
    params["vertex_positions"] = item.mesh.vertices.astype(np.float32).ravel()
    params["vertex_normals"] = item.mesh.normals.astype(np.float32).ravel()
    params["faces"] = item.mesh.faces.astype(np.uint32).ravel()
    params.update()
    return mesh


def soft_box(origin, size: float, color, samples: float) -> dict:
    """A square light of half side `size` at `origin` that faces the scene.

    color is linear radiance [3]; samples: the light's share of the light samples, relative to the others.
    """
    pose = mi.ScalarTransform4f().look_at(origin=list(origin), target=[0, 0, 0.2], up=[0, 0, 1])
    return {
        "type": "rectangle",
        "to_world": pose @ mi.ScalarTransform4f().scale(size),
        "emitter": {
            "type": "area",
            "radiance": {"type": "rgb", "value": list(color)},
            "sampling_weight": samples,
        },
    }


def build_scene() -> mi.Scene:
    """Objects and lights: a warm soft box, a cool one across from it, and even light from all around."""
    scene = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 5, "rr_depth": 10, "hide_emitters": True},
        "around": {
            "type": "constant",
            "radiance": {"type": "rgb", "value": [0.42, 0.44, 0.47]},
            "sampling_weight": 1.5,
        },
        "key": soft_box((-3.4, -3.6, 6.2), 1.7, (11.0, 9.7, 8.0), 2.5),
        "fill": soft_box((5.2, 2.6, 4.6), 1.6, (1.9, 2.2, 2.7), 0.6),
    }
    for item in still_life():
        scene[item.name.replace(" ", "_")] = mitsuba_mesh(item)
    return mi.load_dict(scene)


def sensor(pose: np.ndarray, spp: int) -> mi.Sensor:
    """The camera of an OpenGL camera-to-world matrix [4, 4]; principal point in the centre."""
    return mi.load_dict(
        {
            "type": "perspective",
            "fov": float(np.degrees(camera_angle_x())),
            "fov_axis": "x",
            "near_clip": 0.1,
            "far_clip": 100.0,
            "to_world": mi.ScalarTransform4f(mitsuba_pose(pose)),
            "sampler": {"type": "multijitter", "sample_count": spp},
            "film": {
                "type": "hdrfilm",
                "width": SIZE * SUPER,
                "height": SIZE * SUPER,
                "pixel_format": "rgba",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
        }
    )


def halve(image: np.ndarray) -> np.ndarray:
    """Filter [2H, 2W, C] down to [H, W, C] with the separable kernel 1 3 3 1."""
    for axis in (0, 1):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        wide = np.moveaxis(np.pad(image, padding, mode="edge"), axis, 0)
        image = np.moveaxis((wide[:-3:2] + 3 * wide[1:-2:2] + 3 * wide[2:-1:2] + wide[3::2]) / 8, 0, axis)
    return image


def tone(linear: np.ndarray) -> np.ndarray:
    """Linear light to 0..1: unchanged up to 0.7, highlights roll off smoothly to 1."""
    over = np.maximum(linear - 0.7, 0.0)
    return np.where(linear > 0.7, 0.7 + 0.3 * (1 - np.exp(-over / 0.3)), linear)


def photograph(scene: mi.Scene, pose: np.ndarray, spp: int, seed: int) -> Image.Image:
    """One RGBA picture of SIZE x SIZE pixels, sRGB, straight alpha."""
    raw = np.array(mi.render(scene, sensor=sensor(pose, spp), spp=spp, seed=seed), dtype=np.float64)
    raw[..., :3] = np.minimum(raw[..., :3], 4.0)  # a rare bright path must not make a white dot
    small = halve(raw)
    alpha = np.clip(small[..., 3:], 0.0, 1.0)
    straight = small[..., :3] / np.maximum(alpha, 1e-6)  # the film holds premultiplied colour
    pixels = np.concatenate([to_srgb(tone(straight)), alpha], axis=2)
    pixels = np.round(pixels * 255).astype(np.uint8)
    pixels[pixels[..., 3] == 0] = 0
    return Image.fromarray(pixels, "RGBA")


def write_transforms(folder: Path, split: str, poses: np.ndarray) -> None:
    """transforms_SPLIT.json in NeRF-synthetic layout."""
    frames = [
        {
            "file_path": f"./{split}/r_{i}",
            "transform_matrix": [[round(float(x), 9) for x in row] for row in pose],
        }
        for i, pose in enumerate(poses)
    ]
    content = {"camera_angle_x": camera_angle_x(), "frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(content, indent=1) + "\n")


def render_split(scene: mi.Scene, folder: Path, split: str, spp: int, count: int | None = None) -> None:
    """Render the pictures of a split that are not there yet."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    poses = split_poses(split)[:count]
    for index, pose in enumerate(poses):
        path = folder / split / f"r_{index}.png"
        if path.exists():
            continue
        start = time.perf_counter()
        image = photograph(scene, pose, spp, seed=1000 * SPLITS.index(split) + index)
        partial = path.with_suffix(".partial")
        image.save(partial, format="PNG", optimize=True)
        partial.rename(path)
        print(f"{split} {index + 1}/{len(poses)}: {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    """Parse, render, and write the points."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "scene")
    parser.add_argument("--spp", type=int, default=36, help="samples per rendered pixel (default 36)")
    parser.add_argument("--variant", default="scalar_rgb", help="Mitsuba variant")
    parser.add_argument("--preview", type=int, metavar="N", help="render N pictures into a temporary folder")
    args = parser.parse_args()
    mi.set_variant(args.variant)
    dr.set_thread_count(1)  # so that the bits do not depend on the machine
    scene = build_scene()
    if args.preview:
        folder = Path(tempfile.mkdtemp(prefix="scene-preview-"))
        render_split(scene, folder, "train", args.spp, args.preview)
        print(f"written to {folder}")
        return
    for split in SPLITS:
        args.output.mkdir(parents=True, exist_ok=True)
        write_transforms(args.output, split, split_poses(split))
        render_split(scene, args.output, split, args.spp)
    write_points(scene, args.output)


if __name__ == "__main__":
    main()
