"""Files of TensorBoard's embedding projector: vectors, labels, sprite sheet, and the list of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.sinks.tensorboard.png import encode_png
from hjepa_dist_metrics.sinks.text import file_name
from hjepa_dist_metrics.values import Embedding

_CONFIG = "projector_config.pbtxt"


class ProjectorFiles:
    """Write embeddings below `directory`, at `<step>/<tag>/`, and list them for the projector.

    A resumed run keeps the list of its first part, without what that wrote at `start_step` and later.
    """

    def __init__(self, directory: Path, start_step: int = 0) -> None:
        self._directory = directory
        self._start_step = start_step
        self._config: Any = None

    def add(self, tag: str, step: int, value: Embedding) -> None:
        """Write one embedding; raises ValueError where labels or sprites are not one a point."""
        _check(tag, value)
        name = f"{tag}:{step:05d}"
        folder = Path(f"{step:05d}") / file_name(tag)
        (self._directory / folder).mkdir(parents=True, exist_ok=True)
        config = self._load()
        kept = [info for info in config.embeddings if info.tensor_name != name]
        del config.embeddings[:]
        config.embeddings.extend(kept)
        info = config.embeddings.add(tensor_name=name, tensor_path=str(folder / "tensors.tsv"))
        np.savetxt(self._directory / info.tensor_path, value.vectors, fmt="%.7g", delimiter="\t")
        if value.labels:
            info.metadata_path = str(folder / "metadata.tsv")
            lines = (" ".join(str(label).split()) + "\n" for label in value.labels)
            (self._directory / info.metadata_path).write_text(
                "".join(lines), encoding="utf-8", errors="backslashreplace"
            )
        if value.sprites is not None:
            info.sprite.image_path = str(folder / "sprite.png")
            info.sprite.single_image_dim.extend([value.sprites.shape[2], value.sprites.shape[1]])
            (self._directory / info.sprite.image_path).write_bytes(encode_png(sprite_sheet(value.sprites)))
        self._save()

    def _load(self) -> Any:
        if self._config is None:
            from google.protobuf import text_format  # type: ignore[import-untyped]
            from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

            path = self._directory / _CONFIG
            self._config = ProjectorConfig()
            if path.exists():
                text_format.Parse(path.read_text(encoding="utf-8"), self._config)
            kept = [info for info in self._config.embeddings if _step(info.tensor_name) < self._start_step]
            del self._config.embeddings[:]
            self._config.embeddings.extend(kept)
        return self._config

    def _save(self) -> None:
        from google.protobuf import text_format

        text = text_format.MessageToString(self._config)
        (self._directory / _CONFIG).write_text(text, encoding="utf-8")


def sprite_sheet(sprites: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, H, W, 3] laid out row by row on a square grid [S*H, S*W, 3], S = ceil(sqrt(N))."""
    count, height, width, channels = sprites.shape
    side = math.ceil(math.sqrt(count))
    cells = np.zeros((side * side, height, width, channels), dtype=np.uint8)
    cells[:count] = sprites
    grid = cells.reshape(side, side, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(side * height, side * width, channels))


def _check(tag: str, value: Embedding) -> None:
    count = len(value.vectors)
    if value.vectors.ndim != 2 or not count:
        raise ValueError(
            f"embedding {tag!r} needs vectors [N, D] with N > 0, got shape {value.vectors.shape}"
        )
    if value.labels and len(value.labels) != count:
        raise ValueError(f"embedding {tag!r} has {count} points and {len(value.labels)} labels")
    if value.sprites is not None and (value.sprites.ndim != 4 or len(value.sprites) != count):
        raise ValueError(f"embedding {tag!r} has {count} points and sprites of shape {value.sprites.shape}")


def _step(tensor_name: str) -> int:
    digits = tensor_name.rpartition(":")[2]
    return int(digits) if digits.isdigit() else 0
