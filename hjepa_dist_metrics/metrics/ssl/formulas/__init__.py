"""Formulas of representation metrics on rows, pairs of rows and merged moments."""
