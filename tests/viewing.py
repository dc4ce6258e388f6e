"""A browser without a browser: it speaks viser's protocol with a viewer, to test its server side.

with Page(viewer.address) as page:
    page.look_from(camera)
    page.set("xyz", True)               # a checkbox or slider of the panel, by its label
    page.wait(lambda: page.pictures)    # until the server has sent one
"""

import io
import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np
import viser
import zstandard
from PIL import Image
from viser import _messages
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gsopt.cameras import Camera
from gsopt.viewer.lens import pose_of

SECONDS = 20.0  # to wait for what must come


class Page:
    """A connection, with all that the server has sent."""

    def __init__(self, address: str, camera: Camera, width: int = 80, height: int = 60) -> None:
        self.size = width, height
        self.messages: list[dict] = []
        self.widgets: dict[str, dict] = {}  # of the panel, by label
        self.values: dict[str, dict] = {}  # what the server has changed of them since, by uuid
        self.pictures: list[np.ndarray] = []  # uint8 [h, w, 3]
        self._socket = connect(
            address.replace("http", "ws"),
            subprotocols=[f"viser-v{viser.__version__}"],
            compression=None,
            max_size=None,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.look_from(camera)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._reader.join()

    def look_from(self, camera: Camera) -> None:
        """Move the camera."""
        width, height = self.size
        pose = pose_of(camera, width / height)
        axes = camera.viewmat[:3, :3].double()
        self._send(
            _messages.ViewerCameraMessage(
                pose.wxyz,
                pose.position,
                pose.fov,
                near=0.01,
                far=1000.0,
                image_height=height,
                image_width=width,
                look_at=tuple((camera.center.double() + axes[2]).tolist()),
                up_direction=tuple((-axes[1]).tolist()),
            )
        )

    def set(self, label: str, value: object = True) -> None:
        """Change a checkbox or slider, or press a button."""
        self.wait(lambda: label in self.widgets, label)
        self._send(_messages.GuiUpdateMessage(self.widgets[label]["uuid"], {"value": value}))

    def value(self, label: str, key: str = "value") -> object:
        """What a widget shows now; a property of it with `key`."""
        widget = self.widgets[label]
        return self.values.get(widget["uuid"], {}).get(key, widget.get(key, widget["props"].get(key)))

    def click(self, node: str) -> None:
        """Click on something in the scene."""
        message = next(m for m in self.messages if m.get("name") == node and "props" in m)
        self._send(
            _messages.SceneNodeClickMessage(
                node, None, (0, 0, 0), (0, 0, 1), (0.5, 0.5), None, owner=message.get("owner", "")
            )
        )

    def wait(self, until: Callable[[], object], what: str = "what must come") -> None:
        """Wait until something is so; AssertionError where it does not come."""
        end = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < end, f"waited {SECONDS:g} s for {what}"
            time.sleep(0.01)

    def of_type(self, kind: str) -> list[dict]:
        """Messages of one type."""
        return [message for message in self.messages if message["type"] == kind]

    @property
    def moves(self) -> list[tuple[float, ...]]:
        """Positions that the server has moved the camera to."""
        return [m["position"] for m in self.of_type("SetCameraPositionMessage") if not m["initial"]]

    def _send(self, message: _messages.Message) -> None:
        self._socket.send(msgspec.msgpack.encode(message.as_serializable_dict([])))

    def _read(self) -> None:
        try:
            for frame in self._socket:
                size = int.from_bytes(frame[8:16], "little")
                content = msgspec.msgpack.decode(zstandard.decompress(frame[16 : 16 + size]))
                for message in content["messages"]:
                    self._take(message)
        except ConnectionClosed:
            return

    def _take(self, message: dict) -> None:
        self.messages.append(message)
        if message["type"] == "GuiUpdateMessage":
            self.values.setdefault(message["uuid"], {}).update(message["updates"])
        if "uuid" in message and isinstance(message.get("props"), dict):
            label = message["props"].get("label") or message["type"]
            self.widgets[label] = message
        if message["type"] == "BackgroundImageMessage" and message["rgb_data"]:
            self.pictures.append(np.asarray(Image.open(io.BytesIO(message["rgb_data"]))))
