"""When to do something every so often; the clock is an argument, so that nothing here waits or asks."""

from __future__ import annotations

from dataclasses import dataclass

from hjepa_dist_metrics.errors import ConfigError


@dataclass
class Every:
    """Say when something is due: every `steps` steps, every `seconds` seconds, whichever comes first.

    The first step asked about is due. After that the steps lie on the grid of multiples of `steps` (each
    multiple reached or passed once), so that runs, resumed runs and ranks agree on them. With neither
    bound nothing is ever due. Only `steps` makes ranks agree: a bound in seconds must be decided on one
    rank. `passed` is the number of steps between the two last times, what a rate divides by; 0 at first.
    Raises ConfigError for a bound that is not positive.
    """

    steps: int | None = None
    seconds: float | None = None
    last_step: int | None = None
    last_time: float | None = None
    passed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"a cadence in steps must be at least 1, got {self.steps!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError(f"a cadence in seconds must be more than 0, got {self.seconds!r}")

    def due(self, step: int, now: float = 0.0) -> bool:
        """Return whether it is time at `step`, `now` seconds on any rising clock, and remember if so."""
        if not self.is_due(step, now):
            return False
        self.mark(step, now)
        return True

    def mark(self, step: int, now: float = 0.0) -> None:
        """Remember that it was time at `step`."""
        self.passed = 0 if self.last_step is None else step - self.last_step
        self.last_step, self.last_time = step, now

    def is_due(self, step: int, now: float = 0.0) -> bool:
        """Return whether it is time at `step`, without remembering that it was asked."""
        if self.steps is None and self.seconds is None:
            return False
        if self.last_step is None:
            return True
        if step <= self.last_step:  # asked again, or the loop went back: each step once
            return False
        if self.steps is not None and step // self.steps > self.last_step // self.steps:
            return True
        if self.seconds is None:
            return False
        # a clock of another process, after a resume, may be behind: start anew rather than wait for it
        return self.last_time is None or now < self.last_time or now - self.last_time >= self.seconds

    def state_dict(self) -> dict[str, int | None]:
        """Return what a checkpoint needs; the time is left out, since clocks differ between processes."""
        return {"last_step": self.last_step, "passed": self.passed}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Go on from a checkpoint."""
        self.last_step, self.passed, self.last_time = state["last_step"], state["passed"] or 0, None
