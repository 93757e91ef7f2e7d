"""What held-out embeddings say: losses, whom their neighbours resemble, and things to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_dist_metrics.reference.multimodal.modality import GLOBAL, PairedData
from hjepa_dist_metrics.reference.multimodal.objective import ContrastiveObjective
from hjepa_dist_metrics.values import Embedding, Image, Text, Value

_SHOWN = 16
_MARGIN = 2

Embeddings = Mapping[str, Tensor]


def validation_losses(
    objective: ContrastiveObjective, embeddings: Embeddings, scale: Tensor, batch_size: int
) -> dict[str, float]:
    """Return each term of the loss over all samples, in fixed batches of about `batch_size`."""
    count = len(embeddings[GLOBAL])
    total: dict[str, float] = {}
    for part in np.array_split(np.arange(count), max(1, round(count / batch_size))):
        batch = {name: rows[torch.from_numpy(part)] for name, rows in embeddings.items()}
        for name, loss in objective(batch, scale, [len(part)]).losses.items():
            total[name] = total.get(name, 0.0) + loss.item() * len(part) / count
    return total


def same_class(embeddings: Embeddings, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return, for each modality to each other, how often the nearest neighbour has the same label."""
    units = {name: F.normalize(embeddings[name].double(), dim=1) for name in names}
    return {
        f"{a}_to_{b}": float((labels[(units[a] @ units[b].T).argmax(dim=1)] == labels).double().mean())
        for a, b in permutations(names, 2)
    }


def showpieces(data: PairedData, embeddings: Embeddings) -> Iterator[tuple[str, Value]]:
    """Yield pictures, captions with what they find, where there are any, and the projector's points."""
    held = slice(data.num_train, None)
    pictures = None if data.pictures is None else data.pictures[held]
    texts = () if data.captions is None else tuple(data.captions[held])
    if pictures is not None:
        yield "samples/pictures", Image(_grid(pictures[:_SHOWN]))
    if texts:
        yield "samples/captions", Text(_found(texts, embeddings, data.names))
    for name, rows in embeddings.items():
        yield f"embeddings/{name}", Embedding(rows.float().numpy(), texts, pictures)


def _grid(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Put pictures [N, H, W, 3] side by side, four in a row."""
    columns = min(4, len(pictures))
    framed = np.pad(
        pictures, ((0, -len(pictures) % columns), *((_MARGIN, _MARGIN),) * 2, (0, 0)), constant_values=255
    )
    count, height, width, channels = framed.shape
    rows = framed.reshape(count // columns, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows.reshape(count // columns * height, columns * width, channels))


def _found(texts: Sequence[str], embeddings: Embeddings, names: Sequence[str]) -> str:
    """Return a table: each shown sample's caption, and the caption of its neighbour in other modalities."""
    units = {name: F.normalize(embeddings[name].double(), dim=1) for name in names}
    pairs = list(permutations(names, 2))
    nearest = [(units[a][:_SHOWN] @ units[b].T).argmax(dim=1).tolist() for a, b in pairs]
    head = ["sample", "caption", *(f"{a} finds {b} of" for a, b in pairs)]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for place, text in enumerate(texts[:_SHOWN]):
        lines.append(" | ".join([str(place), text, *(texts[found[place]] for found in nearest)]))
    return "\n".join(f"| {line} |" for line in lines)
