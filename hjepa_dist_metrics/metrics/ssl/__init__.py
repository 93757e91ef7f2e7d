"""What self-supervised training shows: losses, teacher, masks, representations, predictions."""
