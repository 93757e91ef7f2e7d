"""Embeddings of several modalities, and whether they match."""
