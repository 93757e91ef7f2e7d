"""Arithmetic on tensors that keeps its digits: shared by metrics, without states."""
