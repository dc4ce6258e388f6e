"""`gsopt view`, seen from the other end of its connection; without a browser."""

import threading
from contextlib import contextmanager

import pytest
import scenes
import torch
from viewing import Page

from gsopt.camera_files import read_cameras
from gsopt.commands import main
from gsopt.commands.view import ViewConfig, open_viewer
from gsopt.config import TrainConfig
from gsopt.formats import read
from gsopt.model import GaussianModel
from gsopt.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and its scene."""
    folder = tmp_path_factory.mktemp("view")
    scene = scenes.write_nerf_synthetic(folder / "ball", points=60)
    config = TrainConfig(
        scene=scene, output=folder / "run", iterations=30, sh_degree=1, device="cpu", quiet=True
    )
    Trainer(config).train()
    return folder / "run"


@contextmanager
def viewing(config: ViewConfig):
    """The viewer, working in a thread of its own, and a page that looks at it."""
    viewer, ends = open_viewer(config), threading.Event()

    def work():
        while not ends.is_set():
            viewer.look()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with Page(viewer.address, viewer.sight.cameras[0]) as page:
            yield viewer, page
    finally:
        ends.set()
        thread.join()
        from gsopt.viewer.server import close_server

        close_server(viewer.server)


def test_a_run_is_shown_from_its_cameras_with_its_photos(run):
    with viewing(ViewConfig(source=run, port=0)) as (viewer, page):
        page.wait(lambda: len(page.of_type("CameraFrustumMessage")) == 6, "the cameras")
        assert viewer.sight.background.tolist() == [1, 1, 1]  # photos with transparency
        assert len(page.of_type("CameraFrustumMessage")[0]["props"]["_image_data"]) > 100
        image = viewer._render(viewer.sight.cameras[0].fitted(80, 60)).clamp(0, 1)
        assert image.std() > 0.05

        def shows_it():
            if not page.pictures or page.pictures[-1].shape != (60, 80, 3):
                return False
            return (torch.from_numpy(page.pictures[-1].copy()) / 255 - image).abs().mean() < 0.01

        page.wait(shows_it, "the picture")
        shown = len(page.pictures)
        page.wait(lambda: not page.set("Undo"), "a request")
        page.wait(lambda: "nothing to take back" in str(page.of_type("NotificationShowMessage")))
        assert len(page.pictures) == shown  # nothing has changed, nothing is made


def test_without_its_scene_a_run_has_its_cameras_all_the_same(run, tmp_path, capsys):
    for changes in ({"no_photos": True}, {"cameras": run / "cameras.json"}):
        viewer = open_viewer(ViewConfig(source=run, port=0, background="white", **changes))
        viewer.server.stop()
        capsys.readouterr()
        assert viewer.sight.photo is None
        assert len(viewer.sight.cameras) == len(read_cameras(run / "cameras.json"))


def test_cutting_saving_and_undoing_by_the_panel(run, tmp_path, capsys):
    model = GaussianModel.load_ply(run / "point_cloud/iteration_30/point_cloud.ply")
    model.save_ply(tmp_path / "ball.ply")
    before = (tmp_path / "ball.ply").read_bytes()
    config = ViewConfig(source=tmp_path / "ball.ply", cameras=run / "cameras.json", port=0)
    with viewing(config) as (viewer, page):
        page.wait(lambda: page.pictures)
        inside = int(viewer.edits._inside(viewer.box.region).sum())
        assert 0 < inside < model.num_gaussians
        page.set("Delete inside")
        page.wait(lambda: viewer.edits.count == model.num_gaussians - inside, "the cut")
        version, shown = viewer.version, len(page.pictures)
        page.wait(lambda: len(page.pictures) > shown, "a picture of what is left")
        page.set("Undo")
        page.wait(lambda: viewer.edits.count == model.num_gaussians, "the undoing")
        assert viewer.version == version + 1
        page.set("Crop to the box")
        page.wait(lambda: viewer.edits.count == inside, "the crop")
        page.set("name", "ball.ply")
        page.set("Save as")
        page.wait(lambda: "there is something here already" in str(page.messages), "a refusal")
        page.set("name", "../away.ply")
        page.set("Save as")
        page.wait(lambda: "without a folder" in str(page.messages), "a refusal")
        page.set("name", "small.ply")
        page.set("Save as")
        page.wait(lambda: viewer.edits.saved, "the file")
        page.set("draw in the browser")
        page.wait(lambda: page.of_type("GaussianSplatsMessage"), "Gaussians")
    assert read(tmp_path / "small.ply").count == inside
    assert (tmp_path / "ball.ply").read_bytes() == before
    assert not (tmp_path.parent / "away.ply").exists()
    assert f"done      wrote {inside:,} Gaussians to {tmp_path / 'small.ply'}" in capsys.readouterr().out


def test_a_file_alone_is_seen_from_outside(run):
    ply = run / "point_cloud/iteration_30/point_cloud.ply"
    with viewing(ViewConfig(source=ply, port=0, up=(0, 0, 1), background="white")) as (viewer, page):
        page.wait(lambda: page.pictures and page.pictures[-1].shape == (60, 80, 3), "a picture")
        (camera,) = viewer.sight.cameras
        assert camera.center[2] > 0  # up
        image = viewer._render(camera.fitted(80, 60))
        assert image.std() > 0.05
        assert image[0].min() > 0.9  # the border is empty: all of it is in the picture
        assert page.of_type("CameraFrustumMessage") == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected a file of Gaussians or the folder of a run, found none"),
        (["nowhere.ply"], "nowhere.ply: no such run or file; check the path"),
        (["."], "not the folder of a run"),
        (["PLY", "--iteration", "3"], "--iteration 3: is of a run"),
        (["RUN", "--iteration", "3"], "--iteration 3: not saved in"),
        (["RUN", "--up", "0", "0", "0"], "--up 0.0 0.0 0.0: expected a direction, not 0 0 0"),
        (["RUN", "--output", "nowhere"], "--output nowhere: expected a folder that is there"),
        (["RUN", "--scene", "a", "--cameras", "b"], "--scene a, --cameras b: both have cameras; give one"),
        (["RUN", "--port", "-1"], "--port -1: expected 1 to 65535"),
        (["RUN", "--resolution", "9"], "--resolution 9: expected 64 to 4096 pixels"),
        (["RUN", "--threads", "0"], "--threads 0: expected 1 or more"),
        (["RUN", "--host", "203.0.113.7", "--no-photos"], "--host 203.0.113.7"),
    ],
)
def test_what_cannot_be_shown(run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(run), "PLY": str(run / "point_cloud/iteration_30/point_cloud.ply")}
    assert main(["view", *(names.get(flag, flag) for flag in flags)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_ctrl_c_ends_it_and_says_what_is_not_saved(run, monkeypatch, capsys):
    from gsopt.viewer.still import StillViewer

    def cut_and_stop(self):
        self._do(lambda: self.edits.crop(self.box.region))
        raise KeyboardInterrupt

    monkeypatch.setattr(StillViewer, "look", cut_and_stop)
    assert main(["view", str(run), "--port", "0", "--no-photos"]) == 0
    out = capsys.readouterr().out
    assert "viewer    http://127.0.0.1:" in out
    assert out.endswith("note      the last changes are in no file\n")


def test_the_end_of_a_watched_run_names_the_command(run, tmp_path, capsys):
    scene = str(run.parent / "ball")
    argv = ["train", "--scene", scene, "--output", str(tmp_path / "run"), "--iterations", "2"]
    assert main([*argv, "--viewer", "--viewer-port", "0"]) == 0
    assert f"look      gsopt view {tmp_path / 'run'}" in capsys.readouterr().out
