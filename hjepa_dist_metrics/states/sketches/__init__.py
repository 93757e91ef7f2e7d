"""States that keep a bounded part of what they see: uniform samples, distinct counts, the lowest scores."""
