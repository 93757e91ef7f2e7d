"""What a step of self-distillation shows the monitor, against the metrics fed by hand."""

import copy

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import (
    Collapse,
    ConfigError,
    EMADynamics,
    HierarchyFeatures,
    Masking,
    PredictionQuality,
    TrainingMonitor,
    TrainingStability,
    ViewAgreement,
)

DIM, IMAGES = 6, 10


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.context_encoder = nn.Linear(DIM, DIM)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def monitored(tmp_path, model=None, log_frequency=1, **options):
    model = model or Model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    settings = {"log_dir": str(tmp_path), "log_frequency": log_frequency, "sync": "inline"}
    cadence = dict.fromkeys(("scalars", "representations", "histograms"), log_frequency)
    return TrainingMonitor(model, optimizer, {**settings, "cadence": cadence}, **options)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(monitor, metric):
    expected = {tag: float(v) for tag, v in metric.compute().items() if hasattr(v, "value")}
    assert expected
    assert {tag: monitor.latest[tag] for tag in expected} == pytest.approx(expected, rel=1e-12)


def test_levels_predictions_and_context(tmp_path):
    levels = [draw(IMAGES, 9, DIM), draw(IMAGES, 4, DIM, seed=1)]
    predictions = [draw(IMAGES, 9, DIM, seed=2), draw(IMAGES, 4, DIM, seed=3)]
    valid = [draw(IMAGES, n, seed=4) > 0 for n in (9, 4)]
    context, seen = draw(IMAGES, 5, DIM, seed=5), draw(IMAGES, 5, seed=6) > 0
    ids = torch.arange(100, 100 + IMAGES)
    with monitored(tmp_path) as monitor:
        monitor.step(
            samples=IMAGES,
            losses=0.5,
            features=levels,
            ids=ids,
            context_features=context,
            context_valid=seen,
            predictions=predictions,
            targets=levels,
            prediction_valid=valid,
        )
        hierarchy, quality = HierarchyFeatures([DIM, DIM]), PredictionQuality(2, [DIM, DIM])
        hierarchy.update(levels)
        quality.update(predictions, levels, valid, ids)
        target, stream = Collapse(DIM, short="target"), Collapse(DIM, "context", short="context")
        target.update(levels[0], None, ids)
        stream.update(context, seen)
        coarse, predicted = Collapse(DIM, "level1"), Collapse(DIM, "prediction1")
        coarse.update(levels[1], None, ids)
        predicted.update(predictions[1], valid[1], ids)
        for metric in (hierarchy, quality, target, stream, coarse, predicted):
            same(monitor, metric)
        # Coarse levels and predictions are alike, and of low rank, by design.


def test_views_of_samples_are_classes_of_their_own(tmp_path):
    views, valid = draw(IMAGES, 3, DIM), draw(IMAGES, 3, seed=1) > -1
    with monitored(tmp_path) as monitor:
        monitor.step(samples=IMAGES, losses=0.5, views=views, views_valid=valid)
        agreement = ViewAgreement(DIM)
        agreement.update(views, valid)
        same(monitor, agreement)
    with monitored(tmp_path) as monitor, pytest.raises(ConfigError, match=r"expected views \[B, V, 6\]"):
        monitor.step(samples=IMAGES, losses=0.5, views=draw(IMAGES, DIM))


@pytest.mark.parametrize("shape", [(IMAGES, 16), (IMAGES, 2, 8)])
def test_masks_with_and_without_a_grid(tmp_path, shape):
    mask = draw(*shape) > 0
    with monitored(tmp_path) as monitor:
        monitor.step(samples=IMAGES, losses=0.5, mask=mask)
        masking = Masking(16, grid=(4, 4) if len(shape) == 2 else (2, 8))
        masking.update(mask.reshape(IMAGES, 16))
        same(monitor, masking)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper])
def test_the_teacher_is_compared_with_the_step_before_the_log(tmp_path, wrap):
    model = Model()
    by_hand = EMADynamics()
    with monitored(tmp_path, wrap(model), log_frequency=3) as monitor:
        for step in range(4):
            with torch.no_grad():
                model.target_encoder.weight.add_(0.1 * (1 + step))
            monitor.step(samples=IMAGES, losses=0.5, momentum=0.9, momentum_target=0.99)
            if step == 2:
                by_hand.remember(model.target_encoder)
        by_hand.update(model.context_encoder, model.target_encoder, 0.9, 0.99)
        same(monitor, by_hand)
        assert monitor.latest["train/ema_momentum"] == 0.9


def test_encoders_by_argument_or_by_name(tmp_path):
    pair = nn.Linear(2, 2), nn.Linear(2, 2)
    with monitored(tmp_path, nn.Sequential(*pair), encoders=pair) as monitor:
        monitor.step(samples=1, losses=0.5, momentum=0.9)
        assert monitor.latest["ema/parameter_divergence"] > 0
    message = "Linear has no modules context_encoder and target_encoder"
    with monitored(tmp_path, nn.Linear(2, 2)) as monitor, pytest.raises(ConfigError, match=message):
        monitor.step(samples=1, losses=0.5, momentum=0.9)


def test_the_loss_of_every_step_and_the_validation_loss(tmp_path):
    with monitored(tmp_path, log_frequency=4) as monitor:
        by_hand = TrainingStability()
        by_hand.validate(3.0)
        monitor.log({"val/loss": 3.0})
        for step in range(5):
            monitor.step(samples=IMAGES, losses=1.0 + step)
            by_hand.update(1.0 + step)
        same(monitor, by_hand)
        assert monitor.latest["loss/convergence_rate"] == pytest.approx((3.5 - 1.0) / 1.0 / 4)


@pytest.mark.parametrize(
    ("features", "valid", "message"),
    [
        ([draw(2, 3, 4)], torch.ones(2, 3), "features by level go with a list of valid masks"),
        (draw(2, 3, 4), {"a": torch.ones(2, 3)}, "valid masks by name go with features by name"),
    ],
)
def test_masks_have_the_form_of_their_features(tmp_path, features, valid, message):
    with monitored(tmp_path) as monitor, pytest.raises(ConfigError, match=message):
        monitor.step(samples=2, losses=0.5, features=features, valid=valid)
