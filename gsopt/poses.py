"""Camera pose refinement: a small rigid motion for each training view, learnt with the Gaussians."""

import torch
from torch import Tensor, nn

_TERMS = 10  # of the series below: the first one left out is under 1e-18 of the sum


def se3_exp(twists: Tensor) -> Tensor:
    """Rigid motions from twists, by the exponential map of SE(3).

    ``[R, V ρ; 0, 1]`` with ``R = I + a W + b W²`` (Rodrigues) and ``V = I + b W + c W²``, where ``W`` is the
    cross-product matrix of ω, θ = |ω|, ``a = sin θ / θ``, ``b = (1 - cos θ) / θ²`` and
    ``c = (θ - sin θ) / θ³`` (Barfoot, "State Estimation for Robotics", 2017, section 7.1; Solà et al., "A
    micro Lie theory", 2018, arXiv:1812.01537, appendices B and D). Below θ = 1 the three are taken from their
    power series in θ², so that values and gradients are exact at zero, too.

    Args:
        twists: rotation vector ω in radians, then translation ρ. [..., 6]

    Returns:
        [..., 4, 4]; the identity, to the bit, for a twist of zeros.
    """
    omega, rho = twists[..., :3], twists[..., 3:]
    x, y, z = omega.unbind(-1)
    square = x * x + y * y + z * z  # θ² [...]
    a, b, c = (factor[..., None, None] for factor in _factors(square))
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=twists.dtype, device=twists.device)
    cross2 = omega[..., :, None] * omega[..., None, :] - square[..., None, None] * eye
    rotation = eye + a * cross + b * cross2  # [..., 3, 3]
    left = eye + b * cross + c * cross2  # the left Jacobian V
    # Products and sums element by element: a matrix product would add in an order of its own choice.
    translation = (left * rho[..., None, :]).sum(-1, keepdim=True)  # [..., 3, 1]
    # Not by new_tensor: that copies from the CPU, and waits for another device to take it.
    last = torch.eye(4, dtype=twists.dtype, device=twists.device)[3:].expand(*twists.shape[:-1], 1, 4)
    return torch.cat([torch.cat([rotation, translation], dim=-1), last], dim=-2)


class PoseRefiner(nn.Module):
    """A motion of each training camera, in the camera's own axes: ``viewmat' = exp(twist) viewmat``.

    At first all are zero, and `forward` gives the matrices back unchanged. Nothing fixes where the scene as a
    whole stands: all cameras together may drift with it. Weight decay on `delta` holds them near the given
    poses.

    Args:
        num_views: number V of training views, at least 1.
        scale: world units that a translation of 1 in `delta` stands for, more than 0. The extent of the scene
            makes one learning rate right for rotations and for translations, whatever the unit of the scene.
        device: of the parameter.

    | parameter | shape | unit |
    |---|---|---|
    | `delta` | [V, 6] | rotation vector in radians, then translation in `scale` |

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, num_views: int, scale: float = 1.0, device: torch.device | str | None = None) -> None:
        super().__init__()
        if num_views < 1:
            raise ValueError(f"num_views: expected 1 or more, found {num_views}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale: expected a length of more than 0, found {scale}")
        self.scale = float(scale)
        self.delta = nn.Parameter(torch.zeros(num_views, 6, device=device))

    @property
    def twists(self) -> Tensor:
        """Rotation vectors in radians and translations in world units. [V, 6]"""
        return torch.cat([self.delta[..., :3], self.delta[..., 3:] * self.scale], dim=-1)

    def forward(self, viewmats: Tensor, views: int | Tensor) -> Tensor:
        """World-to-camera matrices as refined, differentiable in `delta`.

        Args:
            viewmats: as given. [4, 4], or [C, 4, 4]
            views: whose they are, 0 to V - 1: a number, or int64 [C].

        Returns:
            [4, 4], or [C, 4, 4], on the device of `delta`.
        """
        motion = se3_exp(self.twists[views])
        viewmats = viewmats.to(motion)
        # Element by element again, for bits that depend on nothing but the numbers.
        return (motion[..., :, :, None] * viewmats[..., None, :, :]).sum(-2)

    def extra_repr(self) -> str:
        return f"{len(self.delta)} views, scale {self.scale:g}"


def _factors(square: Tensor) -> list[Tensor]:
    """sin θ / θ, (1 - cos θ) / θ² and (θ - sin θ) / θ³ from θ², also at and near 0. Each [...]"""
    small = square < 1
    near = torch.where(small, square, 0)  # each branch gets numbers that its gradient can bear
    far = torch.where(small, 1, square)
    theta = far.sqrt()
    closed = [theta.sin() / theta, (1 - theta.cos()) / far, (theta - theta.sin()) / (far * theta)]
    return [torch.where(small, _series(near, first), value) for first, value in enumerate(closed, start=1)]


def _series(square: Tensor, first: int) -> Tensor:
    """Σ (-θ²)^k / (2k + first)!, by Horner's rule: one of the three factors for `first` 1, 2, 3."""
    total = torch.ones_like(square)
    for k in range(_TERMS, 0, -1):
        total = 1 - total * square / ((2 * k + first) * (2 * k + first - 1))
    return total / (1, 1, 2, 6)[first]
