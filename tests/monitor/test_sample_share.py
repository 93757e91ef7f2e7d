"""What ranks of a declared layout add: samples once, tokens as weights, copies of rows once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ParallelLayout, TrainingMonitor
from tests.helpers.declared import mesh_of
from tests.helpers.pipelines import settings

# Mesh shape, the layout's arguments.
CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "tp x dp": ({"dp": 2, "tp": 2}, {"tensor": "tp"}),
    "dp x cp": ({"dp": 2, "cp": 2}, {"context": "cp"}),
    "cp x tp": ({"cp": 2, "tp": 2}, {"context": "cp", "tensor": "tp"}),
    "pp x dp": ({"pp": 2, "dp": 2}, {"pipeline": "pp"}),
    "ep x dp": ({"ep": 2, "dp": 2}, {"expert": {r"experts\.": "ep"}}),
    "pp x cp": ({"pp": 2, "cp": 2}, {"pipeline": "pp", "context": "cp"}),
}
SAMPLES = 4


def loss_and_tokens(data: int, part: int) -> tuple[float, int]:
    """Return the mean loss of a part of the sequences of a data-parallel rank, and its number of tokens."""
    return 1.0 + data + 10.0 * part, 3 + 2 * data + 5 * part


def rows(data: int, part: int) -> torch.Tensor:
    return torch.randn(7 + data, 5, generator=torch.Generator().manual_seed(10 * data + part))


def place(mesh: Any, layout: ParallelLayout) -> tuple[int, int]:
    """Return this rank's number among those with other samples, and among the parts of sequences."""
    names = [n for n in mesh.mesh_dim_names if n not in (layout.pipeline, layout.tensor, layout.context)]
    data = 0
    for name in names:
        data = data * mesh[name].size() + mesh.get_local_rank(name)
    return data, mesh.get_local_rank("cp") if layout.context else 0


def watch(case: str, log_dir: str) -> dict[str, float]:
    shape, arguments = CASES[case]
    mesh = mesh_of(tuple(shape.values()), tuple(shape))
    layout = ParallelLayout(mesh, **arguments)
    model = nn.Linear(2, 2)
    data, part = place(mesh, layout)
    loss, tokens = loss_and_tokens(data, part)
    last = layout.pipeline is None or layout.stage == shape["pp"] - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, settings(log_dir), layout=layout) as monitor:
        for _ in range(2):
            monitor.step(
                samples=SAMPLES,
                losses=loss if last else None,
                features=rows(data, part) if last else None,
                tokens=tokens,
            )
    return dict(monitor.latest)


@pytest.mark.parametrize("case", CASES)
def test_each_sample_counts_once(gloo, tmp_path, case: str):
    shape, arguments = CASES[case]
    shared = {arguments.get(role) for role in ("pipeline", "tensor", "context")}
    data = 1
    for name, size in shape.items():
        data *= 1 if name in shared else size
    parts = [(d, p) for d in range(data) for p in range(shape.get("cp", 1))]
    losses, tokens = zip(*[loss_and_tokens(*part) for part in parts], strict=True)
    weights = tokens if "cp" in shape else [1] * len(parts)
    expected = sum(loss * w for loss, w in zip(losses, weights, strict=True)) / sum(weights)
    for found in gloo(4).run(watch, case, str(tmp_path)):
        assert found["loss/total"] == pytest.approx(expected, rel=1e-9)
        assert found["performance/total_samples"] == 2 * SAMPLES * data
        assert found["performance/total_tokens"] == 2 * sum(tokens)
        assert found["collapse/num_samples"] == sum(len(rows(*part)) for part in parts)
