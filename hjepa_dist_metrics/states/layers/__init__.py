"""What is kept of the layers of a model, by name: units, elements, attention heads."""
