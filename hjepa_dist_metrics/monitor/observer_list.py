"""The observers of a run: each step's arguments go to those that look at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import plain_arithmetic
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.monitor.schedule import Schedule


class ObserverList:
    """Hand the arguments of steps to observers, in the order in which these were added."""

    def __init__(self, scope: Scope, schedule: Schedule) -> None:
        self._scope, self._schedule = scope, schedule
        self._observers: dict[str, Observer] = {}
        self._entries: list[tuple[Observer, tuple[str, ...], tuple[str, ...]]] = []
        # The arguments of a step that any observer looks at.
        self.arguments: set[str] = set()

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._observers.values())

    def add(self, observer: Observer) -> None:
        """Attach an observer; ConfigError for a second one of its class or a family that does not exist."""
        name = type(observer).__name__
        if name in self._observers:
            raise ConfigError(f"there is an observer {name!r} already: observers go by their class's name")
        if observer.family is not None:
            self._schedule.require_family(observer.family)
        observer.attach(self._scope)
        self._observers[name] = observer
        names = (*observer.takes, *observer.also)
        self._entries.append((observer, observer.takes, names))
        self.arguments |= {*names}

    def observe(self, given: Mapping[str, Any]) -> None:
        """Hand over a step's arguments; a failed update is kept for the next sync, see `Scope.run`."""
        due = self._schedule.due
        with plain_arithmetic():  # once, and not in each metric's update
            for observer, takes, names in self._entries:
                if observer.family is None or observer.family in due:
                    for name in takes:
                        if name in given:
                            arguments = {name: given[name] for name in names if name in given}
                            self._scope.run(partial(observer.observe, **arguments))
                            break

    def before_log(self, due: Sequence[str]) -> None:
        """Bring metrics up to date before the families `due` are logged."""
        for observer in self:
            self._scope.run(partial(observer.before_log, due))

    def state_dict(self) -> dict[str, Any]:
        """Return what observers must find again, by name."""
        return {name: observer.state_dict() for name, observer in self._observers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; observers that it does not know begin anew."""
        for name, saved in state.items():
            if name in self._observers:
                self._observers[name].load_state_dict(saved)

    def close(self) -> None:
        """Close all observers."""
        for observer in self:
            observer.close()
