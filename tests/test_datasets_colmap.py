"""COLMAP scenes: what load_scene makes of each variant of a model."""

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import scenes
import torch
from PIL import Image

from gsopt.cameras import cameras_extent
from gsopt.datasets import load_scene

VARIANTS = {
    "binary with rigs": {},
    "binary before COLMAP 3.12": {"rigs": False},
    "text": {"text": True},
    "three cameras": {"cameras": 3},
    "simple pinhole": {"model": "SIMPLE_PINHOLE"},
    "photos in subfolders": {"names": "left/{:04d}.png"},
}


@pytest.mark.parametrize("how", VARIANTS.values(), ids=VARIANTS)
def test_each_variant_gives_the_same_cameras_photos_and_points(tmp_path, how):
    scene = load_scene(scenes.write_colmap(tmp_path, views=10, **how))
    assert (scene.format, scene.path, scene.has_alpha) == ("colmap", tmp_path, False)
    name = how.get("names", "{:04d}.png")
    assert [view.camera.name for view in scene.test] == [name.format(0), name.format(8)]
    assert [view.camera.name for view in scene.train] == [name.format(i) for i in (1, 2, 3, 4, 5, 6, 7, 9)]

    truth = scenes.orbit(10)
    for view in (*scene.train, *scene.test):
        expected = truth[int(Path(view.camera.name).stem)]
        torch.testing.assert_close(view.camera.viewmat, expected.viewmat)
        torch.testing.assert_close(view.camera.K, expected.K)
        assert view.camera.K.dtype == view.camera.viewmat.dtype == torch.float32
        assert (view.camera.width, view.camera.height) == (32, 24)
        assert view.image.dtype == torch.uint8
        np.testing.assert_array_equal(view.image, scenes.picture(expected))
        assert view.path == tmp_path / "images" / view.camera.name
    assert scene.extent == cameras_extent([view.camera for view in scene.train])

    xyz, rgb = scenes.ball_points(200)
    np.testing.assert_array_equal(scene.points.xyz, xyz)
    torch.testing.assert_close(scene.points.rgb, torch.from_numpy(rgb) / 255)


def test_the_model_may_stand_in_sparse_itself(tmp_path):
    scenes.write_colmap(tmp_path)
    for path in (tmp_path / "sparse" / "0").iterdir():
        path.rename(tmp_path / "sparse" / path.name)
    assert len(load_scene(tmp_path).train) == 5


@pytest.mark.parametrize("photos", ["images", "colmap/images"])
def test_the_model_may_stand_in_colmap(tmp_path, photos):
    """As nerfstudio leaves it, where its transforms.json is not there."""
    scenes.write_colmap(tmp_path)
    (tmp_path / "colmap").mkdir()
    (tmp_path / "sparse").rename(tmp_path / "colmap" / "sparse")
    (tmp_path / "images").rename(tmp_path / photos)
    scene = load_scene(tmp_path)
    assert len(scene.train) == 5
    assert scene.train[0].path.parent == tmp_path / photos


def test_transforms_json_comes_before_the_model_it_was_made_from(tmp_path):
    scenes.write_transforms(tmp_path, points=7)
    scenes.write_colmap(tmp_path / "colmap")
    assert load_scene(tmp_path).format == "transforms"


def test_photos_that_are_not_in_the_model_are_ignored(tmp_path, recwarn):
    """What COLMAP could not place still lies in images/, beside what is no photo at all."""
    scenes.write_colmap(tmp_path)
    scenes.save_picture(tmp_path / "images" / "unregistered.png", scenes.orbit(1)[0])
    (tmp_path / "images" / "broken.jpg").write_text("not a photo")
    (tmp_path / "images" / "Thumbs.db").write_text("")
    scene = load_scene(tmp_path)
    assert len(scene.train) + len(scene.test) == 6
    assert not recwarn.list


def test_images_of_the_model_without_a_pose_are_ignored(tmp_path):
    """COLMAP 3.12 and later keep images whose frame was taken out again."""
    scenes.write_colmap(tmp_path)
    folder = tmp_path / "sparse" / "0"
    model = pycolmap.Reconstruction(folder)
    model.deregister_frame(model.find_image_with_name("0002.png").frame_id)
    model.write_binary(folder)
    scene = load_scene(tmp_path, test_every=0)
    names = [view.camera.name for view in scene.train]
    assert names == ["0000.png", "0001.png", "0003.png", "0004.png", "0005.png"]


@pytest.mark.parametrize("names", ["{:04d}.PNG", "DSC{:04d}.JPG", "Left-Camera/{:04d}.Jpeg", "é/{:04d}.png"])
def test_names_are_kept_as_they_are(tmp_path, names):
    scene = load_scene(scenes.write_colmap(tmp_path, names=names), test_every=0)
    assert [view.camera.name for view in scene.train] == [names.format(i) for i in range(6)]


def test_photos_smaller_than_their_camera(tmp_path):
    """The model was made from the full photos, of which only reduced ones are there."""
    scenes.write_colmap(tmp_path, width=64, height=48)
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            image.reduce(2).save(path)
    truth = scenes.orbit(6)
    for view in load_scene(tmp_path, test_every=0).train:
        expected = truth[int(Path(view.camera.name).stem)]
        torch.testing.assert_close(view.camera.K, expected.K)
        assert (view.camera.width, view.camera.height) == (32, 24)
        assert np.abs(view.image.numpy() - scenes.picture(expected).astype(float)).mean() < 2.0


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photos_that_colmap_has_seen_as_they_are_stored_stay_so(tmp_path, orientation):
    """COLMAP does not turn photos by their EXIF tag, so neither do we where they fit their camera."""
    scenes.write_colmap(tmp_path)
    plain = load_scene(tmp_path, test_every=0).train
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = orientation
            image.save(path, exif=exif)
    for view, same in zip(load_scene(tmp_path, test_every=0).train, plain, strict=True):
        torch.testing.assert_close(view.image, same.image)


def test_binary_is_read_where_both_are_there(tmp_path):
    scenes.write_colmap(tmp_path)
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text("not this one")
    assert len(load_scene(tmp_path).train) == 5


@pytest.mark.parametrize(("test_every", "test"), [(0, []), (2, [0, 2, 4]), (3, [0, 3]), (8, [0]), (100, [0])])
def test_each_so_many_th_of_the_sorted_names_is_a_test_view(tmp_path, test_every, test):
    scene = load_scene(scenes.write_colmap(tmp_path), test_every=test_every)
    names = [f"{i:04d}.png" for i in range(6)]
    assert [view.camera.name for view in scene.test] == [names[i] for i in test]
    assert [view.camera.name for view in scene.train] == [names[i] for i in range(6) if i not in test]


LENSES = {  # parameters after the principal point
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (0.1,),
    "RADIAL": (0.1, -0.05),
    "OPENCV": (0.08, -0.05, 0.01, -0.01),
    "FULL_OPENCV": (0.08, -0.05, 0.01, -0.01, 0.02, 0.01, -0.01, 0.01),
    "SIMPLE_FISHEYE": (),
    "FISHEYE": (),
    "SIMPLE_RADIAL_FISHEYE": (0.05,),
    "RADIAL_FISHEYE": (0.05, -0.02),
    "OPENCV_FISHEYE": (0.05, -0.02, 0.01, -0.01),
    "THIN_PRISM_FISHEYE": (0.05, -0.02, 0.005, -0.005, 0.01, 0.0, 0.002, -0.002),
    "RAD_TAN_THIN_PRISM_FISHEYE": (0.05, -0.02, 0.01, 0.0, 0.0, 0.0, 0.005, -0.005, 0.002, 0.0, -0.002, 0.0),
    "FOV": (0.5,),
    "SIMPLE_DIVISION": (-0.1,),
    "DIVISION": (-0.1,),
    "EUCM": (0.6, 1.1),
}
PANORAMAS = {"EQUIRECTANGULAR"}  # refused: test_datasets_refusals


def test_every_lens_of_colmap_is_tried():
    known = set(pycolmap.CameraModelId.__members__) - {"INVALID"} - PANORAMAS
    assert known <= set(LENSES)


@pytest.mark.parametrize(("model", "distortion"), LENSES.items(), ids=LENSES)
def test_distorted_photos_become_what_a_pinhole_sees(tmp_path, model, distortion):
    scenes.write_colmap(tmp_path, views=3, width=96, height=72, model=model, distortion=distortion)
    for view in load_scene(tmp_path).train:
        straight = scenes.picture(view.camera).astype(float)
        assert np.abs(view.image.numpy() - straight).mean() < 2.0
        assert (view.image.shape[1], view.image.shape[0]) == (view.camera.width, view.camera.height)


@pytest.mark.parametrize("resolution", [48, 30])
def test_distorted_photos_are_reduced_with_their_cameras(tmp_path, resolution):
    scenes.write_colmap(tmp_path, views=3, width=192, height=144, model="OPENCV", distortion=LENSES["OPENCV"])
    for view in load_scene(tmp_path, resolution=resolution).train:
        assert max(view.image.shape[:2]) == resolution
        assert np.abs(view.image.numpy() - scenes.picture(view.camera).astype(float)).mean() < 4.0


def test_cameras_of_a_rig_have_their_own_poses(tmp_path):
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 2, 4
    options.num_points3D, options.camera_width, options.camera_height = 30, 32, 24
    model = pycolmap.synthesize_dataset(options)
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    model.write_binary(tmp_path / "sparse" / "0")
    for image in model.images.values():
        path = tmp_path / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        pycolmap.Bitmap.from_array(np.zeros((24, 32, 3), np.uint8)).write(path)

    scene = load_scene(tmp_path, test_every=0)
    assert len(scene.train) == 8
    for view in scene.train:
        image = model.find_image_with_name(view.camera.name)
        np.testing.assert_allclose(view.camera.viewmat[:3], image.cam_from_world().matrix(), atol=1e-5)


def test_init_replaces_the_points(tmp_path):
    scenes.write_colmap(tmp_path)
    xyz, rgb = scenes.ball_points(7, seed=1)
    path = scenes.write_points(tmp_path / "init.ply", xyz, rgb)
    np.testing.assert_array_equal(load_scene(tmp_path, init=path).points.xyz, xyz)


def test_init_makes_up_for_a_model_without_points(tmp_path):
    scenes.write_colmap(tmp_path, points=0)
    path = scenes.write_points(tmp_path / "init.ply", *scenes.ball_points(7))
    assert len(load_scene(tmp_path, init=path).points.xyz) == 7


def test_one_camera_place_takes_its_extent_from_the_points(tmp_path):
    scenes.write_colmap(tmp_path, views=2)
    with pytest.warns(UserWarning, match="all 1 train cameras stand at one place"):
        scene = load_scene(tmp_path)
    center = scene.train[0].camera.center
    assert scene.extent == pytest.approx((scene.points.xyz - center).norm(dim=1).median().item())
