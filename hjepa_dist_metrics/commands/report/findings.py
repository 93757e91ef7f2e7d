"""The verdict on each run, and each finding with the curves that it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.commands.compare import first_parting
from hjepa_dist_metrics.commands.report.charts import Chart, ChartData, Line
from hjepa_dist_metrics.commands.report.markup import row, table, text
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.verdict import Judged
from hjepa_dist_metrics.monitor.health.findings import Evidence, Finding

_MOST_PLOTS = 4


def verdicts(runs: Sequence[Run], judged: Sequence[Judged], data: ChartData) -> Iterator[str]:
    """Yield the verdict on each run, worst findings first; of several runs a table of all before them."""
    if len(runs) > 1:
        yield _overview(runs, judged)
        if parting := first_parting(runs):
            yield f"<p>{text(parting)}.</p>"
    for number, (run, of_run) in enumerate(zip(runs, judged, strict=True)):
        if len(runs) > 1:
            if not _has_section(of_run):
                continue
            yield f'<h3 id="verdict-{number}">{text(run.name)}</h3>'
        yield from _verdict(run, of_run, number, data)


def _overview(runs: Sequence[Run], judged: Sequence[Judged]) -> str:
    return table(("run", "verdict", "why"), map(_overview_row, range(len(runs)), runs, judged))


def _overview_row(number: int, run: Run, judged: Judged) -> str:
    name, verdict = text(run.name), judged.health.verdict
    if _has_section(judged):
        name = f'<a href="#verdict-{number}">{name}</a>'
    return (
        f'<tr><td class="wrap">{name}</td><td class="{verdict}">{verdict}</td>'
        f'<td class="wrap">{text(_sentence(run, judged))}</td></tr>'
    )


def _has_section(judged: Judged) -> bool:
    """Return whether there is more to say of a run among several than the table does."""
    return bool(judged.health.findings or judged.ended)


def _sentence(run: Run, judged: Judged) -> str:
    """Return the worst finding in a sentence, or what was looked at."""
    found = judged.health.findings
    return (
        f"{_capital(found[0].title)}, since step {found[0].since}"
        if found
        else f"No finding, {_checked(run)}"
    )


def _verdict(run: Run, judged: Judged, number: int, data: ChartData) -> Iterator[str]:
    health = judged.health
    if not health.findings:
        yield (
            f'<div class="verdict healthy"><p class="word">Healthy</p><p>No finding at step {run.last_step}: '
            f"{text(_checked(run))}.</p></div>"
        )
    for finding in health.findings:
        yield from _finding(run, finding, number, data)
    for step, finding in judged.ended:
        yield (
            f'<p class="note">Ended before the last step: {text(finding.name)} of step {step}, '
            f"{text(finding.title)}.</p>"
        )


def _checked(run: Run) -> str:
    """Return which parts of the training the judge had numbers of."""
    names = {
        "losses": ("loss/", "Train/Loss/"),
        "representations": ("collapse/",),
        "gradients": ("gradient/", "gradients/"),
        "updates": ("update/",),
        "teacher": ("ema/",),
        "masks": ("masking/",),
        "ranks": ("performance/straggler",),
        "reconstructions": ("Eval/",),
        "pairs": ("alignment/",),
    }
    parts = [name for name, prefix in names.items() if any(tag.startswith(prefix) for tag in run.scalars)]
    return f"judged by its {', '.join(parts)}" if parts else "there are no numbers that are judged"


def _finding(run: Run, finding: Finding, number: int, data: ChartData) -> Iterator[str]:
    first = finding.evidence[0] if finding.evidence else None
    yield f'<div class="verdict {finding.severity}"><p class="word">{_capital(finding.severity)}: '
    yield f"{text(finding.title)}</p>"
    yield f"<p>Since step {finding.since} of {run.last_step}. "
    yield (
        f"{text(_capital(f'{first.reason}'))} (<code>{text(first.tag)}</code> = {first.value:.4g}).</p>"
        if first
        else "</p>"
    )
    yield f"<p><b>Likely cause:</b> {text(finding.cause)}.</p>" if finding.cause else ""
    yield f"<p><b>Try:</b> {text(finding.advice)}.</p>" if finding.advice else ""
    yield f"<p><b>With it:</b> {text(', '.join(finding.also))}.</p>" if finding.also else ""
    yield f'<p class="note">Finding <code>{text(finding.name)}</code></p></div>'
    shown = [evidence for evidence in finding.evidence if evidence.tag in run.scalars]
    plots = [data.add(_evidence(evidence, finding, number)) for evidence in shown[:_MOST_PLOTS]]
    if plots:
        yield f'<div class="charts">{"".join(plots)}</div>'
    if len(shown) > _MOST_PLOTS:
        rows = (row([f"<code>{text(e.tag)}</code>", f"{e.value:.4g}", text(e.reason)], (1,)) for e in shown)
        yield f"<details><summary>All {len(shown)} numbers of the finding</summary>"
        yield table(("tag", "value", "what is wrong"), rows, (1,)) + "</details>"


def _evidence(evidence: Evidence, finding: Finding, number: int) -> Chart:
    limits = []
    if not math.isnan(evidence.limit):
        limits.append((evidence.limit, f"limit {evidence.limit:.4g}", "limit"))
    entry = catalog.find(evidence.tag)
    return Chart(
        _capital(entry.titled(evidence.tag)) if entry else evidence.tag,
        [Line(number, evidence.tag, evidence.tag, 0)],
        limits,
        marks=[(finding.since, f"since step {finding.since}")],
        note=_capital(evidence.reason),
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
