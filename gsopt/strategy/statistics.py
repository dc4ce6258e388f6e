"""What strategies add up over the views: how much a Gaussian's image moves, and how often it was visible."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gsopt.native import SplatRows, check, is_plain, library, pointer


class ViewStatistics:
    """Sums over the views since the last refinement, for a strategy to decide by.

    | `rows` | what it is, of each Gaussian [N] |
    |---|---|
    | grad2d | sum of the norms of the gradient of its projected centre, normalised device coordinates |
    | count | number of views in which it was visible |
    | radii | its largest screen radius, longest image sides; 0 unless asked for |

    Args:
        owner: name of the strategy, for messages.
    """

    NAMES = ("grad2d", "count", "radii")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.rows: dict[str, Tensor] = {}
        self._places: tuple = (None,)  # the rows, their number, and where the kernel finds grad2d and count

    def add(self, info: Mapping[str, Any], absgrad: bool = False, screen_size: bool = False) -> None:
        """Add the views of `info` after their backward pass.

        Args:
            info: as for `Strategy.observe`; several cameras had the mean of their losses.
            absgrad: take the gradients that were summed as absolute values over the pixels.
            screen_size: look at the radii, too.

        Raises:
            ValueError: `info["means2d"]` has no gradient, or other rows than the sums.
        """
        known = getattr(info, "splat_rows", None)
        if known is not None and not screen_size and self._add_known(known, absgrad):
            return
        means2d = info["means2d"]
        gradients = means2d.absgrad if absgrad else means2d.grad  # [C, N, 2]
        if gradients is None:
            raise ValueError(
                "means2d: expected a gradient, found none; call retain_grad() before the backward pass"
            )
        radii = info["radii"]  # int [C, N, 2]
        # The loss is a mean over cameras: its gradient is undone to that of each.
        to_ndc = [info[side] / 2 * info["n_cameras"] for side in ("width", "height")]
        rows = self.of(gradients.shape[-2], gradients.device)
        add_gradients(rows["grad2d"], rows["count"], radii, gradients, to_ndc)
        if screen_size:
            self._add_radii(rows["radii"], radii, max(info["width"], info["height"]))

    def _add_known(self, splats: SplatRows, absgrad: bool) -> bool:
        """:meth:`add` of rows that the kernel can find; False, with nothing done, where it cannot."""
        gradient = splats.absolute if absgrad else splats.gradient
        if self._places[0] is not self.rows:
            sums = [self.rows[name] for name in ("grad2d", "count") if name in self.rows]
            plain = len(sums) == 2 and all(map(is_plain, sums))
            self._places = self.rows, len(sums[0]) if plain else 0, *map(pointer, sums)
        _, count, *places = self._places
        if gradient is None or count != splats.count:
            return False
        check(library().gsopt_statistics(count, splats.radii, gradient, *splats.to_ndc, *places))
        return True

    def _add_radii(self, rows: Tensor, radii: Tensor, longest_side: int) -> None:
        """`rows` [N] up to the radii [C, N, 2], pixels, in which a Gaussian is visible."""
        visible = (radii > 0).all(dim=-1)  # [C, N]
        largest = torch.where(visible, radii.amax(dim=-1), 0).amax(dim=0)  # pixels [N]
        torch.maximum(rows, largest / longest_side, out=rows)

    def of(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """The sums of `count` Gaussians, made or moved to `device` if need be. Each [count]

        Raises:
            ValueError: they are of another number of Gaussians.
        """
        if not self.rows:
            self.rows = {name: torch.zeros(count, device=device) for name in self.NAMES}
        counts = self.rows["count"]
        found = len(counts)
        if found != count:
            raise ValueError(
                f"{self.owner}: expected statistics of {count} Gaussians, found {found}; "
                "rows were changed between two refinements by something else"
            )
        if counts.device != device:
            self.rows = {name: value.to(device) for name, value in self.rows.items()}
        return self.rows

    def mean_gradient(self, count: int, device: torch.device) -> Tensor:
        """Mean over the views in which a Gaussian was visible, of those that :meth:`of` gives. [count]"""
        rows = self.of(count, device)
        return rows["grad2d"] / rows["count"].clamp_min(1)

    def clear(self) -> None:
        """Begin anew, with however many Gaussians there are then."""
        self.rows = {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `rows` as they were saved. Raises ValueError for the state of another strategy."""
        if state and set(state) != set(self.NAMES):
            raise ValueError(f"{self.owner}: expected {', '.join(self.NAMES)}, found {', '.join(state)}")
        self.rows = {name: value.clone() for name, value in state.items()}


def add_gradients(
    norms: Tensor, counts: Tensor, radii: Tensor, gradients: Tensor, scale: Sequence[float]
) -> None:
    """Add each camera's norm of the scaled gradient to `norms` and 1 to `counts`, where it sees a Gaussian.

    On the CPU one pass of the native kernel; :func:`add_gradients_reference` is its slow twin.

    Args:
        norms, counts: the sums, changed in place. float32 [N]
        radii: a Gaussian is visible where both are above 0. int32 [C, N, 2]
        gradients: by the projected centres, pixels. [C, N, 2]
        scale: factors on the gradient's x and y.
    """
    plain = radii.dtype == torch.int32 and radii.is_cpu and radii.is_contiguous()
    if not (plain and all(map(is_plain, (norms, counts, gradients)))):
        add_gradients_reference(norms, counts, radii, gradients, scale)
        return
    for camera in range(len(radii)):
        seen = (pointer(radii, camera), pointer(gradients, camera))
        check(library().gsopt_statistics(len(norms), *seen, *scale, pointer(norms), pointer(counts)))


@torch.no_grad()
def add_gradients_reference(
    norms: Tensor, counts: Tensor, radii: Tensor, gradients: Tensor, scale: Sequence[float]
) -> None:
    """:func:`add_gradients` in plain PyTorch, for any floating dtype and device."""
    x, y = (gradients[..., k] * scale[k] for k in (0, 1))  # [C, N]
    visible = (radii[..., 0] > 0) & (radii[..., 1] > 0)
    for camera in range(len(radii)):
        norms += torch.where(visible[camera], (x[camera].square() + y[camera].square()).sqrt(), 0)
        counts += visible[camera]
