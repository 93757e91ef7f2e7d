"""Animated PNG, read back by an independent reader."""

import io

import numpy as np
import pytest

from hjepa_dist_metrics.sinks.tensorboard.png import encode_apng


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_frames_and_times_read_back(channels, count):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow, an independent PNG reader, is not installed")
    frames = np.random.default_rng(0).integers(0, 256, (count, 6, 9, channels), np.uint8)
    with pillow.open(io.BytesIO(encode_apng(frames, fps=8))) as image:
        assert getattr(image, "n_frames", 1) == count
        for index, frame in enumerate(frames):
            image.seek(index)
            assert image.info.get("duration", 125) == 125
            read = np.asarray(image.convert("RGB" if channels == 3 else "L"))
            np.testing.assert_array_equal(read, frame if channels == 3 else frame[..., 0])


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((2, 4, 4), np.uint8), 4),
        (np.zeros((0, 4, 4, 1), np.uint8), 4),
        (np.zeros((2, 4, 4, 1), np.float32), 4),
        (np.zeros((2, 4, 4, 1), np.uint8), 0),
    ],
)
def test_what_is_no_video_is_refused(frames, fps):
    with pytest.raises(ValueError, match="video"):
        encode_apng(frames, fps)
