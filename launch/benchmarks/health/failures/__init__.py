"""Failures, by what they break; each does to a job what causes it in the field."""
