"""Judging: rules, alerts, and what they remember."""
