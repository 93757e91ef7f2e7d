"""All detectors, one file for each part of a training run."""

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.detectors import (
    data,
    distribution,
    internals,
    losses,
    masks,
    matching,
    optimization,
    parameters,
    probes,
    reconstruction,
    representation,
    teacher,
)

DETECTORS: tuple[Detector, ...] = (
    *optimization.DETECTORS,
    *representation.DETECTORS,
    *teacher.DETECTORS,
    *masks.DETECTORS,
    *losses.DETECTORS,
    *data.DETECTORS,
    *distribution.DETECTORS,
    *matching.DETECTORS,
    *reconstruction.DETECTORS,
    *parameters.DETECTORS,
    *probes.DETECTORS,
    *internals.DETECTORS,
)
