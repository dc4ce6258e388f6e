"""Small models for tests of files: raw tensors, and other programs' checkpoints with the same structure."""

import numpy as np
import torch
from torch import Tensor, nn

from gsopt.formats.splat import SHAPES, Splat


def random_tensors(count: int = 7, degree: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Raw parameters of values that trained models have."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "xyz": 3 * normal(count, 3),
        "feature_dc": normal(count, 1, 3),
        "feature_rest": 0.2 * normal(count, (degree + 1) ** 2 - 1, 3),
        "scaling": normal(count, 3) - 4,
        "rotation": normal(count, 4),
        "opacity": 2 * normal(count, 1),
    }


def random_splat(count: int = 7, degree: int = 3, seed: int = 0) -> Splat:
    return Splat(random_tensors(count, degree, seed), "made by hand")


def adam_state(tensor: Tensor, seed: int, step: int = 700) -> dict:
    """What Adam keeps for a parameter."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(tensor.shape, generator=generator)
    second = torch.rand(tensor.shape, generator=generator)
    return {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}


def original_checkpoint(tensors: dict[str, Tensor], order=None, extent=None, step: int = 700) -> tuple:
    """(capture(), iteration) of the original 3DGS; `order` of its groups, by their names there."""
    names = {"xyz": "xyz", "f_dc": "feature_dc", "f_rest": "feature_rest"}
    names |= {name: name for name in ("opacity", "scaling", "rotation")}
    groups, state = [], {}
    for index, name in enumerate(order or names):
        groups.append({"lr": np.float64(0.01), "name": name, "betas": (0.9, 0.999), "params": [index]})
        state[index] = adam_state(tensors[names[name]], list(SHAPES).index(names[name]), step)
    count = len(tensors["xyz"])
    parameters = (nn.Parameter(tensors[name]) for name in SHAPES)
    statistics = (torch.zeros(count), torch.zeros(count, 1), torch.zeros(count, 1))
    optimizer = {"state": state, "param_groups": groups}
    extent = np.float32(4.5) if extent is None else extent
    return (3, *parameters, *statistics, optimizer, extent), step


def gsplat_checkpoint(tensors: dict[str, Tensor], step: int = 6_999) -> dict:
    """What gsplat's simple_trainer saves after step + 1 steps."""
    splats = {
        "means": tensors["xyz"],
        "scales": tensors["scaling"],
        "quats": tensors["rotation"],
        "opacities": tensors["opacity"].flatten(),
        "sh0": tensors["feature_dc"],
        "shN": tensors["feature_rest"],
    }
    return {"step": step, "splats": splats}


def splatfacto_checkpoint(tensors: dict[str, Tensor], prefix="_model.gauss_params.", step: int = 699) -> dict:
    """What nerfstudio saves after step + 1 steps of splatfacto."""
    named = {
        "means": tensors["xyz"],
        "scales": tensors["scaling"],
        "quats": tensors["rotation"],
        "features_dc": tensors["feature_dc"][:, 0],
        "features_rest": tensors["feature_rest"],
        "opacities": tensors["opacity"],
    }
    attributes = dict(zip(named, ("xyz", "scaling", "rotation", *list(SHAPES)[1:3], "opacity"), strict=True))
    optimizers = {}
    for name in reversed(named):
        seed = list(SHAPES).index(attributes[name])
        groups = [{"lr": np.float64(0.01), "params": [0]}]
        optimizers[name] = {"state": {0: adam_state(named[name], seed)}, "param_groups": groups}
    optimizers["camera_opt"] = {"state": {}, "param_groups": [{"params": [0]}]}
    pipeline = {f"{prefix}{name}": tensor for name, tensor in named.items()}
    pipeline |= {"_model.camera_optimizer.pose_adjustment": torch.zeros(3, 6)}
    schedulers = {"means": {"_last_lr": [np.float64(1e-4)], "lr_lambdas": [None]}}
    return {"step": step, "pipeline": pipeline, "optimizers": optimizers, "schedulers": schedulers}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same values to the bit under the same names."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value.detach()), name


def in_range(splat: Splat) -> Splat:
    """The same with values that every format can say."""
    splat.tensors["feature_dc"] = splat.tensors["feature_dc"].clamp(-1.7, 1.7)
    splat.tensors["feature_rest"] = splat.tensors["feature_rest"].clamp(-0.9, 0.9)
    return splat


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Between rotations, degrees. [N]"""
    a, b = (nn.functional.normalize(q.double(), dim=1) for q in (a, b))
    return torch.rad2deg(2 * (a * b).sum(1).abs().clamp(max=1).acos())
