"""The cadences of the quick reference, from the configuration to the file."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import TrainingMonitor, WeightedMean
from hjepa_dist_metrics.sinks import read_jsonl

STEPS = 121
FAMILIES = ("scalars", "representations", "histograms", "figures", "system")


def logged(tmp_path, steps_per_epoch=None, **logging):
    """Return {family: {step: value}} of a metric in each family that sees the number of each step."""
    model = nn.Linear(1, 1)
    config = {
        "experiment_name": "run",
        "log_dir": str(tmp_path),
        "tensorboard": {"enabled": False},
        **logging,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, config, steps_per_epoch=steps_per_epoch) as monitor:
        metrics = {family: WeightedMean(f"own/{family}") for family in FAMILIES}
        for family, metric in metrics.items():
            monitor.add_metric(f"own_{family}", metric, family)
        for step in range(STEPS):
            for metric in metrics.values():
                metric.update(float(step))
            monitor.step(samples=1)
    lines = read_jsonl(tmp_path / "metrics/run.jsonl")
    return {
        family: {line["step"]: line[f"own/{family}"] for line in lines if f"own/{family}" in line}
        for family in FAMILIES
    }


def windows(every):
    """Return the mean of the steps since the last log, for each logged step: the first and the last are."""
    means, first = {}, 0
    for step in sorted({*range(0, STEPS, every), STEPS - 1}):
        means[step] = (first + step) / 2
        first = step + 1
    return means


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"log_frequency": 2, "steps_per_epoch": 3}, (2, 20, 20, 100, 30)),
        ({"log_frequency": 1}, (1, 10, 10, 50, 10)),
        (
            {"log_frequency": 2, "cadence": {"scalars": 7, "histograms": 40, "figures": 11, "system": 60}},
            (7, 20, 40, 11, 60),
        ),
    ],
    ids=["the table", "epochs unknown", "each set"],
)
def test_every_family_keeps_its_cadence_and_divides_by_the_steps_that_passed(tmp_path, settings, expected):
    found = logged(tmp_path, **settings)
    for family, every in zip(FAMILIES, expected, strict=True):
        assert found[family] == pytest.approx(windows(every)), family


def test_never_is_never(tmp_path):
    found = logged(tmp_path, log_frequency=10, cadence={"figures": 0, "system": 0})
    assert (found["figures"], found["system"]) == ({}, {})
    assert found["scalars"] == pytest.approx(windows(10))
