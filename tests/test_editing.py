"""Crop, join, move, turn and scale: the picture moves with the Gaussians, harmonics of all bands too."""

import math

import pytest
import torch
from splats import assert_same, original_checkpoint, random_splat, random_tensors

from gsopt.editing import crop, merge, parse_transform, transform
from gsopt.errors import InputError
from gsopt.formats import read
from gsopt.geometry import quat_scale_to_covar, quat_to_rotmat, spherical_harmonics
from gsopt.regions import parse_region
from gsopt.render import rasterization
from gsopt.similarity import Similarity

MOVES = {
    "translate": ["translate:0.3,-0.2,0.5"],
    "scale": ["scale:2.5"],
    "quarter turn": ["euler:0,90,0"],
    "half turn": ["euler:180,0,0"],
    "any turn": ["quaternion:0.3,-0.5,0.7,0.2"],
    "all": ["euler:20,-40,110", "scale:0.4", "translate:1,2,3", "quaternion:-0.1,0.9,0.2,0.3"],
}


def rendered(tensors, viewmat, degree: int):
    """A picture of raw parameters, float64."""
    wide = {name: value.double() for name, value in tensors.items()}
    colors = torch.cat([wide["feature_dc"], wide["feature_rest"]], dim=1)
    intrinsics = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]], dtype=torch.float64)
    image, alpha, _ = rasterization(
        *(wide["xyz"], wide["rotation"], wide["scaling"].exp(), wide["opacity"].sigmoid()[:, 0], colors),
        *(viewmat[None], intrinsics[None], 32, 32),
        sh_degree=degree,
        near_plane=1e-4,
        backend="reference",
    )
    return image[0], alpha[0]


def moved_camera(viewmat, move: Similarity):
    """The camera moved with the scene: what it saw at depth d it sees at depth scale * d."""
    moved = torch.eye(4, dtype=torch.float64)
    moved[:3, :3] = viewmat[:3, :3] @ move.rotation.T
    moved[:3, 3] = move.scale * viewmat[:3, 3] - moved[:3, :3] @ move.translation
    return moved


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("texts", MOVES.values(), ids=MOVES)
def test_the_moved_model_from_the_moved_camera_is_the_same_picture(texts, degree):
    splat = random_splat(60, degree, seed=degree)
    splat.tensors["xyz"] *= 0.3
    splat.tensors["scaling"] += 2
    splat.tensors["feature_rest"] *= 2
    move = parse_transform(texts)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[2, 3] = 4
    before, alpha = rendered(splat.tensors, viewmat, degree)
    # The anti-aliasing blur is in pixels, so it is the same at any scale.
    after, _ = rendered(transform(splat, move).tensors, moved_camera(viewmat, move), degree)
    assert alpha.max() > 0.5
    torch.testing.assert_close(after, before, atol=2e-4, rtol=0)
    if degree and len(texts) == 4:  # harmonics that stay as they were would show
        unturned = transform(splat, move).tensors | {"feature_rest": splat.tensors["feature_rest"]}
        wrong, _ = rendered(unturned, moved_camera(viewmat, move), degree)
        assert (wrong - before).abs().max() > 0.05


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_function_of_directions_turns_with_them(degree):
    tensors = random_tensors(20, degree)
    move = parse_transform(["quaternion:0.3,-0.5,0.7,0.2"])
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    splat = random_splat(20, degree)

    def seen(of, along):
        coefficients = torch.cat([of["feature_dc"], of["feature_rest"]], dim=1).double()
        return spherical_harmonics(degree, along, coefficients)

    before = seen(tensors, directions)
    after = seen(transform(splat, move).tensors, directions @ move.rotation.T)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("texts", MOVES.values(), ids=MOVES)
def test_covariances_turn_and_grow(texts):
    splat, move = random_splat(30), parse_transform(texts)
    moved = transform(splat, move)

    def covariances(of):
        return quat_scale_to_covar(of["rotation"].double(), of["scaling"].double().exp())

    linear = move.scale * move.rotation
    expected = linear @ covariances(splat.tensors) @ linear.T
    torch.testing.assert_close(covariances(moved.tensors), expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(moved.tensors["rotation"].norm(dim=1), splat.tensors["rotation"].norm(dim=1))


def test_no_move_changes_no_more_than_the_last_bits():
    splat = random_splat()
    for name, value in transform(splat, parse_transform([])).tensors.items():
        torch.testing.assert_close(value, splat.tensors[name], atol=1e-6, rtol=1e-6, msg=name)


def test_moves_are_done_in_the_order_given():
    point = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    move = parse_transform(["translate:1,0,0", "scale:2", "euler:0,0,90"])
    end = move.scale * move.rotation @ point + move.translation
    torch.testing.assert_close(end, torch.tensor([0.0, 4, 0], dtype=torch.float64))


def test_a_matrix_is_the_same_move():
    move = parse_transform(MOVES["all"])
    rows = torch.cat([move.scale * move.rotation, move.translation[:, None]], dim=1)
    numbers = ",".join(f"{value:.7f}" for value in rows.flatten().tolist())
    for text in (f"matrix:{numbers}", f"matrix:{numbers},0,0,0,1"):
        again = parse_transform([text])
        assert again.scale == pytest.approx(move.scale, rel=1e-5)
        torch.testing.assert_close(again.rotation, move.rotation, atol=1e-5, rtol=0)
        torch.testing.assert_close(again.translation, move.translation, atol=1e-5, rtol=0)


def test_euler_angles_are_about_fixed_axes_x_first():
    by_hand = parse_transform(["euler:30,0,0", "euler:0,40,0", "euler:0,0,50"])
    torch.testing.assert_close(parse_transform(["euler:30,40,50"]).rotation, by_hand.rotation)
    half = math.radians(15)
    about_x = quat_to_rotmat(torch.tensor([math.cos(half), math.sin(half), 0, 0], dtype=torch.float64))
    torch.testing.assert_close(parse_transform(["euler:30,0,0"]).rotation, about_x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shear:1", "expected one of scale:a factor above 0; translate:"),
        ("scale", "expected scale:a factor above 0"),
        ("scale:0", "not 0 or less"),
        ("scale:-2", "not 0 or less"),
        ("scale:1,2,3", "expected scale:a factor above 0"),
        ("translate:1,2", "expected translate:x,y,z"),
        ("translate:1,2,nan", "expected translate:x,y,z"),
        ("translate:1,2,x", "expected translate:x,y,z"),
        ("quaternion:0,0,0,0", "not 0 or less"),
        ("matrix:1,2,3", "expected matrix:12 or 16 numbers"),
        ("matrix:1,0,0,0,0,2,0,0,0,0,3,0", "expected a rotation times one factor"),
        ("matrix:-1,0,0,0,0,1,0,0,0,0,1,0", "mirrors"),
        ("matrix:0,0,0,0,0,0,0,0,0,0,0,0", "expected a rotation times one factor"),
        ("matrix:1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,2", "a last row 0,0,0,1"),
    ],
)
def test_texts_that_are_no_move(text, message):
    with pytest.raises(InputError, match=f"--transform {text}: .*{message}"):
        parse_transform([text])


def test_a_move_leaves_moments_out_and_scales_the_extent(tmp_path):
    torch.save(original_checkpoint(random_tensors()), tmp_path / "a.pth")
    moved = transform(read(tmp_path / "a.pth"), parse_transform(["scale:2"]))
    assert moved.moments == {}
    assert moved.extent == 9.0
    assert moved.notes == ["moments: of other coordinates now, left out"]


def test_a_crop_keeps_rows_and_their_moments(tmp_path):
    torch.save(original_checkpoint(random_tensors(50)), tmp_path / "a.pth")
    splat = read(tmp_path / "a.pth")
    rows = splat.tensors["xyz"][:, 0] >= 0
    kept = crop(splat, parse_region("box:0,-inf,-inf,inf,inf,inf", "--crop"))
    assert 0 < kept.count < 50
    assert_same(kept.tensors, {name: value[rows] for name, value in splat.tensors.items()})
    assert torch.equal(kept.moments["opacity"]["exp_avg"], splat.moments["opacity"]["exp_avg"][rows])
    assert kept.moments["opacity"]["step"] == 700


def test_an_empty_crop_names_the_flag():
    with pytest.raises(
        InputError, match=r"--crop box:90,90,90,91,91,91: no Gaussian is there; the 7 centres are in"
    ):
        crop(random_splat(), parse_region("box:90,90,90,91,91,91", "--crop"))
    with pytest.raises(InputError, match="--crop ball:1: not a region"):
        parse_region("ball:1", "--crop")


def test_joined_rows_are_in_order_with_the_higher_degree():
    low, high = random_splat(3, 1, seed=1), random_splat(4, 3, seed=2)
    joined = merge([low, high])
    assert (joined.count, joined.sh_degree) == (7, 3)
    assert torch.equal(joined.tensors["xyz"], torch.cat([low.tensors["xyz"], high.tensors["xyz"]]))
    assert torch.equal(joined.tensors["feature_rest"][:3, :3], low.tensors["feature_rest"])
    assert not joined.tensors["feature_rest"][:3, 3:].any()
    assert torch.equal(joined.tensors["feature_rest"][3:], high.tensors["feature_rest"])


def test_one_file_joined_is_itself(tmp_path):
    torch.save(original_checkpoint(random_tensors()), tmp_path / "a.pth")
    splat = read(tmp_path / "a.pth")
    assert merge([splat]) is splat
    both = merge([splat, splat])
    assert both.moments == {}
    assert both.notes == ["moments: not of one model, left out"]
    assert both.extent == 4.5


def test_bands_dropped_and_added_take_their_moments_along(tmp_path):
    torch.save(original_checkpoint(random_tensors()), tmp_path / "a.pth")
    splat = read(tmp_path / "a.pth")
    lower = splat.with_degree(1)
    assert lower.notes == ["harmonics of degree 3 cut to 1"]
    higher = lower.with_degree(2)
    assert higher.notes == lower.notes
    for tensor, source in (
        (higher.tensors["feature_rest"], splat.tensors["feature_rest"]),
        (higher.moments["feature_rest"]["exp_avg"], splat.moments["feature_rest"]["exp_avg"]),
    ):
        assert tensor.shape == (7, 8, 3)
        assert torch.equal(tensor[:, :3], source[:, :3])
        assert not tensor[:, 3:].any()
