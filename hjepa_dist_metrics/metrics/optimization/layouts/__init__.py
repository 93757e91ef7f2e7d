"""What ranks hold of a model: norms over them, the parts of a partition, and whether copies are copies."""
