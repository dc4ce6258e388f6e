"""Frames of a video: of each stretch of it the sharpest."""

import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gsopt.errors import InputError, MissingExtra
from gsopt.prepare.photos import save_photo

_LONGEST = 480  # pixels: frames are compared at about this size, where noise of single pixels is gone


def video_fingerprint(video: Path) -> dict[str, Any]:
    """What tells a video from another. Raises InputError where there is none, or nothing to read it with."""
    if not video.is_file():
        raise InputError(f"--video {video}: no such file; give a video")
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtra("imageio-ffmpeg", "video", "--video")
    return {"count": 1, "bytes": video.stat().st_size, "digest": video.name}


def take_frames(video: Path, count: int, output: Path, bar: tqdm) -> dict[str, Any]:
    """Write `count` frames of a video into `output`: of as many equal stretches the sharpest of each.

    Of a video with fewer frames, all of them. Memory is for two frames.

    Returns:
        "frames": how many the video has; "taken": the numbers of those taken, from 0.

    Raises:
        InputError: ffmpeg cannot read the file, or it has no frames.
    """
    import imageio_ffmpeg

    try:
        total, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
    except RuntimeError as error:
        raise _unreadable(video, str(error)) from None
    bar.reset(total=total)
    taken = []
    best: tuple[float, int, np.ndarray] | None = None
    for number, frame in enumerate(_decoded(video)):
        if best is not None and number * count // total != best[1] * count // total:
            taken.append(_save(output, *best[1:]))
            best = None
        score = sharpness(frame)
        if best is None or score > best[0]:
            best = (score, number, frame)
        bar.update()
    if best is None:
        raise InputError(f"--video {video}: no frames in it; give another file")
    taken.append(_save(output, *best[1:]))
    return {"frames": total, "taken": taken}


def _save(output: Path, number: int, frame: np.ndarray) -> int:
    from PIL import Image

    save_photo(output / f"frame_{number:06d}.jpg", Image.fromarray(frame))
    return number


def _decoded(video: Path) -> Iterator[np.ndarray]:
    """All frames uint8 [H, W, 3], upright. Raises InputError where ffmpeg stops with an error."""
    import imageio_ffmpeg

    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-nostdin"]
    pipe = ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*program, "-i", str(video.absolute()), *pipe],
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,  # Ctrl-C is for us: we end it
        )
        try:
            while process.stdout.readline():  # P6
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # 255
                data = process.stdout.read(3 * width * height)
                if len(data) < 3 * width * height:
                    break
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code != 0:
            complaints.seek(0)
            raise _unreadable(video, complaints.read().decode(errors="replace"))


def _unreadable(video: Path, words: str) -> InputError:
    return InputError(
        f"--video {video}: ffmpeg cannot read it ({' '.join(words.split())[-200:]}); give another file"
    )


def sharpness(frame: np.ndarray) -> float:
    """Variance of the Laplacian of the grey values of a frame [H, W, 3]: high where edges are crisp."""
    step = max(1, max(frame.shape[:2]) // _LONGEST)
    height, width = (side // step * step for side in frame.shape[:2])
    green = frame[:height, :width, 1].reshape(height // step, step, width // step, step)
    grey = green.mean(axis=(1, 3), dtype=np.float32)
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inner).var())
