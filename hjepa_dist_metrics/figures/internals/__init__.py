"""Figures of what happens inside of a model."""
