"""LPIPS 0.1 (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric").

Features of AlexNet or VGG16, each position of each layer scaled to length 1; their squared differences,
weighted by channel and averaged over the positions, add up over five layers. 0 is equal; lower is better.

The networks are built here, since torchvision is compiled for one build of torch and fails to load beside
others. Their weights, trained on ImageNet, are torchvision's files of 233 and 528 MB; the weights of the
channels are those that torchmetrics ships.
"""

import importlib.util
import itertools
import sys
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsopt.errors import InputError, MissingExtra

_URL = "https://download.pytorch.org/models/"
_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # layers whose outputs are compared
SMALLEST = {"alex": 31, "vgg": 16}  # pixels of a side that leave one position in the last layer
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels -1..1, to those of ImageNet


class Lpips:
    """The metric with one network.

    Args:
        net: "alex" or "vgg".
        weights: torchvision's file of the network; default: that in torch's hub folder, downloaded where it
            is not there.

    Raises:
        MissingExtra: torchmetrics is not installed.
        InputError: the weights cannot be had, or are of another network.
    """

    def __init__(self, net: str, weights: Path | None = None) -> None:
        self.net = net
        self.channels = _channel_weights(net)
        self.layers = layers(net)
        own = {key: tuple(value.shape) for key, value in self.layers.state_dict().items()}
        file, found = _backbone(net, weights)
        state = {key: found.get(f"features.{key}") for key in own}
        for key, shape in own.items():
            value = state[key]
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                raise InputError(
                    f"{file}: features.{key}: expected a tensor {list(shape)} of {net}, found "
                    f"{_described(state[key])}; give torchvision's {_FILES[net]}"
                )
        self.layers.load_state_dict(state)
        self.layers.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, image: Tensor, photo: Tensor) -> float:
        """LPIPS of two images [H, W, 3] on the CPU, 0..1. Raises InputError where they are too small."""
        height, width = image.shape[:2]
        if min(height, width) < SMALLEST[self.net]:
            raise InputError(
                f"--lpips {self.net}: expected views of {SMALLEST[self.net]} pixels or more on each side, "
                f"found {width}x{height}; raise --resolution"
            )
        pair = torch.stack([image, photo]).permute(0, 3, 1, 2)  # [2, 3, H, W]
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (2 * pair - 1 - shift) / scale
        total = 0.0
        weights = iter(self.channels)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _TAPS[self.net]:
                unit = x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
                squared = (unit[0] - unit[1]).square()  # [C, h, w]
                total += (next(weights)[:, None, None] * squared).sum(dim=0).mean().item()
        return total


def layers(net: str) -> nn.Sequential:
    """The layers of AlexNet or VGG16 up to the last that counts, numbered as torchvision's `features`."""
    if net == "vgg":
        blocks = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512,) * 4)
        made: list[nn.Module] = []
        for sizes in blocks:
            for inside, outside in itertools.pairwise(sizes):
                made += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
            made.append(nn.MaxPool2d(2))
        return nn.Sequential(*made[:-1])
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def _channel_weights(net: str) -> list[Tensor]:
    """[C] of each layer."""
    package = importlib.util.find_spec("torchmetrics")  # found, not imported: only a file of it is needed
    if package is None or package.origin is None:
        raise MissingExtra("torchmetrics", "lpips", "--lpips")
    file = Path(package.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    state = _load(file)
    return [state[f"lin{index}.model.1.weight"].flatten() for index in range(len(_TAPS[net]))]


def _backbone(net: str, weights: Path | None) -> tuple[Path, Mapping[str, object]]:
    """The file with the weights of the network, downloaded where needed, and what is in it."""
    file = weights or Path(torch.hub.get_dir()) / "checkpoints" / _FILES[net]
    if weights is None and not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                _URL + _FILES[net],
                str(file),
                hash_prefix=file.stem.split("-")[-1],
                progress=sys.stderr.isatty(),
            )
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise InputError(
                f"--lpips {net}: its weights are not at {file} and cannot be downloaded ({reason}); get "
                f"{_URL}{_FILES[net]} elsewhere and put it there, or give --lpips-weights FILE"
            ) from None
    return file, _load(file)


def _load(file: Path) -> Mapping[str, Any]:
    """A file of tensors by name; nothing in it is executed."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); check the path") from None
    except Exception as error:  # what a damaged file raises has no common type
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{file}: not a file of weights ({reason}); download it again") from None
    if not isinstance(content, Mapping):
        raise InputError(
            f"{file}: expected weights by name, found a {type(content).__name__}; download it again"
        )
    return content


def _described(value: object) -> str:
    return "none" if value is None else str(list(getattr(value, "shape", [type(value).__name__])))
