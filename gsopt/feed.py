"""Photos and cameras on their way to the device of a training, each before the step that needs it.

On the CPU both are used where they lie. On another device nothing here waits: photos are copied from pinned
memory, the next one while the device works on this, and cameras once each. Of photos that lie in mapped files
only this one and the next are in memory.
"""

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gsopt.cameras import Camera
from gsopt.datasets.pyramid import ViewPyramid
from gsopt.datasets.scene import View
from gsopt.device import Uploader, pinned
from gsopt.runtime import ViewOrder


class PhotoFeed:
    """The views of a training on its device.

    Args:
        views: at every resolution that is asked for; pictures in memory get pinned in place on CUDA.
        order: in which they will be asked for.
    """

    def __init__(self, views: ViewPyramid, order: ViewOrder, device: torch.device) -> None:
        self.views, self.order, self.device = views, order, device
        self._here = device.type == "cpu"
        self._uploader = Uploader(device)
        self._cameras: WeakKeyDictionary[Camera, Camera] = WeakKeyDictionary()
        self._last: View | None = None  # that was taken
        self._ready: dict[tuple[int, int], View] = {}  # number, factor: pinned, this one and the next

    def take(self, number: int, factor: int, background: Tensor) -> tuple[View, Tensor]:
        """View `number` with sides divided by `factor`, its camera on the device, and its photo there.

        The photo [H, W, 3] is uint8 as it was read, or float32 in 0..1 where it has alpha: composited on
        `background` [3].
        """
        if self._last is not None:
            self._last.release()
        view = self.views.view(number, factor) if self._here else self._uploaded(number, factor)
        self._last = view
        return view, (view.rgb(background) if view.image.shape[-1] == 4 else view.image)

    def _uploaded(self, number: int, factor: int) -> View:
        """A view on the device, whose copy has begun with the view before; that of the next one begins."""
        view = self._pinned(number, factor)
        self._ready = {(number, factor): view}
        image = self._uploader.take(view.image)
        if (following := self.order.following) is not None:
            self._uploader.begin(self._pinned(following, factor).image)
        mask, depth = self._sent(view.mask), self._sent(view.inverse_depth)
        camera = self._there(view.camera)
        return replace(view, camera=camera, image=image, mapped=False, mask=mask, inverse_depth=depth)

    def _pinned(self, number: int, factor: int) -> View:
        if (number, factor) not in self._ready:
            view = self.views.view(number, factor)
            image = pinned(view.image, self.device)
            if view.mapped:
                view.release()
                view = replace(view, image=image, mapped=image is view.image)
            else:
                view.image = image
            self._ready[number, factor] = view
        return self._ready[number, factor]

    def _sent(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else pinned(tensor, self.device).to(self.device, non_blocking=True)

    def _there(self, camera: Camera) -> Camera:
        """The camera with its matrices on the device, copied when it is first needed."""
        if camera not in self._cameras:
            K, viewmat = (t.to(self.device, non_blocking=True) for t in (camera.K, camera.viewmat))
            self._cameras[camera] = replace(camera, K=K, viewmat=viewmat)
        return self._cameras[camera]
