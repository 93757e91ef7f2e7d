"""Frames to files: GIF with Pillow, MP4 with ffmpeg."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError

Frames = Sequence[npt.NDArray[np.uint8]]


def write_animation(frames: Frames, save_path: str | Path, frames_per_second: float = 2.0) -> Path:
    """Write frames uint8 [H, W, 3], all of one size, as .gif or .mp4.

    Raises ConfigError for another suffix, no frame or a bad rate, and where ffmpeg is missing or fails;
    MissingExtraError without Pillow.
    """
    path = Path(save_path)
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ConfigError("an animation needs one or more frames of one size")
    if not frames_per_second > 0:
        raise ConfigError(f"frames_per_second is {frames_per_second!r}; allowed: more than 0")
    writers: dict[str, Any] = {".gif": _write_gif, ".mp4": _write_mp4}
    if path.suffix.lower() not in writers:
        raise ConfigError(f"cannot save an animation as {path.name!r}: use .gif or .mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix.lower()](frames, path, frames_per_second)
    return path


def _write_gif(frames: Frames, path: Path, frames_per_second: float) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "figures", "Writing a GIF") from error
    pages = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    pages[0].save(
        path, save_all=True, append_images=pages[1:], duration=round(1000 / frames_per_second), loop=0
    )


def _write_mp4(frames: Frames, path: Path, frames_per_second: float) -> None:
    """Pipe raw pixels to ffmpeg; yuv420p, which every player takes, needs even sides."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise ConfigError(f"writing {path.name} needs ffmpeg on the PATH: install it, or save as .gif")
    height, width = frames[0].shape[0] // 2 * 2, frames[0].shape[1] // 2 * 2
    command = [ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{frames_per_second}", "-i", "-"]
    command += ["-an", "-pix_fmt", "yuv420p", str(path)]
    data = b"".join(np.ascontiguousarray(frame[:height, :width]).tobytes() for frame in frames)
    run = subprocess.run(command, input=data, capture_output=True)
    if run.returncode != 0:
        raise ConfigError(f"ffmpeg could not write {path}: {run.stderr.decode(errors='replace').strip()}")
