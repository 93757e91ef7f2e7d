"""Dashboards that fit what a run measures."""

from __future__ import annotations

from collections.abc import Collection

from hjepa_dist_metrics.catalog import Profile, observed_profile
from hjepa_dist_metrics.catalog.dashboards import load_dashboards, profile_layout
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.sinks.tensorboard.sink import Layout, MakeLayout


def choose_layout(config: LoggingConfig, num_levels: int) -> Layout | MakeLayout:
    """Return the dashboards that the configuration names; by default those that fit what the run writes."""
    if config.dashboards != "default" or config.profile == "ssl":
        return load_dashboards(config.dashboards, num_levels)

    def fitting(observed: Collection[str]) -> Layout:
        return profile_layout(profile_of(config, observed), observed, num_levels)

    return fitting


def profile_of(config: LoggingConfig, observed: Collection[str]) -> Profile:
    """Return the profile that the configuration names, or that of a run that writes the tags `observed`."""
    return observed_profile(observed) if config.profile == "auto" else config.profile
