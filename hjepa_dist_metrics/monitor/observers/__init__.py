"""What the monitor looks at: one file for each kind of observation."""
