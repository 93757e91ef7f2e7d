"""States in which ranks are kept apart, or hold parts of one thing."""
