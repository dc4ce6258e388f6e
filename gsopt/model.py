"""The scene as six tensors: raw `nn.Parameter`s with one row per Gaussian, and their activated values.

Raw parameters keep raw names (`scaling` is the log of a length, `opacity` a logit); activated values have the
names of `gsplat` (`scales`, `opacities`). The model knows neither the renderer nor the optimizer.
"""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsopt.errors import InputError
from gsopt.geometry import inverse_sigmoid, num_sh_bases, rgb_to_sh, sh_degree_of
from gsopt.similarity import Similarity, move_gaussians

ATTRIBUTES = ("xyz", "feature_dc", "feature_rest", "scaling", "rotation", "opacity")
MAX_SH_DEGREE = 3
INITIAL_OPACITY = 0.1  # Kerbl et al. 2023, as in their code
LONE_SCALE = 1.0  # world units: standard deviation of a point that has no neighbour at another place
TINY_SCALE = 1e-3  # of the median scale: floor for points that coincide with their neighbours


class GaussianModel(nn.Module):
    """3D Gaussians with colours in spherical harmonics, all float32.

    | parameter | shape | space |
    |---|---|---|
    | `xyz` | [N, 3] | centres, world units |
    | `feature_dc` | [N, 1, 3] | coefficient of the constant harmonic, per colour channel |
    | `feature_rest` | [N, (D+1)²-1, 3] | coefficients of the bands 1..D |
    | `scaling` | [N, 3] | log of the standard deviations, world units |
    | `rotation` | [N, 4] | quaternion w, x, y, z, of any length but 0 |
    | `opacity` | [N, 1] | logit |

    `locks` is a buffer, bool [N, 6], one column for each of `ATTRIBUTES`: what `gsopt.lock` has locked; None
    while nothing is. It is in the `state_dict` only then.

    Args:
        num_gaussians: number of rows N, all zero (rotation: identity) until they are set or loaded.
        sh_degree: highest band D of the harmonics, 0 to 3.
        device: of all parameters.

    Raises:
        ValueError: `sh_degree` or `num_gaussians` is out of range.
    """

    xyz: nn.Parameter
    feature_dc: nn.Parameter
    feature_rest: nn.Parameter
    scaling: nn.Parameter
    rotation: nn.Parameter
    opacity: nn.Parameter
    locks: Tensor | None

    per_row_buffers = ("locks",)  # that go with their rows in gsopt.surgery

    def __init__(
        self, num_gaussians: int = 0, sh_degree: int = 3, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if num_gaussians < 0:
            raise ValueError(f"num_gaussians: expected 0 or more, found {num_gaussians}")
        shapes = _row_shapes(sh_degree)
        for name in ATTRIBUTES:
            self.register_parameter(
                name, nn.Parameter(torch.zeros(num_gaussians, *shapes[name], device=device))
            )
        self.register_buffer("locks", None)
        with torch.no_grad():
            self.rotation[:, 0] = 1

    @classmethod
    def from_points(
        cls,
        xyz: Tensor | np.ndarray | Sequence,
        rgb: Tensor | np.ndarray | Sequence,
        sh_degree: int = 3,
        device: torch.device | str | None = None,
    ) -> "GaussianModel":
        """Round Gaussians at points: as wide as the mean distance to the 3 nearest neighbours, opacity 0.1.

        Points that coincide with their neighbours get 1/1000 of the median width, a lone point 1 world unit.
        The result depends on the input alone, to the bit.

        Args:
            xyz: positions, world units. [N, 3]
            rgb: colours in 0..1. [N, 3]
            sh_degree: highest band of the harmonics, 0 to 3; the bands above 0 start at zero.
            device: of the parameters.

        Raises:
            InputError: no points, a shape that is not [N, 3], numbers that are not finite (the message lists
                rows), or colours outside 0..1.
        """
        positions = _checked_points("xyz", xyz)
        colours = _checked_points("rgb", rgb)
        if len(positions) != len(colours):
            raise InputError(
                f"points: expected as many colours as positions, found {len(colours)} and {len(positions)}; "
                "give one colour for each point"
            )
        outside = (colours < 0) | (colours > 1)
        if outside.any():
            raise InputError(
                f"points: rgb: expected values in 0..1, found {colours[outside][0].item():g} in row "
                f"{_rows(outside)}; divide 8-bit colours by 255"
            )
        model = cls(len(positions), sh_degree, device)
        with torch.no_grad():
            model.xyz.copy_(positions)
            model.feature_dc.copy_(rgb_to_sh(colours)[:, None, :])
            model.scaling.copy_(_neighbour_log_distance(positions)[:, None].expand(-1, 3))
            model.opacity.fill_(inverse_sigmoid(torch.tensor(INITIAL_OPACITY, device="cpu")).item())
        return model

    @classmethod
    def load_ply(
        cls,
        path: str | PathLike[str],
        sh_degree: int | None = None,
        device: torch.device | str | None = None,
    ) -> "GaussianModel":
        """Read a splat PLY in the layout of the original 3DGS, from any program that writes it.

        Args:
            path: the file.
            sh_degree: None keeps the file's degree; another one drops the bands above it or adds zeros.
            device: of the parameters.

        Raises:
            InputError: the file is missing or damaged, lacks a property, has no Gaussians, has numbers that
                are not finite, or has more than 3 bands while `sh_degree` is None.
        """
        from gsopt.datasets.ply import read_splat  # at call time: only files need its packages

        values = {name: torch.from_numpy(array) for name, array in read_splat(path).items()}
        if len(values["xyz"]) == 0:
            raise InputError(f"{path}: expected at least one Gaussian, found none; give a file that has some")
        found = sh_degree_of(values["feature_rest"].shape[1] + 1)
        if sh_degree is None and found > MAX_SH_DEGREE:
            raise InputError(
                f"{path}: expected harmonics of degree {MAX_SH_DEGREE} or less, found {found}; "
                f"give a degree to drop the bands above it"
            )
        model = cls(len(values["xyz"]), found if sh_degree is None else sh_degree, device)
        bands = min(model.feature_rest.shape[1], values["feature_rest"].shape[1])
        with torch.no_grad():
            for name in ATTRIBUTES:
                if name != "feature_rest":
                    getattr(model, name).copy_(values[name])
            model.feature_rest[:, :bands] = values["feature_rest"][:, :bands].to(model.feature_rest.device)
        return model

    def save_ply(self, path: str | PathLike[str]) -> None:
        """Write the raw parameters as a splat PLY in the layout of the original 3DGS, binary, little endian.

        The file appears under its name only when it is complete.

        Raises:
            OSError: the file cannot be written.
        """
        from gsopt.datasets.ply import write_splat

        write_splat(path, {name: getattr(self, name).detach().cpu().numpy() for name in ATTRIBUTES})

    @torch.no_grad()
    def moved(self, move: Similarity | None) -> "GaussianModel":
        """A model moved, turned and scaled, its harmonics turned along, without locks; itself for None."""
        if move is None:
            return self
        model = GaussianModel(self.num_gaussians, self.max_sh_degree, self.xyz.device)
        for name, value in move_gaussians({name: getattr(self, name) for name in ATTRIBUTES}, move).items():
            model.get_parameter(name).copy_(value)
        return model

    @property
    def num_gaussians(self) -> int:
        """Number of rows N."""
        return self.xyz.shape[0]

    @property
    def max_sh_degree(self) -> int:
        """Highest band of the harmonics that the model stores, 0 to 3."""
        rest = self._parameters["feature_rest"]  # several times a step, and quicker than as an attribute
        assert rest is not None
        return sh_degree_of(rest.shape[1] + 1)

    @property
    def has_locks(self) -> bool:
        """Whether there are `locks`."""
        return self._buffers["locks"] is not None  # a buffer as attribute is found by a function in Python

    @property
    def locked(self) -> Tensor | None:
        """Which Gaussians have a locked attribute; None where there is none. [N] bool"""
        return None if self.locks is None else self.locks.any(dim=1)

    @property
    def means(self) -> Tensor:
        """Centres, world units. [N, 3]"""
        return self.xyz

    @property
    def quats(self) -> Tensor:
        """Rotations as quaternions w, x, y, z of any length; the rasterizer normalises them. [N, 4]"""
        return self.rotation

    @property
    def scales(self) -> Tensor:
        """Standard deviations along the three axes, world units. [N, 3]"""
        return self.scaling.exp()

    @property
    def opacities(self) -> Tensor:
        """Opacities in 0..1. [N]"""
        return self.opacity.squeeze(-1).sigmoid()

    @property
    def sh(self) -> tuple[Tensor, Tensor]:
        """Coefficients of the harmonics: the constant one [N, 1, 3] and the rest [N, (D+1)²-1, 3].

        Two tensors, because joining them would copy both in every step.
        """
        return self.feature_dc, self.feature_rest

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
        *,
        take_sh_degree: bool = False,
    ) -> Any:
        """Load parameters, with as many rows as were saved, and which of them are locked.

        Where the number of rows (or, with `take_sh_degree`, of harmonics) changes, the parameters are new
        objects: load first, then build groups and optimizer. Parameters keep their `requires_grad`.

        Args:
            state_dict: as from :meth:`state_dict`.
            strict: refuse missing and unexpected names.
            assign: as in `torch.nn.Module.load_state_dict`.
            take_sh_degree: take over the saved degree of the harmonics too, instead of refusing another one.

        Raises:
            RuntimeError: shapes that still differ, or names with `strict`; then nothing is changed.
        """
        rest = state_dict.get("feature_rest")
        degree = self.max_sh_degree
        if take_sh_degree and isinstance(rest, Tensor) and rest.dim() == 3:
            degree = sh_degree_of(rest.shape[1] + 1)
        self._take_rows(state_dict, "", degree)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._take_rows(
            state_dict, prefix, self.max_sh_degree
        )  # also when the model is part of a larger module
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take_rows(self, state_dict: Mapping[str, Any], prefix: str, sh_degree: int) -> None:
        """Give the parameters the saved number of rows, if the saved tensors form a model of this degree.

        If they do not, nothing is done, and torch's own loading reports the names and shapes that disagree.
        """
        saved = [value for name in ATTRIBUTES if isinstance(value := state_dict.get(prefix + name), Tensor)]
        if len(saved) < len(ATTRIBUTES) or not all(value.dim() for value in saved):
            return
        rows = saved[0].shape[0]
        wanted = {name: torch.Size((rows, *shape)) for name, shape in _row_shapes(sh_degree).items()}
        if any(value.shape != wanted[name] for name, value in zip(ATTRIBUTES, saved, strict=True)):
            return
        for name in ATTRIBUTES:
            own = getattr(self, name)
            if own.shape != wanted[name]:
                empty = torch.empty(wanted[name], dtype=own.dtype, device=own.device)
                setattr(self, name, nn.Parameter(empty, requires_grad=own.requires_grad))
        lacks = state_dict.get(prefix + "locks") is None
        size = (rows, len(ATTRIBUTES))
        self.locks = None if lacks else torch.empty(size, dtype=torch.bool, device=self.xyz.device)

    def extra_repr(self) -> str:
        return f"{self.num_gaussians:,} Gaussians, SH degree {self.max_sh_degree}"


def _row_shapes(sh_degree: int) -> dict[str, tuple[int, ...]]:
    """Shape of one row of each attribute."""
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise ValueError(f"sh_degree: expected 0 to {MAX_SH_DEGREE}, found {sh_degree}")
    return {
        "xyz": (3,),
        "feature_dc": (1, 3),
        "feature_rest": (num_sh_bases(sh_degree) - 1, 3),
        "scaling": (3,),
        "rotation": (4,),
        "opacity": (1,),
    }


def _checked_points(name: str, values: Tensor | np.ndarray | Sequence) -> Tensor:
    """`values` as a float32 CPU tensor [N, 3] of finite numbers, N >= 1."""
    tensor = torch.as_tensor(values).detach().to(device="cpu", dtype=torch.float32)
    if tensor.dim() != 2 or tensor.shape[1] != 3:
        raise InputError(
            f"points: {name}: expected the shape [N, 3], found {list(tensor.shape)}; give one row a point"
        )
    if len(tensor) == 0:
        raise InputError("points: expected at least one point, found none; give a point cloud that has some")
    bad = ~torch.isfinite(tensor)
    if bad.any():
        raise InputError(
            f"points: {name}: expected finite numbers, found NaN or infinity in row {_rows(bad)}; remove them"
        )
    return tensor


def _rows(bad: Tensor, shown: int = 5) -> str:
    """The first few rows of a mask [N, C] that hold a True, for a message: '3, 17, 20 and 4 more'."""
    rows = torch.nonzero(bad.any(dim=1)).flatten().tolist()
    text = ", ".join(str(row) for row in rows[:shown])
    return text if len(rows) <= shown else f"{text} and {len(rows) - shown} more"


def _neighbour_log_distance(xyz: Tensor) -> Tensor:
    """Log of the mean distance to the 3 nearest neighbours (to all others where there are fewer). [N]"""
    from scipy.spatial import cKDTree  # at call time: loading it takes longer than all of this package

    neighbours = min(3, len(xyz) - 1)
    if neighbours == 0:
        return torch.full((1,), math.log(LONE_SCALE), device="cpu")
    points = xyz.double().numpy()
    distances, _ = cKDTree(points).query(
        points, k=neighbours + 1, workers=-1
    )  # the point itself is the first
    mean = distances[:, 1:].mean(axis=1)
    apart = mean[mean > 0]
    floor = TINY_SCALE * np.median(apart) if len(apart) else LONE_SCALE
    # NumPy, because the last bit of torch's vectorised log depends on how threads cut the tensor.
    return torch.from_numpy(np.log(np.maximum(mean, floor)).astype(np.float32))
