"""What a loop may hand to `step` by mistake: one ConfigError that says what was got, expected, and to do."""

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, Masking, TrainingMonitor

IMAGES = 4


def monitored(tmp_path):
    model = nn.Linear(2, 2)
    config = {
        "log_dir": str(tmp_path),
        "log_frequency": 1,
        "sync": "inline",
        "cadence": {"representations": 1},
    }
    return TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config)


def refused(tmp_path, **given):
    with monitored(tmp_path) as monitor, pytest.raises(ConfigError) as raised:
        monitor.step(**{"samples": IMAGES, "losses": 0.5, **given})
    return str(raised.value)


def accepted(tmp_path, **given):
    with monitored(tmp_path) as monitor:
        monitor.step(**{"samples": IMAGES, "losses": 0.5, **given})
    return monitor.latest


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.arange(24).view(4, 6), "torch.int64 [4, 6]"),
        (torch.arange(6), "torch.int64 [6]"),
        (torch.rand(4, 16), "torch.float32 [4, 16]"),
        (torch.ones(16, dtype=torch.bool), "torch.bool [16]"),
        (np.ones((4, 16), dtype=bool), "ndarray"),
    ],
)
def test_masks_are_flags_of_all_patches(tmp_path, mask, got):
    said = refused(tmp_path, mask=mask)
    assert got in said
    assert "bool [B, N]" in said


def test_the_remedy_for_indices_works(tmp_path):
    said = refused(tmp_path, mask=torch.tensor([[0, 5], [2, 3], [1, 2], [7, 4]]))
    remedy = "torch.zeros(B, N, dtype=torch.bool).scatter_(1, indices, True)"
    assert remedy in said
    scope = {"torch": torch, "B": 4, "N": 9, "indices": torch.tensor([[0, 5], [2, 3], [1, 2], [7, 4]])}
    mask = eval(remedy, scope)
    assert mask.nonzero().tolist() == [[0, 0], [0, 5], [1, 2], [1, 3], [2, 1], [2, 2], [3, 4], [3, 7]]
    assert accepted(tmp_path, mask=mask)["masking/mask_ratio"] == pytest.approx(2 / 9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_metric_refuses_what_the_monitor_refuses(dtype):
    with pytest.raises(ConfigError, match=r"mask .*bool \[B, N\].*scatter_"):
        Masking(6).update(torch.ones(4, 6, dtype=dtype))


def test_more_masks_than_samples(tmp_path):
    said = refused(tmp_path, mask=torch.ones(12, 16, dtype=torch.bool))
    assert "12 masks" in said
    assert "4 samples" in said
    assert ".any(dim=1)" in said


def test_masks_of_one_micro_batch(tmp_path):
    assert (
        accepted(tmp_path, samples=12, mask=torch.ones(4, 16, dtype=torch.bool))["masking/mask_ratio"] == 1.0
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"losses": torch.ones(4)}, ["losses", "'loss'", "[4]", ".mean()"]),
        ({"losses": {"loss": torch.ones(4), "loss_h0": 1.0}}, ["'loss'", "[4]"]),
        ({"losses": {"loss": "x"}}, ["'loss'", "'x'"]),
        ({"losses": "0.5"}, ["'loss'", "'0.5'"]),
        ({"scalars": {"x": torch.ones(3)}}, ["'x'", "[3]"]),
        ({"features": np.ones((4, 3))}, ["features", "ndarray", "torch.from_numpy"]),
        ({"features": {"a": np.ones((4, 3))}}, ["features", "'a'", "ndarray"]),
        ({"features": [torch.ones(4, 3, 2), None]}, ["features", "level 1", "NoneType"]),
        ({"features": torch.ones(4, 3, dtype=torch.int64)}, ["features", "torch.int64", "floating"]),
        ({"context_features": torch.ones(4, 3, dtype=torch.int64)}, ["context_features", "torch.int64"]),
        ({"predictions": [torch.ones(4, 2, 3)]}, ["predictions", "without targets"]),
        ({"targets": [torch.ones(4, 2, 3)]}, ["targets", "without predictions"]),
        ({"predictions": np.ones((4, 2, 3)), "targets": torch.ones(4, 2, 3)}, ["predictions", "ndarray"]),
        ({"samples": -4}, ["samples", "-4"]),
        ({"samples": 4.5}, ["samples", "4.5"]),
        ({"samples": torch.ones(2)}, ["samples", "[2]"]),
        ({"samples": "4"}, ["samples", "'4'"]),
    ],
)
def test_what_was_got_is_named(tmp_path, given, words):
    said = refused(tmp_path, **given)
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    "given",
    [
        {"losses": torch.ones(1)},
        {"losses": {"loss": np.float32(1.0)}},
        {"losses": np.array(1.0)},
        {"samples": np.int64(4)},
        {"samples": torch.tensor(4)},
        {"samples": 0},
        {"scalars": {"x": torch.ones(1)}},
        {"features": torch.ones(4, 3, dtype=torch.bfloat16)},
    ],
)
def test_what_is_one_number_passes(tmp_path, given):
    accepted(tmp_path, **given)


def test_one_tensor_is_one_level(tmp_path):
    drawn = [torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    seen = drawn[0][..., 0] > 0
    alone = accepted(tmp_path, predictions=drawn[0], targets=drawn[1], prediction_valid=seen)
    listed = accepted(tmp_path, predictions=drawn[:1], targets=drawn[1:], prediction_valid=[seen])
    tags = [tag for tag in listed if tag.startswith(("prediction/", "collapse/"))]
    assert "prediction/level0_cosine_sim_mean" in tags
    assert {tag: alone[tag] for tag in tags} == {tag: listed[tag] for tag in tags}


def test_clipping_before_backward_is_told_in_the_callers_words(tmp_path):
    with (
        monitored(tmp_path) as monitor,
        pytest.raises(ConfigError, match=r"clip after backward\(\) and before"),
    ):
        monitor.clip_grad_norm_(1.0)


def test_a_logged_value_that_is_none_is_named(tmp_path):
    with monitored(tmp_path) as monitor, pytest.raises(ConfigError, match=r"'late'.*\[3\]"):
        monitor.log({"late": torch.ones(3)})
