"""gsplat's own `rasterization` without its kernels, and the signatures of its versions.

Its five kernels are replaced by its own functions of plain PyTorch; the one it has no fast one for,
compositing, by that of our reference.
"""

import sys
from types import SimpleNamespace

import torch
from torch import Tensor

from gsopt.geometry import quat_scale_to_covar
from gsopt.render import reference
from gsopt.render.info import tile_intersections

# Parameters of `gsplat.rasterization` and their defaults: of release 1.5.3, and of the development version
# of 1.6 after it, whose file still says 1.5.3. REQUIRED: no default. Enumerations by the name of the member.
REQUIRED = object()
_FIRST = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height")
_BOTH = dict.fromkeys(_FIRST, REQUIRED) | {
    **{"near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.3, "sh_degree": None},
    **{"packed": True, "tile_size": 16, "backgrounds": None, "render_mode": "RGB", "sparse_grad": False},
    **{"absgrad": False, "rasterize_mode": "classic", "distributed": False, "camera_model": "pinhole"},
    **{"segmented": False, "covars": None, "with_ut": False, "with_eval3d": False, "radial_coeffs": None},
    **{"tangential_coeffs": None, "thin_prism_coeffs": None, "ftheta_coeffs": None},
    **{"rolling_shutter": "GLOBAL", "viewmats_rs": None},
}
_NEW = {
    **{"macro_tile": False, "return_normals": False, "global_z_order": True, "rays": None},
    **{"lidar_coeffs": None, "external_distortion_coeffs": None, "ut_params": None, "extra_signals": None},
    **{"extra_signals_sh_degree": None, "renderer_config": None},
}
SIGNATURES = {
    "1.5": _BOTH | {"channel_chunk": 32},
    "1.6": _BOTH | _NEW | {"tile_size": None},  # None means 16 where with_eval3d is False
}
META = {
    *("batch_ids", "camera_ids", "gaussian_ids", "radii", "means2d", "depths", "conics", "opacities"),
    *("tile_width", "tile_height", "tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets"),
    *("width", "height", "tile_size", "n_batches", "n_cameras"),
}  # the same in both versions


def without_kernels(monkeypatch):
    """The module gsplat with its kernels replaced."""
    import gsplat
    import gsplat.rendering as rendering
    from gsplat.cuda import _torch_impl

    def projection(means, covars, quats, scales, viewmats, Ks, width, height, *, packed, **options):
        for name in ("radius_clip", "sparse_grad", "opacities"):  # which the slow twin does not know
            options.pop(name)
        if covars is None:
            covars = quat_scale_to_covar(quats, scales)
        else:  # six numbers of the upper triangle
            covars = covars[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
        found = _torch_impl._fully_fused_projection(means, covars, viewmats, Ks, width, height, **options)
        if not packed:
            return found
        cameras, gaussians = (found[0] > 0).all(-1).nonzero(as_tuple=True)
        rows = (None if part is None else part[cameras, gaussians] for part in found)
        return torch.zeros_like(cameras), cameras, gaussians, *rows

    def intersections(means2d, radii, depths, tile_size, width, height, *, packed, n_images, image_ids, **_):
        if not packed:
            return _torch_impl._isect_tiles(means2d, radii, depths, tile_size, width, height)
        *lists, _ = tile_intersections(
            means2d, radii, depths, tile_size, width, height, n_images=n_images, image_ids=image_ids
        )
        return lists

    def harmonics(degree, dirs, coeffs, masks):
        return _torch_impl._spherical_harmonics(degree, dirs, coeffs)

    def pixels(means2d, conics, colors, opacities, width, height, tile_size, offsets, ids, *, packed, **more):
        if packed:  # 1.5.3 takes the number of images from the colours of pairs, which have none
            assert more["backgrounds"] is None, more["backgrounds"].shape
        return reference.composite(
            means2d,
            conics,
            colors,
            opacities,
            width=width,
            height=height,
            tile_size=tile_size,
            isect_offsets=offsets,
            flatten_ids=ids,
            **more,
        )

    monkeypatch.setattr(rendering, "fully_fused_projection", projection)
    monkeypatch.setattr(rendering, "isect_tiles", intersections)
    monkeypatch.setattr(rendering, "isect_offset_encode", _torch_impl._isect_offset_encode)
    monkeypatch.setattr(rendering, "spherical_harmonics", harmonics)
    monkeypatch.setattr(rendering, "rasterize_to_pixels", pixels)
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(_C=object()))  # builds nothing
    return gsplat


def gradients(values: dict, names: tuple[str, ...], outputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Of a fixed weighting of pictures and alphas, by the named inputs."""
    picture = torch.cat(outputs, dim=-1)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(picture.shape, generator=generator, dtype=picture.dtype)
    return torch.autograd.grad((weights * picture).sum(), [values[name] for name in names])
