"""Write the catalog out for readers: the page of all tags, one tag explained, a page in every run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable

from hjepa_dist_metrics.catalog.dashboards import DASHBOARDS, REQUESTED_DASHBOARDS, load_dashboard
from hjepa_dist_metrics.catalog.entry import Entry, Limits
from hjepa_dist_metrics.catalog.findings import FINDINGS
from hjepa_dist_metrics.catalog.headline import CARDS, GROUP
from hjepa_dist_metrics.catalog.profiles import Profile, has_frames, has_pairs, shown_findings, shows
from hjepa_dist_metrics.catalog.registry import entries, find, find_pattern, suggest
from hjepa_dist_metrics.errors import ConfigError


def tags_page(chosen: Iterable[Entry]) -> str:
    """Return the Markdown page of entries in reading order, a section for each group of tags."""
    groups = itertools.groupby(chosen, key=lambda entry: entry.pattern.partition("/")[0])
    sections = [f"## {group}\n\n{markdown_table(members)}" for group, members in groups]
    head = (
        "# All tags\n\n"
        "Made from the metrics' own `ENTRIES` by `python -m hjepa_dist_metrics.commands.tags`; do not edit. "
        "`{i}` and `{rank}` stand for a number, the other placeholders for a name. "
        "`hjepa-metrics explain TAG` prints more about each.\n"
    )
    return "\n".join([head, *sections])


def markdown_table(chosen: Iterable[Entry]) -> str:
    """Return a Markdown table of entries: tag, what it shows, unit, healthy values, source."""
    rows = [
        "| tag | shows | unit | healthy | source |",
        "|---|---|---|---|---|",
        *(
            f"| `{entry.pattern}` | {_cell(entry.title)} | {entry.unit} | {_cell(entry.healthy)} "
            f"| {entry.source} |"
            for entry in chosen
        ),
    ]
    return "\n".join(rows) + "\n"


def explain(tag: str) -> str:
    """Return several lines on a tag or pattern; raises ConfigError, naming near tags, for an unknown one."""
    entry = find_pattern(tag)
    if entry is None:
        raise ConfigError(f"no metric has the tag {tag!r}; {suggest(tag)}")
    lines = [f"{tag}: {entry.titled(tag)}", f"  {entry.meaning}"]
    facts = {
        "pattern": entry.pattern if entry.is_pattern else "",
        "kind": entry.kind,
        "unit": entry.unit,
        "healthy": entry.healthy,
        "limits": _limits_example(entry),
        "dashboard": entry.dashboard,
        "cadence": entry.family,
        "source": entry.source,
        "deviation": entry.deviation,
    }
    width = max(map(len, facts))
    lines += [f"  {name + ':':<{width + 1}} {fact}" for name, fact in facts.items() if fact]
    return "\n".join(lines)


def describe(tag: str) -> str:
    """Return Markdown on a tag: title, unit, meaning, healthy values; "" for an unknown one."""
    first = CARDS.get(tag.removeprefix(f"{GROUP}/"), tag)
    entry = find(first)
    if entry is None:
        return ""
    unit = f" ({entry.unit})" if entry.unit else ""
    parts = [f"**{entry.titled(first)}**{unit}.", entry.meaning]
    parts += [f"*Healthy:* {entry.healthy}."] if entry.healthy else []
    parts += [f"The same as `{first}`."] if first != tag else []
    return " ".join(parts)


def how_to_read(
    profile: Profile = "ssl",
    observed: Collection[str] = (),
    dashboards: Collection[str] = (*DASHBOARDS, *REQUESTED_DASHBOARDS),
) -> str:
    """Return the Markdown page that every run carries in its TEXT tab.

    It says what a run of the profile, which has written the tags `observed`, has to show; `dashboards` are
    those that its configuration names.
    """
    findings = {name: FINDINGS[name] for name in shown_findings(profile, observed)}
    rules = "\n".join(f"- **{name}**: {what.title}; {what.advice}" for name, what in findings.items())
    bounded = [e for e in entries() if "{name}" not in e.pattern and shows(profile, e.pattern, observed)]
    if profile != "ssl":
        bounded = [entry for entry in bounded if any(map(entry.matches, observed))]
    return (
        "# How to read this run\n\n"
        "Every number is true of the whole job: states are merged over all ranks, then the formula runs "
        "once. The number of ranks and the way samples fall on them change nothing.\n\n"
        "## Where to look first\n\n"
        + _where_to_look(profile, observed, dashboards)
        + _bounds(bounded)
        + "\n## Findings\n\n`health/score` is 1 for a healthy run, 0.5 for a warning, 0 for a failing one; "
        "`alerts/<finding>` is 1 while a finding lasts; the findings stand under `alerts/log`.\n\n"
        + rules
        + "\n\n## Axes\n\nSteps are optimizer steps. TensorBoard keeps 1,000 points a tag and 10 images "
        "by default; `tensorboard --samples_per_plugin scalars=1000000,images=100` shows all of them.\n\n"
        "`hjepa-metrics explain TAG` says more about any tag.\n"
    )


def _where_to_look(profile: Profile, observed: Collection[str], dashboards: Collection[str]) -> str:
    names = ", ".join(_dashboards(profile, observed, dashboards))
    lines = [f"**Custom Scalars** holds the dashboards: {names}."]
    if shows(profile, "collapse/", observed):
        lines.append(
            "`loss/total` falls *and* `collapse/effective_rank` holds: the run is healthy. A loss that falls "
            "while the rank falls is a representation that collapses; the loss cannot tell."
        )
    else:
        validation = next(
            (tag for tag in ("loss/val/total", "Eval/Frame/val_psnr") if tag in observed), "val/loss"
        )
        follows = "rises" if "psnr" in validation else "falls"
        lines.append(f"`loss/total` falls, and `{validation}` {follows} with it: the run is healthy.")
    if profile == "ssl":
        lines.append("`ema/update_magnitude` is above 0 while the momentum is below 1: the teacher follows.")
    if has_pairs(observed):
        lines.append(
            "`alignment/{a}_vs_{b}/diagonal_similarity`, of right pairs, rises away from `mean_similarity`, "
            "of all pairs, and `recall_at_5_*` far above `alignment/recall_at_5_chance`: modalities meet. "
            "Where both similarities rise together, the embeddings collapse."
        )
    if has_frames(observed):
        lines.append(
            "`Train/PSNR` and `Eval/Frame/val_psnr` rise together, `Eval/Gap/psnr_gap` stays within 3 dB: "
            "the network reconstructs frames that it has not seen. `Train/Gradients/*_ratio` between 0.1 and "
            "10: no head drowns the other."
        )
    lines.append("`gradient/clipping_percentage` is low, and `gradient/nonfinite_steps` is 0.")
    return "".join(f"{number}. {line}\n" for number, line in enumerate(lines, start=1))


def _dashboards(profile: Profile, observed: Collection[str], names: Collection[str]) -> list[str]:
    """Return the titles of the dashboards that have a chart to show."""
    boards = [load_dashboard(name) for name in names]
    return [board.title for board in boards if any(c.shown(profile, observed) for c in board.charts)]


def _bounds(chosen: Iterable[Entry]) -> str:
    sizes = ((64, 128), (64, 4096), (384, 4096), (768, 65536))
    head = "| tag | " + " | ".join(f"D={dim}, n={count}" for dim, count in sizes) + " |"
    rows: list[str] = []
    for entry in chosen:
        if entry.limits is not None:
            cells = [_say(entry.limits(dim, count)) for dim, count in sizes]
            rows.append(f"| `{entry.pattern}` | " + " | ".join(cells) + " |")
    if not rows:
        return ""
    title = (
        "\n## Bounds that depend on the run's size\n\n"
        "D is the width of the features, n the number of rows of the whole job.\n\n"
    )
    return title + "\n".join([head, "|---|" + "---|" * len(sizes), *rows]) + "\n"


def _say(limits: Limits) -> str:
    side = "below" if limits.low_is_bad else "above"
    bad = f"bad {side} {limits.bad:.3g}"
    if limits.bad == limits.warn:
        return bad
    warn = f"warns {side} {limits.warn:.3g}"
    return f"{warn}, {bad}" if math.isfinite(limits.bad) else warn


def _limits_example(entry: Entry) -> str:
    if entry.bounds is not None:
        return _say(entry.bounds)
    if entry.limits is None:
        return ""
    return f"at D=384 and n=4096 {_say(entry.limits(384, 4096))}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
