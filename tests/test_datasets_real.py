"""Scenes of real photos, kept beside the repository, and the scene that ships with it."""

import numpy as np
import pycolmap
import pytest
import torch

from gsopt.datasets import load_scene

# name: (format, train, test, longest side, points, extent, alpha), as the scenes' own READMEs say
SCENES = {
    "fox": ("colmap", 43, 7, 960, 13960, 4.824, False),
    "banana": ("colmap", 12, 2, 960, 5961, 5.198, False),
    "brighton_aerial": ("colmap", 15, 3, 960, 6775, 5.510, False),
    "fox_opencv_txt": ("colmap", 43, 7, 473, 5414, 4.824, False),
    "fox_transforms": ("transforms", 43, 7, 473, 31454, 4.312, False),
    "lego": ("nerf-synthetic", 100, 50, 200, 10000, 5.202, True),
}


@pytest.mark.parametrize("name", SCENES)
def test_counts_sizes_and_extent(shared, name):
    scene = load_scene(shared / "scenes" / name)
    found = (scene.format, len(scene.train), len(scene.test), max(scene.train[0].image.shape[:2]))
    assert (*found, len(scene.points.xyz), pytest.approx(scene.extent, rel=1e-3), scene.has_alpha) == SCENES[
        name
    ]
    for view in (*scene.train, *scene.test):
        assert view.image.dtype == torch.uint8
        assert tuple(view.image.shape[:2]) == (view.camera.height, view.camera.width)


def test_half_size_photos_are_those_of_images_2(shared):
    scene = load_scene(shared / "scenes" / "fox", resolution=480)
    assert {view.path.parent.name for view in (*scene.train, *scene.test)} == {"images_2"}
    assert scene.train[0].camera.name == "0002.jpg"
    assert [view.camera.name for view in scene.test][:2] == ["0001.jpg", "0012.jpg"]
    K = scene.train[0].camera.K
    expected = torch.tensor([696.13945649, 695.57743806, 277.279, 482.634]) / 2
    torch.testing.assert_close(torch.stack([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]), expected)


@pytest.mark.parametrize(
    ("name", "error", "mirrored"),
    [("fox", 13, 50), ("fox_opencv_txt", 16, 50), ("banana", 9, 30), ("brighton_aerial", 20, 50)],
)
def test_points_fall_on_pixels_of_their_colour(shared, name, error, mirrored):
    """Mean difference 0..255 over the points that COLMAP found in each photo; mirrored photos as control."""
    scene = load_scene(shared / "scenes" / name, resolution=480)
    model = pycolmap.Reconstruction(shared / "scenes" / name / "sparse" / "0")
    found = {False: [], True: []}
    for view in scene.train[::5]:
        image = model.find_image_with_name(view.camera.name)
        seen = [model.points3D[p.point3D_id] for p in image.points2D if p.has_point3D()]
        xyz = torch.tensor(np.array([point.xyz for point in seen]), dtype=torch.float32)  # [P, 3]
        color = torch.tensor(np.array([point.color for point in seen]))  # [P, 3] uint8
        x, y, inside = project(view.camera, xyz)
        for mirror, columns in ((False, x), (True, view.camera.width - 1 - x)):
            difference = view.image[y[inside], columns[inside]].float() - color[inside].float()
            found[mirror].append(difference.abs().mean().item())
    assert np.mean(found[False]) < error
    assert np.mean(found[True]) > mirrored


def project(camera, xyz):
    """The column and row of the pixels on which points fall [P], and whether they are in the picture [P]."""
    pixels = (xyz @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]) @ camera.K.T  # [P, 3]
    x, y = (pixels[:, :2] / pixels[:, 2:]).floor().long().T
    return x, y, (pixels[:, 2] > 0) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)


def test_undistorted_photos_agree_with_those_that_colmap_undistorted(shared):
    """fox_opencv_txt is fox with the lens left in: once undistorted, the same photo at common rays."""
    straight = {v.camera.name: v for v in load_scene(shared / "scenes" / "fox", resolution=480).train}
    for view in load_scene(shared / "scenes" / "fox_opencv_txt").train[::10]:
        other = straight[view.camera.name]
        torch.testing.assert_close(view.camera.viewmat, other.camera.viewmat, atol=1e-4, rtol=1e-4)
        height, width = view.image.shape[:2]
        y, x = torch.meshgrid(torch.arange(20, height - 20), torch.arange(20, width - 20), indexing="ij")
        rays = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], dim=-1) @ view.camera.K.inverse().T
        u, v = (rays @ other.camera.K.T)[..., :2].floor().long().unbind(dim=-1)
        difference = (view.image[y, x].float() - other.image[v, u].float()).abs().mean()
        shifted = (view.image[y, x].float() - other.image[v, u + 6].float()).abs().mean()
        assert difference < 7
        assert difference < 0.5 * shifted


def test_poses_of_transforms_json_are_colmaps_after_a_similarity(shared):
    colmap = load_scene(shared / "scenes" / "fox", resolution=60)
    other = load_scene(shared / "scenes" / "fox_transforms", resolution=60)
    assert [v.camera.name for v in colmap.train] == [v.camera.name for v in other.train]
    a = torch.stack([view.camera.center for view in colmap.train]).double()
    b = torch.stack([view.camera.center for view in other.train]).double()
    a_mean, b_mean = a.mean(dim=0), b.mean(dim=0)
    u, s, vt = torch.linalg.svd((b - b_mean).T @ (a - a_mean))  # Umeyama 1991
    sign = torch.diag(torch.tensor([1.0, 1.0, torch.det(u @ vt).sign()], dtype=torch.float64))
    rotation = u @ sign @ vt
    scale = (s * sign.diag()).sum() / ((a - a_mean) ** 2).sum()
    residual = scale * (a - a_mean) @ rotation.T + b_mean - b
    assert scale == pytest.approx(0.8935, abs=2e-3)
    assert residual.norm(dim=1).mean() < 0.005
    for view, same in zip(colmap.train, other.train, strict=True):
        turn = same.camera.viewmat[:3, :3].double() @ rotation @ view.camera.viewmat[:3, :3].double().T
        assert (turn - torch.eye(3)).abs().max() < 0.01


def test_listed_photos_that_are_not_there_are_left_out_with_one_warning(shared):
    folder = shared / "scenes" / "fox_transforms"
    with pytest.warns(UserWarning, match="17 of 67 photos are not in .* 0005.jpg, 0016.jpg") as caught:
        scene = load_scene(folder / "transforms_with_missing.json", resolution=60)
    assert len(caught) == 1
    assert [v.camera.name for v in scene.test] == [
        v.camera.name for v in load_scene(folder, resolution=60).test
    ]


def test_random_points_of_an_object_are_inside_its_silhouettes_hull(shared):
    points = load_scene(shared / "scenes" / "lego").points.xyz
    low, high = points.min(dim=0).values, points.max(dim=0).values
    assert (low - torch.tensor([-0.64, -1.12, -0.62])).abs().max() < 0.25  # the hull in the scene's README
    assert (high - torch.tensor([0.64, 1.15, 1.00])).abs().max() < 0.1


def test_the_scene_of_the_repository(builtin_scene):
    if not (builtin_scene / "transforms_test.json").is_file():
        pytest.skip("the built-in scene is not there")
    scene = load_scene(builtin_scene)
    assert (scene.format, scene.has_alpha) == ("nerf-synthetic", True)
    assert len(scene.train) >= 50
    assert len(scene.test) >= 15
    assert len(scene.points.xyz) >= 100
    for view in scene.test:
        assert project(view.camera, scene.points.xyz)[2].float().mean() > 0.8
