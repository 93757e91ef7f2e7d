"""What happens inside of a model: activations, attention, the load of experts."""
