"""What a judge says of a run: evidence, findings, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["warning", "failing"]
Verdict = Literal["healthy", "warning", "failing"]

SCORES: dict[Verdict, float] = {"healthy": 1.0, "warning": 0.5, "failing": 0.0}


@dataclass(frozen=True)
class Evidence:
    """Hold one number that is not as it should be.

    Args:
        tag: the number's tag.
        value: its value now.
        reason: what is wrong with it, with the limit worked out.
        limit: what it should not have crossed, NaN where there is no such number.
        best: its best value so far, NaN where there is no such number.
        at_once: no further evidence is needed.
    """

    tag: str
    value: float
    reason: str
    limit: float = math.nan
    best: float = math.nan
    at_once: bool = False

    def holds_for(self, value: float) -> bool:
        """Return whether a later value is still on the wrong side of the limit."""
        return not math.isnan(self.limit) and (value > self.limit) == (self.value > self.limit)

    def __str__(self) -> str:
        return f"{self.tag} = {self.value:.4g} ({self.reason})"


@dataclass(frozen=True)
class Finding:
    """Hold one thing that is wrong with a run.

    Args:
        name: what `stop_on` and `alerts/{name}` call it.
        severity: "failing" where the run is not worth its time, "warning" where it may be.
        title: a few words for people.
        since: the step of the first evidence.
        evidence: the newest evidence, the most telling first.
        cause: what usually makes it.
        advice: what to try next.
        also: names of findings that follow from this one.
    """

    name: str
    severity: Severity
    title: str
    since: int
    evidence: tuple[Evidence, ...]
    cause: str = ""
    advice: str = ""
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f": {self.evidence[0]}" if self.evidence else ""
        return f"{self.name}: {self.title} since step {self.since}{first}"

    def markdown(self) -> str:
        """Return the finding as a section of Markdown."""
        lines = [f"### {self.name} ({self.severity}) since step {self.since}", "", self.title + "."]
        lines += ["", *(f"- `{e.tag}` = {e.value:.4g}: {e.reason}" for e in self.evidence)]
        if self.also:
            lines += ["", f"With it: {', '.join(self.also)}."]
        lines += ["", f"**Likely cause.** {self.cause}", "", f"**Try.** {self.advice}"] if self.cause else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Health:
    """Hold the verdict on a run: the worst of its findings, which come worst first."""

    verdict: Verdict = "healthy"
    headline: str = "healthy"
    findings: tuple[Finding, ...] = field(default=())
    step: int = 0

    @property
    def score(self) -> float:
        """Return 1 for healthy, 0.5 for warning, 0 for failing."""
        return SCORES[self.verdict]

    def __str__(self) -> str:
        return self.headline if self.verdict == "healthy" else f"{self.verdict}: {self.headline}"

    def markdown(self) -> str:
        """Return a page of Markdown."""
        head = f"## {self.verdict} at step {self.step}"
        return "\n\n".join([head, *(finding.markdown() for finding in self.findings)])
