"""What the monitor costs on a GPU: training steps, gradient statistics, covariances and spectra."""

from benchmarks.gpu.command import run

__all__ = ["run"]
