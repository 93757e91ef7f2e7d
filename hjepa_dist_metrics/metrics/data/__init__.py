"""What the training is fed: repeated, shared and constant batches, and loaders that end early."""
