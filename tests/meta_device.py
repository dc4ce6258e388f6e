"""A training on torch's "meta" device, which has shapes but no values: it stands in for a device like CUDA.

Whatever mixes devices fails there as on CUDA, and so does whatever asks the device for a value; `Waits` notes
the latter and answers.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gsopt.trainer
from gsopt.bench.scenes import parse_size, synthetic
from gsopt.config import TrainConfig
from gsopt.render import reference
from gsopt.render.info import render_info, tracked
from gsopt.trainer import Trainer

PACKAGE = str(Path(gsopt.trainer.__file__).parent)
aten = torch.ops.aten
VALUES = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)
SIZES = (aten.nonzero.default, aten.masked_select.default)  # of results, which only the device knows


def there(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu"


class Waits(TorchDispatchMode):
    """Counts what would wait for a CUDA device, by the file of the package that asks.

    That is: reading a value, results of a size that depends on values, copies from the device, copies to it
    that are not `non_blocking`, and tensors made there from numbers of Python.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_file: Counter[str] = Counter()

    def __enter__(self) -> "Waits":
        self._makers = _Makers(self._note)
        self._makers.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._makers.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in VALUES and there(args[0]):
            self._note()
            return True if args[0].dtype == torch.bool else 1.0
        if func in SIZES and there(args[0]):
            self._note()
            return torch.zeros(2, args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is aten.index.Tensor and any(there(i) and i.dtype == torch.bool for i in args[1]):
            self._note()
        if func is aten._to_copy.default:
            self._note_copy(args[0], kwargs.get("device"), kwargs.get("non_blocking", False))
        if func is aten.copy_.default:
            self._note_copy(args[1], args[0].device, args[2] if len(args) > 2 else False)
        return func(*args, **kwargs)

    def _note_copy(self, source: torch.Tensor, device: torch.device | None, non_blocking: bool) -> None:
        if device is None or torch.device(device).type == source.device.type:
            return
        if there(source) or not non_blocking:  # what comes from there has to be waited for anyhow
            self._note()

    def _note(self) -> None:
        frame = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        self.by_file[Path(frame.f_code.co_filename).name if frame else "torch"] += 1


class _Makers(TorchFunctionMode):
    """Notes tensors that are made on a device from numbers of Python: the dispatcher does not see them."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)

    def __init__(self, note) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        data = args[1] if func is torch.Tensor.new_tensor else args[0] if args else None
        if func in self.MAKERS and there(made) and not isinstance(data, torch.Tensor):
            self.note()
        return made


def render_nothing(call):
    """In place of a backend: pictures and info of the right shapes that depend on all that is rendered."""
    assert len({t.device for t in (call.means, call.viewmats, call.Ks, call.backgrounds)}) == 1
    n, cameras, like = call.num_gaussians, call.num_cameras, call.means
    means2d = tracked(call.means[:, :2].expand(cameras, n, 2) + 0)
    inputs = (call.quats, call.scales, call.opacities, *call.sh_parts, call.viewmats, call.backgrounds)
    total = (2 * means2d).sum() + sum(tensor.sum() for tensor in inputs)
    if call.absgrad:
        means2d.register_hook(lambda gradient: setattr(means2d, "absgrad", gradient.abs()))
    info = render_info(
        call,
        radii=like.new_empty(cameras, n, 2, dtype=torch.int32),
        means2d=means2d,
        depths=like.new_empty(cameras, n),
        conics=like.new_empty(cameras, n, 3),
        opacities=like.new_empty(cameras, n),
    )
    images = total.expand(cameras, call.height, call.width, 3)
    return images, images[..., :1], info


def meta_trainer(monkeypatch, alpha: bool = False, lock: bool = False, **settings) -> Trainer:
    """A trainer of a tiny scene whose model is on the meta device; `alpha`: of photos with transparency."""
    monkeypatch.setattr(gsopt.trainer, "pick_device", lambda *_: torch.device("meta"))
    monkeypatch.setattr(reference, "render", render_nothing)
    model, scene = synthetic(parse_size("40@24x16"))
    if alpha:
        for view in scene.train:
            view.image = torch.cat([view.image, view.image[..., :1]], dim=-1)
    settings = {"strategy": "default", "iterations": 1000, "quiet": True} | settings
    config = TrainConfig(scene=scene.path, **settings)
    with Waits():
        trainer = Trainer(config, scene=scene, model=model)
    if lock:  # not gsopt.lock, which looks at values
        trainer.model.locks = torch.zeros(40, 6, dtype=torch.bool, device="meta")
    return trainer
