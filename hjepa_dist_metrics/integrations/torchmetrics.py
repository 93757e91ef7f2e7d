"""Put torchmetrics' metrics into a MetricCollection: one fused, checked sync for them as well.

torchmetrics syncs every state of every metric by itself: two barriers and two gathers for a mean. Here its
states travel with all others, its own sync is never called, and its `compute` runs on the merged states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.integrations.torch_states import TorchState, reduction_of
from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.states import State, Sum

if TYPE_CHECKING:
    import torchmetrics

    Wrapped: TypeAlias = torchmetrics.Metric | torchmetrics.MetricCollection

Values = Mapping[str, Any]
_MOST_VALUES = 1000
_UPDATES = "_updates"


@dataclass(frozen=True)
class _Slot:
    """Say where a state lives: the module's path inside the wrapped metric, the attribute, how it merges.

    `place` is the place in the window of a `Running` metric, each of which counts its own updates.
    """

    path: str
    attribute: str
    how: TorchState
    place: int | None = None

    @property
    def key(self) -> str:
        """Return the state's name in the sync; a dot would separate metric and state there."""
        return f"{_key(self.path)}{self.attribute}"

    @property
    def counter(self) -> str:
        """Return the name of the state that counts its updates."""
        return _counter(self.path, self.place)


class TorchMetric(DistributedMetric):
    """Sync a torchmetrics Metric or MetricCollection with everything else.

        coll = MetricCollection({"accuracy": TorchMetric(MulticlassAccuracy(10), "val/accuracy")})
        coll["accuracy"].update(predictions, target)
        coll.compute()

    `metric` goes on being updated; a copy of it, taken here, computes. Numbers are written as `tag`, the
    entries of a dict as `tag/key` and those of a vector as `tag/0`, `tag/1`, ...; a MetricCollection's keys
    are tags already where `tag` is None. `formula` turns another result, a curve for instance, into values.

    Sums, minima, maxima and concatenations merge as in torchmetrics. A mean is weighted by the updates that
    each rank has made, and ranks without any are left out everywhere, where torchmetrics counts their
    defaults in. Before the first update the result is {}.
    """

    def __init__(
        self, metric: Wrapped, tag: str | None = None, formula: Callable[[Any], Values] | None = None
    ) -> None:
        single = _library().Metric
        if not isinstance(metric, (single, _library().MetricCollection)):
            raise ConfigError(
                f"expected a torchmetrics Metric or MetricCollection, got {type(metric).__name__}"
            )
        self.metric = metric
        self.tag = tag if tag is not None else type(metric).__name__ if isinstance(metric, single) else None
        self.formula = formula
        self._blank = _blank_copy(metric)
        self._slots = [
            _Slot(
                path,
                name,
                reduction_of(f"{type(module).__name__}.{name}", default, module._reductions[name]),
                _place_in_window(module, name),
            )
            for path, module in _metrics(metric)
            for name, default in module._defaults.items()
        ]
        # What was restored or merged in; the wrapped metric holds what came after.
        updates = {name: Sum() for name in _updates(metric)}
        self._states = {slot.key: slot.how.empty() for slot in self._slots} | updates

    @property
    def states(self) -> Mapping[str, State]:  # type: ignore[override]
        """Return the local states by name: the wrapped metric's own, and what was restored before."""
        return {name: state.merge(self._states[name]) for name, state in self._live().items()}

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update the wrapped metric."""
        self.metric.update(*args, **kwargs)

    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        self.metric.reset()

    def merge(self, other: DistributedMetric) -> TorchMetric:
        """Take in what `other` has seen; return self."""
        if not isinstance(other, TorchMetric) or set(other._states) != set(self._states):
            raise ConfigError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        theirs = other.states
        self._states = {name: state.merge(theirs[name]) for name, state in self._states.items()}
        self.failure = self.failure or other.failure
        return self

    def compute_from(self, states: Mapping[str, Any]) -> Values:
        """Return the wrapped metric's result on the merged states; {} before the first update."""
        metric = _share_networks(self._blank)
        updates = {name: round(states[name].value) for name in _updates(metric)}
        if not any(updates.values()):
            return {}
        modules = dict(_metrics(metric))
        for slot in self._slots:
            module = modules[slot.path]
            default = module._defaults[slot.attribute]
            value = slot.how.value(states[slot.key], default, updates[slot.counter])
            setattr(module, slot.attribute, _to_device(value, module.device))
        for path, module in modules.items():
            module._update_count = updates[_counter(path)]
            if isinstance(module, _running()):
                module._num_vals_seen = updates[_counter(path)]
        result = metric.compute()
        return self.formula(result) if self.formula is not None else _named(self.tag, result)

    def _live(self) -> dict[str, State]:
        """Return the wrapped metric's states as ours."""
        for module in self.metric.modules():
            if isinstance(module, _library().MetricCollection):
                module.values(copy_state=False)  # members of a compute group see the leader's state again
        modules = dict(_metrics(self.metric))
        updates = _updates(self.metric)
        live = {
            slot.key: slot.how.take(getattr(modules[slot.path], slot.attribute), updates[slot.counter])
            for slot in self._slots
        }
        return live | {name: _count(number) for name, number in updates.items()}


def _library() -> Any:
    try:
        import torchmetrics
    except ImportError as error:
        raise MissingExtraError("torchmetrics", "bench", "TorchMetric") from error
    return torchmetrics


def _metrics(metric: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the path and module of every Metric inside, the outermost first."""
    kind = _library().Metric
    return ((path, module) for path, module in metric.named_modules() if isinstance(module, kind))


def _running() -> Any:
    from torchmetrics.wrappers import Running

    return Running


def _updates(metric: nn.Module) -> dict[str, int]:
    """Return the number of updates of every Metric inside, and of every place of a `Running`'s window.

    A wrapper counts no updates by itself, and a `Running` resets what it wraps after each.
    """
    updates = {}
    for path, module in _metrics(metric):
        updates[_counter(path)] = module._update_count
        if isinstance(module, _running()):
            seen = updates[_counter(path)] = module._num_vals_seen
            updates |= {_counter(path, place): int(place < seen) for place in range(module.window)}
    return updates


def _counter(path: str, place: int | None = None) -> str:
    return f"{_key(path)}{_UPDATES}" + ("" if place is None else f"_{place}")


def _place_in_window(module: Any, attribute: str) -> int | None:
    return int(attribute.rpartition("_")[2]) if isinstance(module, _running()) else None


def _key(path: str) -> str:
    return f"{path.replace('.', '/')}/" if path else ""


def _count(updates: int) -> Sum:
    return Sum().holding(torch.full((1, 1), float(updates), dtype=torch.float64, device="cpu"))


def _blank_copy(metric: Wrapped) -> Any:
    """Return a copy that has seen nothing and never syncs by itself."""
    blank = _share_networks(metric)
    blank.reset()
    for _, module in _metrics(blank):
        module.sync_on_compute = module._to_sync = False
    return blank


def _share_networks(metric: nn.Module) -> Any:
    """Copy a metric but not the feature networks inside it."""
    kinds = (_library().Metric, _library().MetricCollection, nn.ModuleDict, nn.ModuleList)
    networks = {
        id(child): child
        for module in metric.modules()
        if isinstance(module, kinds)
        for child in module.children()
        if not isinstance(child, kinds)
    }
    return copy.deepcopy(metric, networks)


def _to_device(value: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    return value.to(device) if isinstance(value, Tensor) else [part.to(device) for part in value]


def _named(tag: str | None, result: Any) -> dict[str, Any]:
    """Return a result's numbers by tag."""
    named: dict[str, Any] = {}
    for key, value in _entries(result):
        name = "/".join(part for part in (tag, *key) if part)
        if len(named) == _MOST_VALUES:
            raise ConfigError(f"{tag or 'the metric'} has more than {_MOST_VALUES} values: pass `formula`")
        named[name] = value
    return named


def _entries(result: Any) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(result, Mapping):
        parts: Sequence[tuple[str, Any]] = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, Tensor) and result.ndim == 0:
        yield (), float(result.item())
        return
    elif isinstance(result, (Tensor, Sequence)) and not isinstance(result, str):
        parts = [(str(index), value) for index, value in enumerate(result)]
    elif isinstance(result, (float, int)):
        yield (), float(result)
        return
    else:
        raise ConfigError(f"expected numbers, got {type(result).__name__}: pass `formula`")
    for key, value in parts:
        yield from (((key, *rest), number) for rest, number in _entries(value))
