"""What every rasterizer backend is given, checked once, and the constants they share."""

from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from gsopt.geometry import MAX_SH_DEGREE, num_sh_bases

# Semantics of gsplat 1.5.3; the native kernel mirrors these numbers.
ALPHA_MIN = 1 / 255  # a Gaussian is skipped at a pixel where its alpha is below
ALPHA_MAX = 0.999  # alpha is clamped here; no gradient beyond (0.99 in development versions of gsplat 1.6)
TRANSMITTANCE_STOP = 1e-4  # a pixel ends before the Gaussian that would leave this much light, or less
EXTENT_SIGMAS = 3.33  # largest half-size of a splat's rectangle, in standard deviations
FOV_MARGIN = 0.3  # how far, in half image sizes, the point of linearisation may lie outside the image
RADIUS_MAX = 2**30  # pixels; keeps radii within int32
COLOR_OFFSET = 0.5  # added to the spherical harmonics before the colour is clamped at 0
EXPECTED_DEPTH_ALPHA_MIN = 1e-10  # smallest alpha that expected depth is divided by

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")


@dataclass(frozen=True, eq=False)
class RenderCall:
    """Checked arguments of one rasterization; names, units and defaults are those of `gsopt.rasterization`.

    All tensors are floating point of one dtype (float32 or float64) on one device.

    Raises:
        ValueError, TypeError: an argument is unusable; the message names it.
        NotImplementedError: batch dimensions in `means`, or `sh_degree` above 4.
    """

    means: Tensor  # [N, 3] world units
    quats: Tensor | None  # [N, 4] w x y z, any norm; None only with covars
    scales: Tensor | None  # [N, 3] world units; None only with covars
    opacities: Tensor  # [N] 0..1
    colors: Tensor | tuple[Tensor, Tensor]  # [(C,) N, D]; with sh_degree [(C,) N, K, 3], or a pair of those
    viewmats: Tensor  # [C, 4, 4] world to camera
    Ks: Tensor  # [C, 3, 3] pixels
    width: int
    height: int
    near_plane: float = 0.01
    far_plane: float = 1e10
    radius_clip: float = 0.0
    eps2d: float = 0.3
    sh_degree: int | None = None
    packed: bool = True
    tile_size: int = 16
    backgrounds: Tensor | None = None  # [C, D]
    render_mode: str = "RGB"
    absgrad: bool = False
    rasterize_mode: str = "classic"
    channel_chunk: int = 32
    segmented: bool = False
    covars: Tensor | None = None  # [N, 3, 3] world units squared; only the upper triangle is read
    raw: bool = False  # scales are logs, opacities logits [N] or [N, 1]

    def __post_init__(self) -> None:
        signature = tuple(map(_signature, vars(self).values()))
        if signature in _passed:
            return
        _check_settings(self)
        _check_gaussians(self)
        _check_colors(self)
        if len(_passed) >= _PASSED_MOST:
            _passed.clear()
        _passed.add(signature)

    @property
    def num_gaussians(self) -> int:
        return self.means.shape[0]

    @property
    def num_cameras(self) -> int:
        return self.viewmats.shape[0]

    @property
    def num_channels(self) -> int:
        """Channels of a Gaussian's colour, without depth."""
        return self.plain_colors.shape[-1] if self.sh_degree is None else 3

    @property
    def tile_width(self) -> int:
        """Number of tiles in a row."""
        return -(-self.width // self.tile_size)

    @property
    def tile_height(self) -> int:
        """Number of tiles in a column."""
        return -(-self.height // self.tile_size)

    @property
    def renders_color(self) -> bool:
        return self.render_mode.startswith("RGB")

    @property
    def renders_depth(self) -> bool:
        return self.render_mode.endswith("D")

    @property
    def divides_depth(self) -> bool:
        """Whether the depth channel is the expected depth: accumulated depth over alpha."""
        return self.render_mode.endswith("ED")

    @property
    def antialiased(self) -> bool:
        return self.rasterize_mode == "antialiased"

    def activated(self) -> "RenderCall":
        """The same call with scales and opacities as values, where they were given raw."""
        if not self.raw:
            return self
        scales = None if self.scales is None else self.scales.exp()
        return replace(self, scales=scales, opacities=self.opacities.flatten().sigmoid(), raw=False)

    @property
    def plain_colors(self) -> Tensor:
        """Colours without harmonics, or of harmonics in one tensor."""
        assert isinstance(self.colors, Tensor)
        return self.colors

    @property
    def sh_parts(self) -> tuple[Tensor, Tensor]:
        """Coefficients of degree 0, [(C,) N, 1, 3], and the others, [(C,) N, K-1, 3]; views of one tensor."""
        if isinstance(self.colors, tuple):
            return self.colors
        return self.colors[..., :1, :], self.colors[..., 1:, :]


# Signatures of calls without fault: training makes the same call thousands of times.
_passed: set[tuple] = set()
_PASSED_MOST = 256


def _signature(argument: object) -> object:
    """All that the checks look at of an argument."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype, argument.device
    if isinstance(argument, tuple):
        return tuple(map(_signature, argument))
    if type(argument).__hash__ is None:
        return object()  # like no other: no setting is a list or the like
    return type(argument), argument


def _check_settings(call: RenderCall) -> None:
    for name in ("width", "height", "tile_size", "channel_chunk"):
        value = getattr(call, name)
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name}: expected an integer, found {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if call.render_mode not in RENDER_MODES:
        raise ValueError(
            f"render_mode: expected one of {', '.join(RENDER_MODES)}, found {call.render_mode!r}"
        )
    if call.rasterize_mode not in RASTERIZE_MODES:
        raise ValueError(
            f"rasterize_mode: expected one of {', '.join(RASTERIZE_MODES)}, found {call.rasterize_mode!r}"
        )
    for name in ("near_plane", "eps2d"):
        if not getattr(call, name) >= 0:
            raise ValueError(f"{name}: expected at least 0, found {getattr(call, name)}")


def _check_gaussians(call: RenderCall) -> None:
    if not isinstance(call.means, Tensor):
        raise TypeError(f"means: expected a tensor, found {type(call.means).__name__}")
    if call.means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"means: expected dtype float32 or float64, found {_dtype_name(call.means)}")
    if call.means.ndim > 2:
        raise NotImplementedError(
            f"means: batch dimensions are not supported: expected [N, 3], found {list(call.means.shape)}"
        )
    _check_tensor(call, "means", call.means, "N 3")
    _check_tensor(call, "viewmats", call.viewmats, "C 4 4")
    _check_tensor(call, "Ks", call.Ks, "C 3 3")
    _check_tensor(call, "opacities", call.opacities, "N", *(["N 1"] if call.raw else []))
    if call.covars is None:
        _check_tensor(call, "quats", call.quats, "N 4")
        _check_tensor(call, "scales", call.scales, "N 3")
    else:
        _check_tensor(call, "covars", call.covars, "N 3 3")


def _check_colors(call: RenderCall) -> None:
    degree = call.sh_degree
    if degree is None:
        if isinstance(call.colors, tuple):
            raise ValueError("colors: a pair (feature_dc, feature_rest) needs sh_degree, found None")
        _check_tensor(call, "colors", call.colors, "N D", "C N D")
        if call.colors.shape[-1] == 0:
            raise ValueError("colors: expected at least one channel, found 0")
    else:
        _check_harmonics(call, degree)
    if call.backgrounds is not None:
        # Pictures of depth alone have no background colour, as in gsplat.
        layout = f"C {call.num_channels}" if call.renders_color else "C D"
        _check_tensor(call, "backgrounds", call.backgrounds, layout)


def _check_harmonics(call: RenderCall, degree: int) -> None:
    if not isinstance(degree, Integral) or isinstance(degree, bool):
        raise TypeError(f"sh_degree: expected an integer or None, found {degree!r}")
    if degree < 0:
        raise ValueError(f"sh_degree: expected at least 0, found {degree}")
    if degree > MAX_SH_DEGREE:
        raise NotImplementedError(f"sh_degree: supported up to {MAX_SH_DEGREE}, found {degree}")
    if isinstance(call.colors, tuple):
        if len(call.colors) != 2:
            raise ValueError(f"colors: expected two tensors in the tuple, found {len(call.colors)}")
        _check_tensor(call, "colors[0]", call.colors[0], "N 1 3", "C N 1 3")
        rest_layout = "N K 3" if call.colors[0].ndim == 3 else "C N K 3"
        _check_tensor(call, "colors[1]", call.colors[1], rest_layout)
        found = 1 + call.colors[1].shape[-2]
    else:
        _check_tensor(call, "colors", call.colors, "N K 3", "C N K 3")
        found = call.colors.shape[-2]
    if found < num_sh_bases(degree):
        raise ValueError(
            f"colors: sh_degree {degree} needs at least {num_sh_bases(degree)} coefficients, found {found}"
        )


def _check_tensor(call: RenderCall, name: str, tensor: object, *layouts: str) -> None:
    """Compare type, shape, dtype and device with `layouts` ("N 3": letters are sizes) and `call.means`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    sizes = {"N": call.means.shape[0] if call.means.ndim == 2 else None}
    if name not in ("means", "viewmats"):
        sizes["C"] = call.viewmats.shape[0]
    if not any(_fits(tensor.shape, layout.split(), sizes) for layout in layouts):
        wanted = " or ".join("[" + layout.replace(" ", ", ") + "]" for layout in layouts)
        known = ", ".join(f"{k} = {v}" for k, v in sizes.items() if v is not None and k in wanted)
        raise ValueError(
            f"{name}: expected shape {wanted}{' with ' + known if known else ''}, found {list(tensor.shape)}"
        )
    if tensor.dtype != call.means.dtype:
        raise ValueError(
            f"{name}: expected dtype {_dtype_name(call.means)} like means, found {_dtype_name(tensor)}"
        )
    if tensor.device != call.means.device:
        raise ValueError(f"{name}: expected device {call.means.device} like means, found {tensor.device}")


def _fits(shape: torch.Size, layout: list[str], sizes: dict[str, int | None]) -> bool:
    if len(shape) != len(layout):
        return False
    wanted = [int(letter) if letter.isdigit() else sizes.get(letter) for letter in layout]
    return all(size is None or size == found for size, found in zip(wanted, shape, strict=True))


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
