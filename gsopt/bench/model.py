"""How much each stage of a step has to do at least, counted from the kernel's source: bytes and operations.

Bytes are compulsory traffic: every value of every array that a stage reads or writes counts once, as if the
stage before left nothing in a cache. Small scenes stay in the cache, so a stage may well pass the bandwidth
of the memory. Operations: +, -, x, / and square roots count 1, a multiply-add 2; comparisons, selections,
minima and maxima, conversions and integers count 0. In compositing only the evaluated lanes count: testing
blocks, making lists and adding up lanes is what it costs beyond its work, as are the halo rows of the loss.

A full step: three channels, harmonics of degree 3, uint8 photos, classic rasterization, nothing frozen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LANES = 16  # pixels of a block
FLOATS = 59  # parameters of a Gaussian


@dataclass(frozen=True)
class Cost:
    """Bytes and operations by what they are counted by: the keys of `counts`."""

    bytes: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)


def counts(gaussians: int, pixels: int, work: Mapping[str, float]) -> dict[str, float]:
    """How often each unit of `COSTS` occurs in a step; `work` is that of `native.Frame`."""
    return {
        "gaussian": gaussians,
        "visible": work["visible"],
        "pair": work["pairs"],  # (Gaussian, tile)
        "pixel": pixels,
        "forward lane": LANES * work["forward_blocks"],  # (Gaussian, pixel) evaluated
        "backward lane": LANES * work["backward_blocks"],
    }


_ALPHA = 21  # of a lane (tile.h, vec.h): u 4, v 2, exponent 4, 2^x 11 (with AVX-512; 13 without)
_EXP = 20  # vec.h; with the sigmoid's sum and quotient 22
_RECOMPUTED = 18 + 146 + 3 * _EXP + _EXP + 2  # projection.h: centre, covariance, scales, opacity
_ADAM = Cost(  # parameter and two moments read and written, gradient read; moments 3 + 4, root 3, update 3
    bytes={"gaussian": 7 * 4 * FLOATS},
    flops={"gaussian": 13 * FLOATS},
)

COSTS = {
    # in: means 12, quats 16, scales 12, opacities 4; out: radii 8, means2d 8, cov2d 12, depths 4,
    # opacities 4, footprints 32, splats 64; on top of the projection: log2 15, square roots, culling and
    # fields 33
    "project": Cost(bytes={"gaussian": 44 + 68, "visible": 64}, flops={"gaussian": _RECOMPUTED + 48}),
    # the footprint read; depth read, key and id written; three passes read keys twice and ids once, and
    # write both
    "sort": Cost(bytes={"gaussian": 32, "visible": 12 + 3 * 20}),
    # twice id 4 and footprint 32, of which 8 are written; an entry a pair
    "bin": Cost(bytes={"visible": 2 * 44, "pair": 8}),
    # radii 8, colours 12; mean 12, coefficients 192; direction 13, basis 48, products 96, 3
    "sh": Cost(bytes={"gaussian": 20, "visible": 204}, flops={"visible": 13 + 48 + 99}),
    # entry 8, splat 64, mask 2; image 12, alpha 4, transmittance 4, stop 4; weight 1, T 1, three channels 6
    "forward": Cost(bytes={"pair": 74, "pixel": 24}, flops={"forward lane": _ALPHA + 8}),
    # image 12 and photo 3, twice; gradient 12. A value, of three a pixel: products 4, blurs of 4 and
    # of 3 maps along x and y 7 x 2 x 16, SSIM 32, gradient 10, photo 2
    "loss": Cost(bytes={"pixel": 42}, flops={"pixel": 3 * 272}),
    # entry 8, mask 2, splat 64, record 48, touched 1; gradient of the image 12, transmittance 4, stop 4.
    # 1 - alpha 1, reciprocal 3, T and weight 2, channels 12, gradient of alpha 3, behind 2, moments 12
    "backward": Cost(bytes={"pair": 123, "pixel": 20}, flops={"backward lane": _ALPHA + 35}),
    # record 48, touched 1; offset 4, gradients 36; splat 64
    "reduce": Cost(bytes={"pair": 49, "gaussian": 40, "visible": 64}, flops={"pair": 12, "visible": 26}),
    # radii 8, parameters 44, gradients in 24 and out 44; covariance 149, centre 11, means 15, quaternions 67,
    # logs and logits 6
    "project_backward": Cost(bytes={"gaussian": 120}, flops={"gaussian": _RECOMPUTED + 248}),
    # radii 8, means 12, gradients of coefficients 192; colours 12, their gradient 12, bands 180, gradients of
    # means added to 24. direction 13, basis 48, gradients 3 + 45, dots 75, basis_backward 128, its part
    # across the direction 14, sums 3
    "sh_backward": Cost(bytes={"gaussian": 212, "visible": 228}, flops={"visible": 329}),
    # radii 8, gradients 8, both sums read and written 16
    "statistics": Cost(bytes={"gaussian": 32}, flops={"gaussian": 7}),
    # all gradients
    "finite": Cost(bytes={"gaussian": 236}, flops={"gaussian": 118}),
    "optimizer": _ADAM,
    "torch optimizer": _ADAM,
}


def cost_of(stage: str, units: Mapping[str, float]) -> tuple[float, float] | None:
    """Bytes and operations of a stage in one step; None for a stage that has no model."""
    cost = COSTS.get(stage)
    if cost is None:
        return None
    traffic, flops = (sum(part[unit] * units[unit] for unit in part) for part in (cost.bytes, cost.flops))
    return traffic, flops
