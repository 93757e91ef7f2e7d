"""Features of modules by name, and probes that tell how good features are."""
