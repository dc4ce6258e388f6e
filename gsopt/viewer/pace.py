"""When a browser gets its next picture, and of which size: small while its camera moves, full at rest.

Nothing here knows of viser or of Gaussians; times are in seconds, sizes in pixels.
"""

import math

MOVING_SECONDS = 0.06  # that a picture may take while the camera moves
STILL_AFTER = 0.2  # without a move, the camera has come to rest
LEAST = 0.25  # of the sides, while the camera moves
SHARE = 0.03  # of the time of a run that pictures of a still camera may take
WHILE_MOVING = 0.5  # the same while it moves


class Pace:
    """Decides for one browser. Call `size`, and, where it gives one, render and call `done`."""

    def __init__(self) -> None:
        self._pose: object = None  # of the last picture
        self._version: object = None  # of the model in it
        self._size = (0, 0)
        self._moved = -math.inf  # when the camera was seen to move
        self._ended = -math.inf  # when the last picture was done
        self._cost = 0.0  # of the last picture, seconds
        self._per_pixel = 0.0

    def size(
        self, now: float, pose: object, version: object, full: tuple[int, int], *, share: float | None
    ) -> tuple[int, int] | None:
        """Width and height of the picture to make now; None for none.

        Args:
            now: the time.
            pose: of the camera; another than that of the last picture means that it moves.
            version: of the model.
            full: width and height of a picture at rest.
            share: of the time that pictures at rest may take; None where nothing else needs it.
        """
        if pose != self._pose:
            self._moved = now
            moving_share = None if share is None else WHILE_MOVING
            return self._moving(full) if self._may(now, self._cost, moving_share) else None
        if now - self._moved < STILL_AFTER:
            return None
        if self._size != full:
            return full
        if version != self._version and self._may(now, self._cost, share):
            return full
        return None

    def done(self, now: float, pose: object, version: object, size: tuple[int, int], cost: float) -> None:
        """A picture of `size` was made in `cost` seconds."""
        self._pose, self._version, self._size, self._ended, self._cost = pose, version, size, now, cost
        self._per_pixel = cost / (size[0] * size[1])

    def again(self) -> None:
        """The browser shows something else by now: the next picture is due."""
        self._pose = None

    def _may(self, now: float, cost: float, share: float | None) -> bool:
        """Whether pictures take no more than `share` of the time if one is made now, as the last one was."""
        return share is None or now - self._ended >= cost * (1 / share - 1)

    def _moving(self, full: tuple[int, int]) -> tuple[int, int]:
        pixels = full[0] * full[1]
        affordable = MOVING_SECONDS / self._per_pixel if self._per_pixel else LEAST**2 * pixels
        scale = min(1.0, max(LEAST, math.sqrt(affordable / pixels)))
        return max(1, round(scale * full[0])), max(1, round(scale * full[1]))


def fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """The size of a window's picture whose longest side is at most `longest`."""
    scale = min(1.0, longest / max(width, height, 1))
    return max(1, round(scale * width)), max(1, round(scale * height))
