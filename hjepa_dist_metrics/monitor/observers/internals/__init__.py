"""Observers of what happens inside of the model."""
