"""Updates of metrics on a device do not make the host wait for it, in any type of their input."""

import pytest
import torch

from hjepa_dist_metrics import metrics
from tests.helpers.waiting import no_waiting, on_device

GENERATOR = torch.Generator().manual_seed(0)


def draw(dtype, *shape):
    return on_device(torch.rand(*shape, generator=GENERATOR).to(dtype))


def of_both(dtype):
    return {"a": draw(dtype, 6, 4), "b": draw(dtype, 6, 4)}


def head_parameters():
    net = on_device(torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 1)}))
    return metrics.HeadParameters(net, dict(net.items()))


VALID = on_device(torch.rand(6, 5, generator=GENERATOR) > 0.3)
IDS = on_device(torch.arange(6))
LABELS = on_device(torch.arange(6) % 3)
CASES = {
    "collapse": (
        lambda: metrics.Collapse(4, short="context"),
        lambda dtype: (draw(dtype, 6, 5, 4), VALID, IDS),
    ),
    "collapse of rows": (lambda: metrics.Collapse(4), lambda dtype: (draw(dtype, 6, 4),)),
    "hierarchy": (
        lambda: metrics.HierarchyFeatures([4, 3]),
        lambda dtype: ([draw(dtype, 6, 5, 4), draw(dtype, 6, 2, 3)], [VALID, None]),
    ),
    "prediction": (
        lambda: metrics.PredictionQuality(1, [4]),
        lambda dtype: ([draw(dtype, 6, 5, 4)], [draw(dtype, 6, 5, 4)], [VALID], IDS),
    ),
    "views": (lambda: metrics.ViewAgreement(4), lambda dtype: (draw(dtype, 6, 5, 4), VALID)),
    "linear probe": (
        lambda: metrics.LinearProbe(4, 3, queue=8),
        lambda dtype: (draw(dtype, 6, 5, 4), LABELS, VALID, IDS),
    ),
    "kNN probe": (lambda: metrics.KNNProbe(4), lambda dtype: (draw(dtype, 6, 4), LABELS)),
    "alignment": (lambda: metrics.ModalityAlignment(["a", "b"]), lambda dtype: (of_both(dtype),)),
    "embeddings": (lambda: metrics.ModalityEmbeddings(["a", "b"]), lambda dtype: (of_both(dtype),)),
    "frames": (
        lambda: metrics.FrameQuality("quality", edges=[0.0, 1.0]),
        lambda dtype: (draw(dtype, 6), IDS),
    ),
    "reconstruction": (
        metrics.Reconstruction,
        lambda dtype: (draw(dtype, 6, 3, 4, 4), draw(dtype, 6, 3, 4, 4), IDS),
    ),
    "heads": (head_parameters, lambda dtype: ()),
    "teacher": (
        metrics.EMADynamics,
        lambda dtype: (*(on_device(torch.nn.Linear(3, 3).to(dtype)) for _ in range(2)), 0.9, 1.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_update_does_not_wait(name, dtype):
    make, arguments = CASES[name]
    metric = make()
    for _ in range(2):  # the first one moves the states to the device
        given = arguments(dtype)
        with no_waiting():
            metric.update(*given)
