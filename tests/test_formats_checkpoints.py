"""Checkpoints of other programs: read by name with their moments, written for them, never executed.

The files are made by hand with the structure that each program writes (`tests/splats.py`).
"""

import os
import pickle

import numpy as np
import pytest
import torch
from splats import (
    adam_state,
    assert_same,
    gsplat_checkpoint,
    original_checkpoint,
    random_tensors,
    splatfacto_checkpoint,
)
from torch import nn

from gsopt import checkpoint
from gsopt.errors import InputError
from gsopt.formats import read, write
from gsopt.formats.splat import SHAPES

TENSORS = random_tensors()
MAKERS = {
    "original": (original_checkpoint, "chkpnt700.pth", "the original 3DGS", 700),
    "gsplat": (gsplat_checkpoint, "ckpt_6999_rank0.pt", "gsplat", 7_000),
    "splatfacto": (splatfacto_checkpoint, "step-000000699.ckpt", "splatfacto", 700),
}


def saved(path, content):
    torch.save(content, path)
    return path


def expected_moments(name: str) -> dict:
    return adam_state(TENSORS[name], list(SHAPES).index(name))


@pytest.mark.parametrize(("make", "file", "kind", "step"), MAKERS.values(), ids=MAKERS)
def test_each_is_told_by_its_content_and_read(tmp_path, make, file, kind, step):
    splat = read(saved(tmp_path / file, make(TENSORS)))
    assert_same(splat.tensors, TENSORS)
    assert kind in splat.kind
    assert splat.step == step


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("make", "file", "kind", "step"), MAKERS.values(), ids=MAKERS)
def test_harmonics_of_every_degree(tmp_path, make, file, kind, step, degree):
    tensors = random_tensors(degree=degree)
    assert_same(read(saved(tmp_path / file, make(tensors))).tensors, tensors)


@pytest.mark.parametrize("make", [original_checkpoint, splatfacto_checkpoint])
def test_moments_come_with_them_by_name(tmp_path, make):
    splat = read(saved(tmp_path / "a.pth", make(TENSORS)))
    assert set(splat.moments) == set(SHAPES)
    for name, entries in splat.moments.items():
        assert_same(entries, expected_moments(name))


def test_the_order_of_groups_does_not_matter(tmp_path):
    order = ["rotation", "f_rest", "opacity", "xyz", "scaling", "f_dc"]
    splat = read(saved(tmp_path / "a.pth", original_checkpoint(TENSORS, order)))
    for name, entries in splat.moments.items():
        assert_same(entries, expected_moments(name))


def test_a_group_more_is_passed_over_and_one_less_starts_fresh(tmp_path):
    captured, step = original_checkpoint(TENSORS)
    captured[10]["param_groups"][0]["name"] = "exposure"  # was xyz
    splat = read(saved(tmp_path / "a.pth", (captured, step)))
    assert set(splat.moments) == set(SHAPES) - {"xyz"}


@pytest.mark.parametrize("extent", [np.float32(4.5), np.float64(4.5), 4.5], ids=lambda e: type(e).__name__)
def test_the_extent_may_be_a_number_of_numpy(tmp_path, extent):
    assert read(saved(tmp_path / "a.pth", original_checkpoint(TENSORS, extent=extent))).extent == 4.5


def test_features_may_have_the_order_of_a_ply(tmp_path):
    captured, step = original_checkpoint(TENSORS)
    turned = (*captured[:3], nn.Parameter(captured[3].detach().transpose(1, 2)), *captured[4:])
    for entry in ("exp_avg", "exp_avg_sq"):
        turned[10]["state"][2][entry] = turned[10]["state"][2][entry].transpose(1, 2)
    splat = read(saved(tmp_path / "a.pth", (turned, step)))
    assert_same(splat.tensors, TENSORS)
    assert_same(splat.moments["feature_rest"], expected_moments("feature_rest"))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("exp_avg", torch.zeros(3, 1, 3)),
        ("step", "700"),
        ("exp_avg_sq", None),
        ("exp_avg", torch.zeros(7, 1, 3, dtype=torch.complex64)),
    ],
    ids=["another number of rows", "a text", "nothing", "complex"],
)
def test_moments_that_do_not_fit_are_left_out_and_named(tmp_path, entry, value):
    captured, step = original_checkpoint(TENSORS)
    captured[10]["state"][1][entry] = value  # of f_dc
    splat = read(saved(tmp_path / "a.pth", (captured, step)))
    assert set(splat.moments) == set(SHAPES) - {"feature_dc"}
    assert splat.notes == ["moments of f_dc do not fit it: it starts with fresh ones"]


def test_gsplat_has_no_moments_and_says_so(tmp_path):
    splat = read(saved(tmp_path / "ckpt_9_rank0.pt", gsplat_checkpoint(TENSORS) | {"pose_adjust": {}}))
    assert splat.moments == {}
    assert splat.notes == [
        "no moments in it: training from it starts with fresh ones",
        "left out: pose_adjust",
    ]


def test_ranks_of_gsplat_are_joined_in_order_whichever_is_given(tmp_path):
    for rank in range(11):
        part = {name: value + rank for name, value in TENSORS.items()}
        saved(tmp_path / f"ckpt_9_rank{rank}.pt", gsplat_checkpoint(part))
    saved(tmp_path / "ckpt_10_rank0.pt", gsplat_checkpoint(TENSORS))
    joined = {name: torch.cat([value + rank for rank in range(11)]) for name, value in TENSORS.items()}
    for given in (0, 10):
        splat = read(tmp_path / f"ckpt_9_rank{given}.pt")
        assert_same(splat.tensors, joined)
    assert "joined from 11 ranks" in splat.notes


def test_a_missing_rank_is_named(tmp_path):
    for rank in (0, 2):
        saved(tmp_path / f"ckpt_9_rank{rank}.pt", gsplat_checkpoint(TENSORS))
    with pytest.raises(InputError, match=r"rank 1 is missing; put ckpt_9_rank1\.pt beside it"):
        read(tmp_path / "ckpt_9_rank2.pt")


def test_older_and_distributed_splatfacto(tmp_path):
    for prefix in ("_model.", "module._model.gauss_params."):
        splat = read(saved(tmp_path / "a.ckpt", splatfacto_checkpoint(TENSORS, prefix)))
        assert_same(splat.tensors, TENSORS)


def test_splatfacto_says_whose_coordinates(tmp_path):
    splat = read(saved(tmp_path / "a.ckpt", splatfacto_checkpoint(TENSORS)))
    assert "dataparser_transforms.json" in splat.notes[0]


# out


def test_a_checkpoint_of_3dgs_is_written_as_it_was_read(tmp_path):
    source = read(saved(tmp_path / "a.pth", original_checkpoint(TENSORS)))
    write(tmp_path / "b.pth", source)
    again = read(tmp_path / "b.pth")
    assert_same(again.tensors, TENSORS)
    assert (again.step, again.extent) == (700, 4.5)
    for name, entries in again.moments.items():
        assert_same(entries, expected_moments(name))


def test_what_is_written_restores_in_3dgs(tmp_path):
    """The steps of its `restore`: parameters from the tuple, an Adam over its groups, the saved state."""
    write(tmp_path / "b.pth", read(saved(tmp_path / "a.pth", original_checkpoint(TENSORS))))
    captured, iteration = torch.load(tmp_path / "b.pth", weights_only=True)
    degree, xyz, f_dc, f_rest, scaling, rotation, opacity, radii, gradients, denominator, state, extent = (
        captured
    )
    assert (degree, iteration, extent) == (3, 700, 4.5)
    assert radii.shape == (7,)
    assert gradients.shape == denominator.shape == (7, 1)
    named = {"xyz": xyz, "f_dc": f_dc, "f_rest": f_rest}
    named |= {"opacity": opacity, "scaling": scaling, "rotation": rotation}
    groups = [{"params": [tensor], "lr": 0.0, "name": name} for name, tensor in named.items()]
    optimizer = torch.optim.Adam(groups, lr=0.0, eps=1e-15)
    optimizer.load_state_dict(state)
    assert [group["name"] for group in optimizer.param_groups] == list(named)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.6e-4 * 4.5)
    before = xyz.detach().clone()
    sum(tensor.square().sum() for tensor in named.values()).backward()
    optimizer.step()
    assert not torch.equal(xyz, before)
    assert optimizer.state[xyz]["step"] == 701


def test_what_is_written_loads_in_gsplat(tmp_path):
    write(tmp_path / "b.pt", read(saved(tmp_path / "a.pth", original_checkpoint(TENSORS))))
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    assert content["step"] == 699
    splats = nn.ParameterDict({name: nn.Parameter(value) for name, value in content["splats"].items()})
    assert splats["opacities"].shape == (7,)
    assert splats["shN"].shape == (7, 15, 3)
    assert_same(read(tmp_path / "b.pt").tensors, TENSORS)


@pytest.mark.parametrize("moments", ["none", "some"])
def test_without_all_moments_3dgs_gets_none(tmp_path, moments):
    splat = read(saved(tmp_path / "a.pth", original_checkpoint(TENSORS)))
    splat.moments = {} if moments == "none" else {"xyz": splat.moments["xyz"]}
    notes = write(tmp_path / "b.pth", splat)
    captured, _ = torch.load(tmp_path / "b.pth", weights_only=True)
    assert captured[10]["state"] == {}
    assert ("the optimizer's moments are left out" in notes) == (moments == "some")


def test_3dgs_needs_an_extent(tmp_path):
    splat = read(saved(tmp_path / "a.pt", gsplat_checkpoint(TENSORS)))
    with pytest.raises(InputError, match="extent, which is not known here; give --extent"):
        write(tmp_path / "b.pth", splat)
    assert not (tmp_path / "b.pth").exists()
    write(tmp_path / "b.pth", splat, extent=2.0)
    assert read(tmp_path / "b.pth").extent == 2.0


# refusals


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_code_in_a_file_is_not_run_and_its_type_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = gsplat_checkpoint(TENSORS) | {"extra": Evil()}
    with pytest.raises(InputError, match=r"a\.pt: holds \w+\.mkdir, which only running code") as caught:
        read(saved(tmp_path / "a.pt", content))
    assert "\n" not in str(caught.value)
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"b\.pt: a bare pickle"):
        read(tmp_path / "b.pt")
    assert not (tmp_path / "pwned").exists()


def _without(content: dict, *path: str) -> dict:
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return content


def _changed(attribute: str, value) -> dict:
    return gsplat_checkpoint(TENSORS | {attribute: value})


BAD = TENSORS["scaling"].clone()
BAD[4, 1] = float("nan")
REFUSED = {
    "a state dict": ({"weight": torch.zeros(3)}, "expected a checkpoint of gsopt.*found a dict with weight"),
    "a list": ([1, 2], "expected a checkpoint of gsopt.*found a list"),
    "13 entries": ((((0,) * 13), 7), "expected the 12 entries of 3DGS.*found 13"),
    "no iteration": ((original_checkpoint(TENSORS)[0], "7"), "12 entries and '7'"),
    "no shN": (_without(gsplat_checkpoint(TENSORS), "splats", "shN"), "splats: no shN, expected means"),
    "no quats": (
        _without(splatfacto_checkpoint(TENSORS), "pipeline", "_model.gauss_params.quats"),
        r"pipeline: no _model\.gauss_params\.quats",
    ),
    "rows": (_changed("rotation", torch.zeros(6, 4)), r"quats: expected the shape \[7, 4\], found \[6, 4\]"),
    "2D Gaussians": (_changed("scaling", torch.zeros(7, 2)), r"scales: expected the shape \[7, 3\]"),
    "harmonics": (_changed("feature_rest", torch.zeros(7, 7, 3)), r"shN: expected the shape \[7, K, 3\]"),
    "whole numbers": (
        _changed("xyz", torch.zeros(7, 3, dtype=torch.int64)),
        "means: expected a tensor of floats",
    ),
    "a list of numbers": (
        gsplat_checkpoint(TENSORS)
        | {"splats": {name: [1.0] for name in gsplat_checkpoint(TENSORS)["splats"]}},
        "means: expected a tensor of floats, found list",
    ),
    "nan": (_changed("scaling", BAD), r"scales: row 4 is not finite \(1 of 7 rows are so\)"),
    "none": (gsplat_checkpoint({name: value[:0] for name, value in TENSORS.items()}), "no Gaussians in it"),
    "huge but empty": (
        _changed("xyz", torch.zeros(1, 1).expand(1 << 40, 3)),
        r"expected the shape|means: more numbers",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_one_line_naming_file_and_entry(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"bad\.pt: .*{message}") as caught:
        read(saved(tmp_path / "bad.pt", content))
    assert "\n" not in str(caught.value)


def test_a_damaged_optimizer_is_named(tmp_path):
    captured, step = original_checkpoint(TENSORS)
    del captured[10]["param_groups"][2]["name"]
    with pytest.raises(InputError, match="optimizer: expected state and named param_groups"):
        read(saved(tmp_path / "a.pth", (captured, step)))
    content = splatfacto_checkpoint(TENSORS)
    content["optimizers"]["quats"]["state"] = {0: [1, 2]}
    with pytest.raises(InputError, match=r"optimizers\.quats: expected the state_dict"):
        read(saved(tmp_path / "a.ckpt", content))


def test_our_own_of_a_later_version_is_refused(tmp_path):
    content = {"format": checkpoint.FORMAT, "version": 99, "state": {}}
    with pytest.raises(InputError, match=r"expected version 1 of the format, found 99"):
        read(saved(tmp_path / "step_00000001.pt", content))
