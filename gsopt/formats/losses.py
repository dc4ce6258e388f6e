"""How far off what was written is, in words."""

import numpy as np

from gsopt.formats.bits import SH_C0, sigmoid, unit


def losses(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    """What differs between raw parameters and what a format has kept of them; rows in the same order.

    Harmonics of bands that `after` does not have are named as lost.
    """
    kept = after["feature_rest"].shape[1]
    lost = before["feature_rest"][:, kept:]
    turn = (unit(before["rotation"]) * unit(after["rotation"])).sum(axis=1)
    angle = 2 * np.degrees(np.arccos(np.abs(turn).clip(0, 1)))
    centre = np.linalg.norm(_apart(before, after, "xyz"), axis=1)
    size = np.expm1(np.abs(_apart(before, after, "scaling")))
    colour = np.abs(_apart(before, after, "feature_dc")) * SH_C0
    opacity = np.abs(sigmoid(before["opacity"]) - sigmoid(after["opacity"]))
    parts = [
        f"centres by {centre.max():.2g} (mean {centre.mean():.2g})",
        f"sizes by {100 * size.max():.2g} % (mean {100 * size.mean():.2g})",
        f"rotations by {angle.max():.2g}° (mean {angle.mean():.2g})",
        f"opacities by {opacity.max():.2g} (mean {opacity.mean():.2g})",
        f"colours by {colour.max():.2g} (mean {colour.mean():.2g})",
    ]
    if kept:
        rest = np.abs(before["feature_rest"][:, :kept].astype(np.float64) - after["feature_rest"])
        parts.append(f"harmonics by {rest.max():.2g} (mean {rest.mean():.2g})")
    quantised = f"quantised, at most: {', '.join(parts)}"
    return [quantised, *(["harmonics above the constant are left out"] if lost.any() else [])]


def _apart(before: dict[str, np.ndarray], after: dict[str, np.ndarray], name: str) -> np.ndarray:
    return before[name].astype(np.float64) - after[name]
