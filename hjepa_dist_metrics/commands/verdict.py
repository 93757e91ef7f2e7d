"""The verdict on a logged run, in the words of the judge that watches a live one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.monitor.health.findings import Finding, Health
from hjepa_dist_metrics.monitor.health.replay import replay

_SHOWN = 5


@dataclass(frozen=True)
class Judged:
    """Hold a run's verdict at its end, and all findings with the step at which each began."""

    health: Health
    begun: Sequence[tuple[int, Finding]]

    @property
    def ended(self) -> list[tuple[int, Finding]]:
        """Return the findings that began and do not last to the end."""
        lasting = {name for finding in self.health.findings for name in (finding.name, *finding.also)}
        return [(step, finding) for step, finding in self.begun if finding.name not in lasting]


def judge(run: Run) -> Judged:
    """Judge a run by its logs."""
    judge, begun = replay(run.scalars)
    return Judged(judge.health, begun)


def verdict_lines(judged: Judged, everything: bool = False) -> list[str]:
    """Return the findings, worst first, or "healthy": at most five unless `everything`."""
    health = judged.health
    shown = health.findings if everything else health.findings[:_SHOWN]
    lines = [] if shown else [str(health)]
    for finding in shown:
        lines.append(f"{finding.severity}: {finding.name}: {finding.title} since step {finding.since}")
        lines += [f"  {finding.evidence[0]}"] if finding.evidence else []
        lines += [f"  likely: {finding.cause}", f"  try: {finding.advice}"] if finding.cause else []
        lines += [f"  with it: {', '.join(finding.also)}"] if finding.also else []
    if len(shown) < len(health.findings):
        lines.append(f"{len(health.findings) - len(shown)} more findings: --all shows them")
    ended = judged.ended if everything else judged.ended[-_SHOWN:]
    return [*lines, *(f"  ended: {found.name} of step {step}: {found.title}" for step, found in ended)]
