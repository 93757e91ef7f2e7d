"""What kind of training a run is, told from its tags, and what is shown of the catalog for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

from hjepa_dist_metrics.catalog.findings import FINDINGS

Profile = Literal["ssl", "supervised", "language"]
PROFILES: tuple[Profile, ...] = ("ssl", "supervised", "language")

# Tags, and patterns of them, of a teacher, masks, a hierarchy of levels, predictions in feature space.
_SELF_SUPERVISED = re.compile(
    r"ema/|masking/|hierarchy/|prediction/|loss/(h(\d+|\{i\})$|contribution_|convergence_rate_h|unweighted$)"
    r"|train/(ema_|context_|target_)|val/knn_"
)
_TOKENS = "performance/tokens_per_second"
_FEATURES = re.compile(r"collapse/|val/linear_")
_PROBES = re.compile(r"probe/")
# What is measured on request, and the group of findings that are read from it.
_REQUESTED = re.compile(r"(activation|activation_gradient|attention|experts)/")
_INTERNALS = "internals"
# Groups of findings that a run of another kind cannot have.
_GROUPS = frozenset({"teacher", "masks", "matching", "reconstruction"})
_LEVELS = frozenset({"level_imbalance", "loss_drop"})
# Tags of paired modalities, and of frames that are reconstructed; their groups of findings.
_PAIRED = re.compile(r"alignment/")
_FRAMES = re.compile(r"(Train|Train_Batch|Eval)/")
_SPECIAL = {"matching": _PAIRED, "reconstruction": _FRAMES}


def observed_profile(tags: Iterable[str]) -> Profile:
    """Return the profile of a run that writes the tags: what it lacks, it does not show."""
    seen = list(tags)
    if any(_SELF_SUPERVISED.match(tag) for tag in seen):
        return "ssl"
    return "language" if _TOKENS in seen else "supervised"


def shows(profile: Profile, pattern: str, observed: Collection[str]) -> bool:
    """Return whether a run of the profile, which has written `observed`, shows a tag or pattern."""
    if requested := _REQUESTED.match(pattern):
        return any(tag.startswith(requested[0]) for tag in observed)
    if profile == "ssl":
        return True
    for needed in (_FEATURES, _PROBES):
        if needed.match(pattern):
            return any(needed.match(tag) for tag in observed)
    if pattern == _TOKENS and profile == "supervised":
        return False
    return not _SELF_SUPERVISED.match(pattern)


def has_pairs(observed: Iterable[str]) -> bool:
    """Return whether a run aligns modalities."""
    return any(_PAIRED.match(tag) for tag in observed)


def has_frames(observed: Iterable[str]) -> bool:
    """Return whether a run reconstructs frames."""
    return any(_FRAMES.match(tag) for tag in observed)


def shown_findings(profile: Profile, observed: Collection[str]) -> list[str]:
    """Return the names of the findings that a run of the profile may have."""
    hidden = set() if any(map(_REQUESTED.match, observed)) else {_INTERNALS}
    if profile == "ssl":
        return [name for name, what in FINDINGS.items() if what.group not in hidden]
    measured = {group for group, tags in _SPECIAL.items() if any(tags.match(tag) for tag in observed)}
    groups = {"collapse": "collapse/", "probes": "probe/"}
    hidden |= _GROUPS - measured
    hidden |= {group for group, tag in groups.items() if not shows(profile, tag, observed)}
    return [name for name, what in FINDINGS.items() if what.group not in hidden and name not in _LEVELS]
