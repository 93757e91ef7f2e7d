"""DistributedMetric: keep states, update them locally, compute on what all ranks have seen."""

from __future__ import annotations

import copy
import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.validation import described
from hjepa_dist_metrics.parallel import ProcessContext, compat
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync import DEFAULT_SYNC_TIMEOUT, Merged, SyncRequest, SyncResult, SyncSession
from hjepa_dist_metrics.values import Scalar, Value

Values: TypeAlias = Sequence[tuple[str, Value]]

# The kinds of devices that have autocast.
_AUTOCASTING = ("cpu", "cuda", "xpu", "mps", "hpu", "xla")


class DistributedMetric(ABC):
    """Measure something that is true of the whole job.

    A subclass adds states, feeds them in `update`, and turns merged states into values in `compute_from`:

        class MeanLength(DistributedMetric):
            total: Sum
            count: Sum

            def __init__(self):
                self.add_state("total", Sum())
                self.add_state("count", Sum())

            def update(self, lengths):
                self.total.update(lengths)
                self.count.update(lengths.numel())

            def compute_from(self, states):
                return {"text/mean_length": states["total"].value / states["count"].value}
    """

    # A persistent metric counts over the whole run; the others start anew after each time they are logged.
    persistent: ClassVar[bool] = False

    # How an update failed since the last reset, None where none did.
    failure: str | None
    # Never changed in place: the same mapping object always holds the same state objects.
    _states: Mapping[str, State]
    _session: SyncSession
    # Whether there was an update since the monitor last logged the metric.
    touched: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Prepare the bookkeeping here and not in __init__, which a subclass need not call."""
        metric = super().__new__(cls)
        metric._states = {}
        metric._session = SyncSession()
        metric.failure = None
        metric.touched = False
        return metric

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, method in list(cls.__dict__.items()):
            if name == "update" or name.startswith("update_"):
                setattr(cls, name, _guarded(method))
        if "compute_from" in cls.__dict__ and "compute_many" not in cls.__dict__:
            # What a parent does for many at once is the parent's formula.
            cls.compute_many = DistributedMetric.__dict__["compute_many"]  # type: ignore[method-assign]

    def add_state(self, name: str, state: State) -> None:
        """Keep `state` under `name`; it is reachable as `self.<name>`."""
        taken = hasattr(type(self), name) or name in self.__dict__ or name in self._states
        if taken or not name.isidentifier():
            raise ConfigError(f"{type(self).__name__} cannot name a state {name!r}: pick another identifier")
        self._states = {**self._states, name: state}

    def require_added(self) -> None:
        """Raise ConfigError where a state was set as a public attribute instead of by `add_state`."""
        for name, held in vars(self).items():
            if isinstance(held, State) and not name.startswith("_"):
                raise ConfigError(
                    f"{type(self).__name__} sets the state {name!r} as an attribute, where no sync finds it: "
                    f"write self.add_state({name!r}, {type(held).__name__}(...))"
                )

    def __getattr__(self, name: str) -> Any:
        states = self.__dict__.get("_states", {})
        if name in states:
            return states[name]
        raise AttributeError(f"{type(self).__name__} has no attribute or state {name!r}")

    states: Mapping[str, State] = property(  # type: ignore[assignment]
        operator.attrgetter("_states"), doc="The local states by name; a sync asks hundreds of metrics, in C."
    )

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update the states with a batch: local, without collectives and without a device synchronisation."""

    @abstractmethod
    def compute_from(self, states: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return tags and values (or plain numbers) from merged states: a pure function of them."""

    @classmethod
    def compute_many(cls, metrics: Mapping[str, Self], merged: Merged) -> Values:
        """Return tags and values of all `metrics`, which are of this class, in order.

        A class of which there are hundreds can do that faster than with a call of `compute_from` for each.
        """
        return [
            (tag, as_value(value, tag, cls))
            for name, metric in metrics.items()
            for tag, value in metric.compute_from(merged.get(name, {})).items()
        ]

    def compute(
        self, context: ProcessContext | None = None, timeout: float | None = None
    ) -> dict[str, Value]:
        """Merge the states over the ranks of `context` and return the values: the same on every rank.

        A collective call; `timeout` is how many seconds to wait for a missing rank, 60 by default. The
        local states stay as they are. On a process outside the group it returns {}.
        """
        self.require_added()
        kind = type(self)

        def values(states: Mapping[str, State]) -> dict[str, Value]:
            return {tag: as_value(value, tag, kind) for tag, value in self.compute_from(states).items()}

        return self._merged(values, context, timeout) or {}

    def _merged(
        self,
        formula: Callable[[Mapping[str, State]], dict[str, Any]],
        context: ProcessContext | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any] | None:
        """Return what a formula makes of the merged states; None on a process outside the group."""
        where = context or ProcessContext.current()
        if not where.is_member:
            return None
        name = type(self).__name__

        def then(result: SyncResult) -> dict[str, Any]:
            return result.session.judged(lambda: formula(result.merged.get(name, {})))

        return self._session.run(SyncRequest({name: self}, where, timeout or DEFAULT_SYNC_TIMEOUT), then)

    def merge(self, other: DistributedMetric) -> Self:
        """Take in what `other`, a metric of the same kind, has seen; return self. `other` stays as it is."""
        if type(other) is not type(self) or set(other._states) != set(self._states):
            raise ConfigError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        self._states = {name: state.merge(other._states[name]) for name, state in self._states.items()}
        self.failure = self.failure or other.failure
        return self

    def clone(self) -> Self:
        """Return a metric with the same settings and copies of the states; what it watches is shared."""
        states = {name: state.adopt(_copies(state)) for name, state in self.states.items()}
        metric = copy.copy(self)
        metric._states = states
        metric._session = SyncSession()
        return metric

    def reset(self) -> None:
        """Forget everything seen, failures included."""
        self._states = {name: state.empty() for name, state in self._states.items()}
        self.failure = None

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks have seen, merged. A collective call; {} on a process outside the group."""
        return self._merged(pack_states) or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, at any world size: the first rank takes it, the others start empty."""
        context = ProcessContext.current()
        if context.is_member:
            self.load_states(state, holder=context.rank == 0)

    def load_states(self, packed: Mapping[str, Any], *, holder: bool) -> None:
        """Replace the states by the packed ones where `holder`, by empty ones elsewhere.

        Replicated states take the packed ones on every rank. ConfigError, on every rank, where the packed
        states are not those of this metric.
        """
        unpacked = unpack_states(type(self).__name__, self._states, packed)
        self.reset()
        self._states = {
            name: unpacked[name] if holder or state.replicated else state
            for name, state in self._states.items()
        }


def pack_states(states: Mapping[str, State]) -> dict[str, dict[str, Any]]:
    """Return copies of each state's tensors and, to be checked when they are loaded, its signature.

    Copies, for merged tensors are parts of blocks that others share: a file would get the block with each.
    """
    return {name: {"signature": state.signature, **_copies(state)} for name, state in states.items()}


def _copies(state: State) -> dict[str, Tensor]:
    return {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.pack().items()
    }


def unpack_states(owner: str, states: Mapping[str, State], packed: Any) -> dict[str, State]:
    """Return the states that `pack_states` has packed; ConfigError where they are not like `states`."""
    try:
        saved = {name: tensors["signature"] for name, tensors in packed.items()}
    except (AttributeError, KeyError, TypeError):
        raise ConfigError(
            f"{owner} expected what its state_dict() returned, a signature and tensors by state, "
            f"got {described(packed)}"
        ) from None
    own = {name: state.signature for name, state in states.items()}
    if own != saved:
        raise ConfigError(f"{owner} has the states {own}, the saved one {saved}")
    return {name: _unpacked(f"{owner}.{name}", state, packed[name]) for name, state in states.items()}


def _unpacked(name: str, state: State, packed: Mapping[str, Any]) -> State:
    tensors = {key: tensor for key, tensor in packed.items() if key != "signature"}
    if (problem := state.misfit(tensors)) is not None:
        raise ConfigError(f"the saved state {name} does not fit: {problem}")
    try:
        return state.unpack(tensors)
    except Exception as error:
        raise ConfigError(
            f"the saved state {name} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _guarded(update: Callable[..., None]) -> Callable[..., None]:
    """Run an update without autograd and autocast, in the precision of its inputs or better.

    A failure is kept and reported to every rank by the next sync.
    """

    @functools.wraps(update)
    def guarded(self: DistributedMetric, *args: Any, **kwargs: Any) -> None:
        self.touched = True
        try:
            with plain_arithmetic():
                update(self, *args, **kwargs)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise

    return guarded


def plain_arithmetic() -> AbstractContextManager[object]:
    """Return a context without autograd and autocast; where there is neither it costs next to nothing."""
    autocasts = compat.any_autocast()
    if not autocasts:
        return torch.no_grad() if torch.is_grad_enabled() else nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    for kind in _AUTOCASTING:
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def as_value(value: Any, tag: str = "", kind: type[DistributedMetric] | None = None) -> Value:
    """Return a Value from a Value, a number, or a tensor or array of one element.

    ConfigError for anything else, with the `tag` and the `kind` of metric that it is of.
    """
    if type(value) is float:  # nearly always
        return Scalar(value)
    if isinstance(value, Value):
        return value
    if isinstance(value, (float, int, np.generic)):
        return Scalar(float(value))
    if isinstance(value, Tensor) and value.numel() == 1:
        return Scalar(value.item())
    if isinstance(value, np.ndarray) and value.size == 1:
        return Scalar(float(value.item()))
    returned = f"{kind.__name__} returns {tag!r}: " if kind else f"{tag!r}: " if tag else ""
    raise ConfigError(
        f"{returned}expected one number or a value of hjepa_dist_metrics.values, got {described(value)}"
    )
