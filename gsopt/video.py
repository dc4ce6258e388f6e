"""Video files, by the ffmpeg that the package imageio-ffmpeg brings."""

import contextlib
import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from gsopt.errors import InputError, MissingExtra
from gsopt.pictures import to_uint8

ENDINGS = (".mp4", ".mov", ".mkv")
_CRF = 14  # H.264's constant rate factor, 0 to 51: little is lost to the eye; ffmpeg's own choice is 23


def is_video(path: Path) -> bool:
    """Whether the name is that of a video."""
    return path.suffix.lower() in ENDINGS


def require_ffmpeg() -> None:
    """Raise MissingExtra where there is nothing that writes videos."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtra("imageio-ffmpeg", "video", "a video as --output")


class Video:
    """Writes frames [H, W, 3] (0..1) to a file as H.264, one after another: none is kept.

    As a context, the file appears at `path` when it is complete, or not at all; an old one there is replaced.

    Args:
        path: its ending is one of ENDINGS.
        width, height: of all frames, even.
        fps: frames per second.
    """

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        self.path = path
        self.size = (width, height)
        self.fps = fps
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")

    def add(self, image: Tensor) -> None:
        """The next frame."""
        try:
            self._pipe.write(to_uint8(image).contiguous().numpy().data)
        except OSError:  # a broken pipe: ffmpeg has stopped, and says why
            self._end()

    @contextlib.contextmanager
    def writing(self) -> Iterator["Video"]:
        """Frames are added inside. Raises InputError, with ffmpeg's reason, where it cannot write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as self._complaints:
            self._ffmpeg = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                start_new_session=True,  # Ctrl-C is for us: we end it
            )
            assert self._ffmpeg.stdin is not None
            self._pipe = self._ffmpeg.stdin
            try:
                yield self
                self._end()
                self._part.replace(self.path)
            finally:
                self._ffmpeg.kill()
                with contextlib.suppress(BrokenPipeError):
                    self._pipe.close()
                self._ffmpeg.wait()
                self._part.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        import imageio_ffmpeg

        width, height = self.size
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self.fps:g}"]
        coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(_CRF), "-movflags", "+faststart"]
        program = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
        return [*program, *raw, "-i", "-", *coded, str(self._part.absolute())]

    def _end(self) -> None:
        """Let ffmpeg finish; raise InputError where it has failed."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        if self._ffmpeg.wait() != 0:
            self._complaints.seek(0)
            words = self._complaints.read().decode(errors="replace").split()
            raise InputError(
                f"{self.path}: ffmpeg cannot write it ({' '.join(words)[:300]}); "
                "check the folder and its free space"
            )
