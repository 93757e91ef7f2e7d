"""The names of torch.utils.tensorboard.SummaryWriter, for loops that have them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

_OTHER_NAMES = {
    "add_histogram": "log_histogram(tag, values, step)",
    "add_image": "log_image(tag, image, step)",
    "add_images": "log_images(tag, images, step)",
    "add_figure": "log_figure(tag, figure, step)",
    "add_video": "log_video(tag, frames, step)",
    "add_text": "log_text(tag, text, step)",
    "add_embedding": "log_embedding(tag, vectors, labels, images, step)",
    "add_hparams": "log_hparams(hparams, metrics)",
    "add_graph": "log_graph(model, inputs)",
}


class SummaryWriterNames:
    """Take `add_scalar` and `add_scalars`, and say what SummaryWriter's other methods are called here."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, prefix: str = "") -> None:
        """Write numbers at `step`."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> None:
        """Write one number, as `log_metrics` does."""
        self.log_metrics({tag: scalar_value}, global_step)

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any], global_step: int | None = None
    ) -> None:
        """Write several numbers under `main_tag`, into the same run; SummaryWriter makes a run of each."""
        self.log_metrics(tag_scalar_dict, global_step, main_tag)

    def __getattr__(self, name: str) -> Any:
        """Say what a method of SummaryWriter is called here."""
        if name in _OTHER_NAMES:
            raise AttributeError(f"MetricsLogger has no {name}: use {_OTHER_NAMES[name]}", obj=self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
