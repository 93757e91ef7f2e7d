"""One file an objective; each shows how the monitor is attached to a loop of its kind."""
