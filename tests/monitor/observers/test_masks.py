"""What the context sees of what is to be predicted, through the monitor."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, TrainingMonitor

CONFIG = {
    "log_frequency": 1,
    "sync": "inline",
    "tensorboard": {"enabled": False},
    "cadence": {"histograms": 0, "figures": 0},
}


def steps(place, count=10, **masks):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, CONFIG | {"log_dir": str(place)}) as monitor:
        for _ in range(count):
            monitor.step(samples=3, losses=torch.tensor(1.0), **masks)
        return monitor.latest, monitor.health()


def masks_of(*columns):
    flags = torch.zeros(3, 8, dtype=torch.bool)
    flags[:, list(columns)] = True
    return flags


def test_a_context_that_sees_targets_is_found(tmp_path):
    latest, health = steps(tmp_path, mask=masks_of(0, 1, 2, 3), context_mask=masks_of(3, 4, 5, 6, 7))
    assert latest["masking/context_target_overlap"] == pytest.approx(1 / 4)
    assert "mask_leak" in [finding.name for finding in health.findings]


def test_targets_may_be_a_part_of_what_is_masked(tmp_path):
    latest, health = steps(
        tmp_path,
        mask=masks_of(0, 1, 2, 3),
        context_mask=masks_of(3, 4, 5).view(3, 2, 4),
        target_mask=masks_of(0, 1, 2),
    )
    assert latest["masking/context_target_overlap"] == 0.0
    assert "mask_leak" not in [finding.name for finding in health.findings]


@pytest.mark.parametrize("name", ["context_mask", "target_mask"])
def test_indices_are_no_mask(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name} must be bool"):
        steps(tmp_path, mask=masks_of(0, 1), **{name: torch.tensor([[1, 2]] * 3)})
