"""The dictionary of intermediate results of a rasterization, with gsplat's keys, shapes and dtypes."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsopt.native import SplatRows
from gsopt.render.call import RenderCall

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_keys, dict_values

_TILES = ("tile_width", "tile_height")  # in a row and in a column


class RenderInfo(dict):
    """Intermediate results; the lists of tile intersections are computed when they are first looked at.

    Only `info["tiles_per_gauss"]` and its three siblings, or anything that lists or copies the whole
    dictionary, causes that computation: a backend that bins into tiles in its own way pays nothing for them.

    Args:
        values: what is there already.
        later: what the backend puts off until somebody looks, as functions.
    """

    INTERSECTIONS = ("tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets")
    splat_rows: SplatRows | None = None  # of `radii` and the gradients of `means2d`, where they are known

    def __init__(self, values: Mapping[str, Any], later: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__(values)
        self._later = dict(later)

    def __missing__(self, key: str) -> Any:
        if key in self._later:
            self[key] = self._later.pop(key)()
            return self[key]
        if key not in self.INTERSECTIONS:
            raise KeyError(key)
        camera_ids = self["camera_ids"]
        tiles = tile_intersections(
            self["means2d"],
            self["radii"],
            self["depths"],
            self["tile_size"],
            self["tile_width"],
            self["tile_height"],
            n_images=self["n_cameras"],
            image_ids=camera_ids,
        )
        self.update(zip(self.INTERSECTIONS, tiles, strict=True))
        return self[key]

    def _complete(self) -> "RenderInfo":
        for key in (*self.INTERSECTIONS, *self._later):
            self[key]
        return self

    def __contains__(self, key: object) -> bool:
        return key in self.INTERSECTIONS or key in self._later or super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (it is the definition of get)

    # Overriding __iter__ also makes dict(info) and {**info} come through here.
    def __iter__(self) -> Iterator[str]:
        return super(RenderInfo, self._complete()).__iter__()

    def __len__(self) -> int:
        return super(RenderInfo, self._complete()).__len__()

    def keys(self) -> "dict_keys[Any, Any]":
        return super(RenderInfo, self._complete()).keys()

    def values(self) -> "dict_values[Any, Any]":
        return super(RenderInfo, self._complete()).values()

    def items(self) -> "dict_items[Any, Any]":
        return super(RenderInfo, self._complete()).items()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __or__(self, other: dict[Any, Any]) -> dict[Any, Any]:
        return self.copy() | other

    def pop(self, key: str, *default: Any) -> Any:
        return super(RenderInfo, self._complete()).pop(key, *default)


def render_info(
    call: RenderCall,
    *,
    radii: Tensor,  # int32 [C, N, 2] or [nnz, 2]
    means2d: Tensor,  # [C, N, 2] or [nnz, 2]
    depths: Tensor | Callable[[], Tensor],  # [C, N] or [nnz]; functions are called at the first look
    conics: Tensor | Callable[[], Tensor],  # [C, N, 3] or [nnz, 3]
    opacities: Tensor | Callable[[], Tensor],  # [C, N] or [nnz]
    camera_ids: Tensor | None = None,  # int64 [nnz] when packed
    gaussian_ids: Tensor | None = None,  # int64 [nnz] when packed
) -> RenderInfo:
    """Collect what a backend has computed under gsplat's keys.

    `means2d` is stored as given: it should have been through :func:`tracked`, and be the very tensor that the
    picture was composited from.
    """
    rows = {"depths": depths, "conics": conics, "opacities": opacities}
    later = {key: value for key, value in rows.items() if callable(value)}
    ids = {"batch_ids": None if camera_ids is None else torch.zeros_like(camera_ids)}
    ids |= {"camera_ids": camera_ids, "gaussian_ids": gaussian_ids}
    there = {key: value for key, value in rows.items() if key not in later}
    return RenderInfo(sizes(call) | ids | {"radii": radii, "means2d": means2d} | there, later)


def sizes(call: RenderCall) -> dict[str, int]:
    """The numbers in an info that depend on the call alone."""
    numbers = {name: getattr(call, name) for name in ("width", "height", "tile_size", *_TILES)}
    return numbers | {"n_batches": 1, "n_cameras": call.num_cameras}


def tracked(means2d: Tensor) -> Tensor:
    """`means2d` such that `retain_grad` works under grad mode, also where all geometry is frozen.

    Densification reads this gradient whatever is being trained.
    """
    if torch.is_grad_enabled() and not means2d.requires_grad:
        means2d.requires_grad_()
    return means2d


def keep_gradient(means2d: Tensor) -> None:
    """`retain_grad` without torch's copy: after the backward pass `means2d.grad` is the gradient itself.

    It lies in memory that the next backward passes use again once nobody holds it.
    """
    holder = weakref.ref(means2d)  # the hook lives as long as the tensor, so it must not keep it alive

    def keep(gradient: Tensor) -> None:
        if (tensor := holder()) is not None:
            tensor.grad = gradient

    means2d.register_hook(keep)


@torch.no_grad()
def tile_intersections(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    *,
    n_images: int,
    image_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """List the tiles that each splat's rectangle touches, in the order in which a tile composites them.

    A splat touches the tiles that its rectangle, means2d plus and minus radii, overlaps; one with a radius of
    zero touches none. Within a tile the order is by depth rounded to float32, equal depths by index.

    Args:
        means2d: centres in pixels. [C, N, 2], or [nnz, 2] when packed.
        radii: half sizes of the rectangles in pixels, int32. [C, N, 2] or [nnz, 2]
        depths: positive z in camera coordinates. [C, N] or [nnz]
        tile_size: pixels.
        tile_width: tiles in a row.
        tile_height: tiles in a column.
        n_images: C.
        image_ids: image of each splat when packed, int64. [nnz]

    Returns:
        A tuple of

        - tiles_per_gauss: number of tiles of each splat, int32. [C, N] or [nnz]
        - isect_ids: sorted keys, image | tile | 32 bits of the depth, int64. [n_isects]
        - flatten_ids: index into the C * N or nnz splats, int32. [n_isects]
        - isect_offsets: first intersection of each tile, int32. [C, tile_height, tile_width]

    Raises:
        ValueError: there are more tiles than the keys can number.
    """
    tile_bits = (tile_width * tile_height).bit_length()
    if n_images.bit_length() + tile_bits > 32:
        raise ValueError(f"tile_size: {n_images} images of {tile_width} x {tile_height} tiles are too many")
    device = means2d.device
    if image_ids is None:
        image_ids = torch.arange(n_images, device=device).repeat_interleave(means2d.shape[-2])
    flat_radii = radii.reshape(-1, 2)
    center = means2d.reshape(-1, 2) / tile_size
    reach = flat_radii.to(center.dtype) / tile_size
    grid = torch.tensor([tile_width, tile_height], dtype=center.dtype, device=device)
    first = (center - reach).floor().clamp_min(0).minimum(grid).long()  # [nnz, 2] x, y
    end = (center + reach).ceil().clamp_min(0).minimum(grid).long()
    span = (end - first) * (flat_radii > 0).all(-1, keepdim=True)
    counts = span.prod(-1)  # [nnz]

    owner = torch.arange(len(counts), device=device).repeat_interleave(counts)  # [n_isects]
    rank = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
    columns = span[owner, 0]
    tile_x = first[owner, 0] + rank % columns
    tile_y = first[owner, 1] + rank // columns
    depth_bits = depths.reshape(-1).float().view(torch.int32).long() & 0xFFFFFFFF
    keys = (image_ids[owner] << tile_bits | (tile_y * tile_width + tile_x)) << 32 | depth_bits[owner]
    isect_ids, order = keys.sort(stable=True)

    tiles = torch.arange(tile_width * tile_height, device=device)
    images = torch.arange(n_images, device=device)
    offsets = torch.searchsorted(isect_ids >> 32, images[:, None] << tile_bits | tiles, out_int32=True)
    return (
        counts.int().reshape(depths.shape),
        isect_ids,
        owner[order].int(),
        offsets.reshape(n_images, tile_height, tile_width),
    )
