"""Real, small workloads that use the package's public names only."""
