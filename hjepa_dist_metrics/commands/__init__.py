"""What the sub-commands of `hjepa-metrics` do; the command line itself is in `hjepa_dist_metrics.cli`."""
