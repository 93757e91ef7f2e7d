"""Gradients, updates and the course of the loss."""
