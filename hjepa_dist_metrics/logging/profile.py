"""Dashboards that fit what a run measures."""

from __future__ import annotations

from collections.abc import Collection

from hjepa_dist_metrics.catalog import Profile, observed_profile
from hjepa_dist_metrics.catalog.dashboards import (
    DASHBOARDS,
    REQUESTED_DASHBOARDS,
    load_dashboard,
    observed_layout,
)
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.sinks.tensorboard.layout import Layout, MakeLayout


def choose_layout(config: LoggingConfig, num_levels: int) -> MakeLayout:
    """Return what lays out the dashboards that the configuration names, by default those of the profile.

    Charts have data: the layout is made of the tags that a run has written so far.
    """
    named = config.dashboards != "default"
    chosen = config.dashboards if named else (*DASHBOARDS, *REQUESTED_DASHBOARDS)
    dashboards = [load_dashboard(name) for name in chosen]

    def layout_of(observed: Collection[str]) -> Layout:
        profile = None if named else profile_of(config, observed)
        return observed_layout(dashboards, observed, num_levels, profile)

    return layout_of


def profile_of(config: LoggingConfig, observed: Collection[str]) -> Profile:
    """Return the profile that the configuration names, or that of a run that writes the tags `observed`."""
    return observed_profile(observed) if config.profile == "auto" else config.profile
