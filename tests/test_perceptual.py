"""LPIPS: against another implementation of it, its properties, and what is said where it cannot be had."""

import importlib
import sys
import types
import urllib.error

import pytest
import torch
from torch import nn

from gsopt import perceptual
from gsopt.errors import InputError, MissingExtra
from gsopt.perceptual import SMALLEST, Lpips

pytest.importorskip("torchmetrics")
NETS = ("alex", "vgg")
VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def features(net: str) -> nn.Sequential:
    """As torchvision builds them, with weights from a seed."""
    torch.manual_seed(0)
    if net == "vgg":
        made, inside = [], 3
        for size in VGG:
            if size == "M":
                made.append(nn.MaxPool2d(2, 2))
                continue
            made += [nn.Conv2d(inside, size, 3, padding=1), nn.ReLU(inplace=True)]
            inside = size
        return nn.Sequential(*made)
    sizes = [
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    ]
    made = []
    for number, size in enumerate(sizes):
        made += [nn.Conv2d(*size), nn.ReLU(inplace=True)]
        made += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
    return nn.Sequential(*made)


@pytest.fixture(scope="module", params=NETS)
def weights(request, tmp_path_factory):
    """The name of a network and a file of weights for it, with a classifier that is not used."""
    state = {f"features.{key}": value for key, value in features(request.param).state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(2)}, path)
    return request.param, path


def pair(height: int = 40, width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(height, width, 3, generator=generator) for _ in range(2))


def test_it_is_that_of_torchmetrics(weights, monkeypatch):
    net, path = weights
    theirs = importlib.import_module("torchmetrics.functional.image.lpips")
    build = types.SimpleNamespace(
        alexnet=lambda weights: types.SimpleNamespace(features=features("alex")),
        vgg16=lambda weights: types.SimpleNamespace(features=features("vgg")),
    )
    fake = types.ModuleType("torchvision")
    fake.models = build
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    image, photo = pair()
    with torch.no_grad():
        batch = [each.permute(2, 0, 1)[None] for each in (image, photo)]
        expected = theirs._LPIPS(net=net, pnet_rand=True, use_dropout=True)(*batch, normalize=True).item()
    assert Lpips(net, path)(image, photo) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


def test_equal_images_are_at_0_and_more_noise_is_farther(weights):
    lpips = Lpips(*weights)
    image, other = pair()
    found = [lpips(image, image.lerp(other, part)) for part in (0.0, 0.1, 0.5, 1.0)]
    assert found[0] == 0
    assert found == sorted(found)
    assert lpips(other, image) == pytest.approx(found[-1], rel=1e-5)


def test_the_smallest_views(weights):
    net, path = weights
    lpips, side = Lpips(net, path), SMALLEST[weights[0]]
    assert lpips(*pair(side, side)) > 0
    with pytest.raises(
        InputError, match=rf"--lpips {net}: .*found {side + 5}x{side - 1}; raise --resolution"
    ):
        lpips(*pair(side - 1, side + 5))


@pytest.mark.parametrize("net", NETS)
def test_without_weights_and_without_a_network_it_says_what_to_do(net, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(url, *_, **__):
        assert url == f"https://download.pytorch.org/models/{perceptual._FILES[net]}"
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as caught:
        Lpips(net)
    text = str(caught.value)
    assert f"{tmp_path}/hub/checkpoints/{perceptual._FILES[net]}" in text
    assert "cannot be downloaded (no route to host)" in text
    assert "--lpips-weights FILE" in text
    assert "\n" not in text


def test_weights_in_the_folder_of_torch_are_found(weights, tmp_path, monkeypatch):
    net, path = weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / perceptual._FILES[net]).symlink_to(path)
    assert Lpips(net)(*pair()) == Lpips(net, path)(*pair())


def test_what_is_not_the_networks_weights_is_refused(weights, tmp_path):
    net, path = weights
    other = NETS[1 - NETS.index(net)]
    with pytest.raises(InputError, match=rf"{path.name}: features\.0\.weight: expected .* of {other}, found"):
        Lpips(other, path)
    for content, message in ((torch.zeros(3), "found a Tensor"), ({"a": 1}, "found none")):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(InputError, match=rf"a\.pth: .*{message}"):
            Lpips(net, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"a\.pth: not a file of weights"):
        Lpips(net, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"none\.pth: cannot be read \(No such file"):
        Lpips(net, tmp_path / "none.pth")


def test_without_the_package_it_names_the_extra(monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r'--lpips needs the package torchmetrics: pip install "gsopt\[lpips\]"'
    ):
        Lpips("alex")
