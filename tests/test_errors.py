"""What a user gets for unusable input: one line on stderr with the file and the remedy, exit code 2.

No traceback. Each case runs the real command in this process.
"""

import errno
import json

import numpy as np
import pytest
import scenes

from gsopt.commands import main


def empty_folder(folder):
    folder.mkdir()
    return folder


def no_images(folder):
    scene = scenes.write_colmap(folder)
    for photo in (scene / "images").iterdir():
        photo.unlink()
    return scene


def wrong_aspect(folder):
    from PIL import Image

    scene = scenes.write_colmap(folder)
    Image.new("RGB", (40, 24)).save(scene / "images" / "0002.png")
    return scene


def zero_points(folder):
    return scenes.write_colmap(folder, points=0)


def nan_points(folder):
    scene = scenes.write_nerf_synthetic(folder)
    xyz, rgb = scenes.ball_points(10)
    xyz[3] = np.nan
    scenes.write_points(scene / "points3d.ply", xyz, rgb)
    return scene


def truncated_images(folder):
    scene = scenes.write_colmap(folder)
    file = scene / "sparse" / "0" / "images.bin"
    file.write_bytes(file.read_bytes()[:-20])
    return scene


def truncated_photo(folder):
    scene = scenes.write_colmap(folder)
    file = scene / "images" / "0001.png"
    file.write_bytes(file.read_bytes()[:100])
    return scene


def one_photo(folder):
    return scenes.write_colmap(folder, views=1)


def not_json(folder):
    scene = scenes.write_transforms(folder)
    (scene / "transforms.json").write_text("{frames: oops")
    return scene


def no_matrices(folder):
    scene = scenes.write_transforms(folder)
    content = json.loads((scene / "transforms.json").read_text())
    for frame in content["frames"]:
        del frame["transform_matrix"]
    (scene / "transforms.json").write_text(json.dumps(content))
    return scene


SCENES = [  # how it is made, what the line must name
    (lambda folder: folder / "nowhere", ("nowhere",)),
    (empty_folder, ("scene", "sparse")),
    (no_images, ("images", "none of the 6 photos", "--images")),
    (wrong_aspect, ("0002.png", "40x24")),
    (zero_points, ("points3D", "--init")),
    (nan_points, ("points3d.ply",)),
    (truncated_images, ("images.bin", "truncated")),
    (truncated_photo, ("0001.png", "does not decode")),
    (one_photo, ("1 photos", "--test-every 8", "--test-every 0")),
    (not_json, ("transforms.json", "not JSON")),
    (no_matrices, ("transforms.json", "frames[0]", "transform_matrix")),
]


def one_line(capsys, argv) -> str:
    """Runs a command that must fail as unusable input does; its message."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if not line.startswith("gsopt: warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("gsopt: error: ")
    return lines[0]


@pytest.mark.parametrize(("make", "named"), SCENES, ids=[getattr(m, "__name__", "?") for m, _ in SCENES])
def test_scene(tmp_path, capsys, make, named):
    scene = make(tmp_path / "scene")
    line = one_line(
        capsys, ["train", "--scene", scene, "--output", tmp_path / "run", "--iterations", 2, "--quiet"]
    )
    for word in named:
        assert word in line
    assert not (tmp_path / "run").exists()  # nothing is left behind that a second try would stumble over


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return scenes.write_nerf_synthetic(tmp_path_factory.mktemp("errors") / "ball")


FLAGS = [  # flags, what the line must name
    (["--freeze", "xzy"], ("--freeze", "xzy", "feature_rest")),
    (["--exclude", "sh"], ("--exclude", "sh", "feature_dc")),
    (["--freeze", "xzy@0:100"], ("--freeze xzy@0:100", "feature_rest")),
    (["--freeze", "xyz@5"], ("--freeze xyz@5", "START:END")),
    (["--freeze", "xyz@1:1"], ("--freeze xyz@1:1", "at least 2, found 1")),
    (["--freeze", "xyz@-1:1"], ("--freeze xyz@-1:1", "found -1")),
    (["--freeze", "xyz@0:1.5"], ("--freeze xyz@0:1.5", '"1.5"')),
    (["--freeze", "xyz@0:2", "xyz@1:3"], ("--freeze xyz@1:3", "overlap")),
    (["--freeze", "xyz@2:3"], ("--freeze xyz@2:3", "after the last of 2 iterations")),
    (["--freeze", "xyz@0:1", "--exclude", "xyz"], ("--freeze xyz, --exclude xyz", "give one")),
    (
        ["--freeze", "xyz@1:", "feature-dc", "feature-rest", "scaling", "rotation", "opacity@0:2"],
        ("--freeze, --exclude", "iterations 2 to 2", "every attribute"),
    ),
    (["--weight-decay", "-1"], ("--weight-decay -1", "0 or more")),
    (["--weight-decay", "0.1", "--optimizer", "rprop"], ("rprop", "no weight decay")),
    (["--groups.xyz.weight-decay", "nan"], ("--groups.xyz.weight-decay nan", "0 or more")),
    (["--groups.xyz.optimizer-args", "momentum"], ("--groups.xyz.optimizer-args momentum", "OPTION=VALUE")),
    (["--groups.xyz.optimizer-args", "eps=high"], ("--groups.xyz.optimizer-args eps=high", "number")),
    (["--groups.feature-rest.optimizer-args", "lr=1"], ("--groups.feature-rest", "--groups.NAME.lr")),
    (["--groups.xyz.optimizer-args", "momentum=0.9"], ("adam", "xyz", "momentum", "betas")),
    (["--groups.xyz.optimizer-args", "betas=2,0.9"], ("xyz", "beta")),
    (["--exclude", "xyz", "feature_dc", "feature_rest", "scaling", "rotation", "opacity"], ("--exclude",)),
    (["--lock", "box:0,0,0,1,1"], ("--lock box:0,0,0,1,1", "6 numbers", "found 5")),
    (["--lock", "outside:nowhere.npy"], ("--lock outside:", "nowhere.npy", "no such file")),
    (["--lock", "sphere:0,0,99,1"], ("--lock sphere:0,0,99,1", "no Gaussian", "centres are in x ")),
    (["--lock", "sphere:0,0,0,9", "--lock-attributes", "sh"], ("--lock-attributes sh", "feature_dc")),
    (["--itertions", "5"], ("--itertions", "--iterations")),
    (["--iterations", "many"], ("--iterations", "many")),
    (["--iterations", "0"], ("--iterations", "1 or more")),
    (["--resolution", "0"], ("--resolution",)),
    (["--sh-degree", "4"], ("--sh-degree",)),
    (["--ssim-weight", "1.5"], ("--ssim-weight",)),
    (["--device", "gpu"], ("--device", "gpu", "cuda")),
    (["--optimizer", "lbfgs"], ("lbfgs", "groups")),
    (["--optimizer", "madgrad"], ("madgrad",)),
    (["--groups.xyz.lr", "-1"], ("--groups.xyz.lr",)),
    (["--groups.opacity.schedule", "cosinus"], ("--groups.opacity.schedule", "cosinus", "cosine:FINAL")),
    (["--groups.xyz.schedule", "step:0:1"], ("--groups.xyz.schedule", '"step:0:1"', "at least 1")),
    (["--groups.xyz.schedule", "constant then exp:1"], ('"constant"', "how long")),
    (["--groups.colour.lr", "1"], ("--groups.colour.lr",)),
    (["--strategy", "magic"], ("--strategy", "magic", "default")),
    (["--images", "images_2"], ("--images",)),
    (["--init", "nowhere.ply"], ("nowhere.ply",)),
    (["--resume", "nowhere"], ("nowhere", "config.json")),
    (["--background", "blue"], ("--background", "blue", "white")),
    (["--strategy", "default", "--densify.refine-every", "0"], ("--densify.refine-every", "1 or more")),
    (["--strategy", "default", "--densify.prune-opa", "0.5"], ("--densify.prune-opa",)),
    (["--max-gaussians", "1"], ("--max-gaussians", "found 1")),
    (["--groups.opacity.schedule", "constant:nan"], ("constant:nan", "found nan")),
]


@pytest.mark.parametrize(("flags", "named"), FLAGS, ids=[" ".join(flags) for flags, _ in FLAGS])
def test_flag(scene, tmp_path, capsys, flags, named):
    output = ["--output", tmp_path / "run", "--quiet"]
    line = one_line(capsys, ["train", "--scene", scene, *output, "--iterations", "2", *flags])
    for word in named:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_no_scene_at_all(capsys):
    assert "--scene" in one_line(capsys, ["train"])


def test_a_photo_that_may_not_be_read(scene, tmp_path, capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("PIL.Image.open", refuse)
    line = one_line(capsys, ["train", "--scene", scene, "--output", tmp_path / "run", "--quiet"])
    assert "r_0.png: cannot be read (Permission denied)" in line


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/model.ply"), ("a/model.ply: No space left",)),
        (OSError("broken"), ("broken",)),
        (MemoryError(), ("out of memory", "--resolution")),
    ],
)
def test_the_machine_refuses(scene, tmp_path, capsys, monkeypatch, error, named):
    def refuse(_):
        raise error

    monkeypatch.setattr("gsopt.commands.train.main", refuse)
    line = one_line(capsys, ["train"])
    for word in named:
        assert word in line


def test_resume_a_file_of_a_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert f"give {tmp_path}" in one_line(capsys, ["train", "--resume", tmp_path / "config.json"])


def test_unknown_command(capsys):
    assert "train" in one_line(capsys, ["trian"])


def test_output_that_holds_something(scene, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    line = one_line(capsys, ["train", "--scene", scene, "--output", tmp_path, "--iterations", 2])
    assert str(tmp_path) in line
    assert "--output" in line
    (tmp_path / "config.json").write_text("{}")
    assert "--resume" in one_line(capsys, ["train", "--scene", scene, "--output", tmp_path])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_output_that_cannot_be_made(scene, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = one_line(
        capsys, ["train", "--scene", scene, "--output", tmp_path / "file" / "run", "--iterations", 2]
    )
    assert str(tmp_path / "file" / "run") in line


def ply_without(name):
    def make(path):
        xyz, rgb = scenes.ball_points(5)
        scenes.write_points(path, xyz, rgb)  # a point cloud: none of a splat's properties
        if name == "x":
            path.write_bytes(path.read_bytes().replace(b"float x\n", b"float q\n"))

    return make


@pytest.mark.parametrize(
    ("command", "content", "named"),
    [
        (["evaluate"], ply_without("f_dc"), ("model.ply", "f_dc_0")),
        (["render"], ply_without("f_dc"), ("model.ply", "f_dc_0")),
        (["train", "--init"], ply_without("x"), ("model.ply", "x")),
        (["train", "--init"], lambda path: path.write_text("ply\nformat"), ("model.ply",)),
        (["train", "--init"], lambda path: path.write_text("nothing"), ("model.ply",)),
    ],
    ids=["evaluate points", "render points", "init without x", "init cut short", "init that is no PLY"],
)
def test_ply(scene, tmp_path, capsys, command, content, named):
    content(tmp_path / "model.ply")
    line = one_line(
        capsys, [*command, tmp_path / "model.ply", "--scene", scene, "--output", tmp_path / "run"]
    )
    for word in named:
        assert word in line


def test_evaluate_needs_a_run_or_a_scene(tmp_path, capsys):
    (tmp_path / "a.ply").touch()
    assert "--scene" in one_line(capsys, ["evaluate", tmp_path / "a.ply"])
    assert "no such run or file" in one_line(capsys, ["evaluate", tmp_path / "nowhere"])
    assert "--iteration 5" in one_line(
        capsys, ["evaluate", tmp_path / "a.ply", "--scene", tmp_path, "--iteration", 5]
    )
    assert "config.json" in one_line(capsys, ["render", tmp_path])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", ("not JSON",)),
        ("[]", ("expected settings",)),
        ('{"iteration": 5}', ("iteration", "'iterations'")),
        ('{"iterations": "5"}', ("iterations", "int", "'5'")),
        ('{"groups": {"xyz": {"lr": [1]}}}', ("lr", "float")),
        ('{"device": "gpu"}', ("device", "'cuda'")),
    ],
)
def test_damaged_config(tmp_path, capsys, content, named):
    (tmp_path / "config.json").write_text(content)
    line = one_line(capsys, ["train", "--resume", tmp_path])
    for word in ("config.json", *named):
        assert word in line
