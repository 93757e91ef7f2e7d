from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest
import yaml

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.reference.hjepa.config import (
    DataConfig,
    EMAConfig,
    MaskingConfig,
    ModelConfig,
    ObjectiveConfig,
)
from hjepa_dist_metrics.reference.training import TrainingConfig

DEFAULT_YAML = Path(__file__).resolve().parents[2] / "configs" / "default.yaml"


def as_lists(value):
    if isinstance(value, dict):
        return {key: as_lists(v) for key, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("section", "cls"), [("model", ModelConfig), ("data", DataConfig), ("training", TrainingConfig)]
)
def test_the_default_file_says_what_the_defaults_are(section, cls):
    assert yaml.safe_load(DEFAULT_YAML.read_text())[section] == as_lists(asdict(cls()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EMAConfig(momentum_start=1.5), r"model.ema.momentum_start is 1.5; allowed: 0 to 1"),
        (lambda: EMAConfig(0.9, 0.8), r"model.ema.momentum_end is 0.8; allowed: momentum_start \(0.9\) to 1"),
        (lambda: MaskingConfig(scale=(0.5, 0.2)), r"model.masking.scale is \(0.5, 0.2\)"),
        (lambda: MaskingConfig(num_target_blocks=0), "num_target_blocks is 0; allowed: 1 or more"),
        (lambda: ObjectiveConfig(loss="l2"), "objective.loss is 'l2'; allowed: one of 'smooth_l1', 'cosine'"),
        (
            lambda: ModelConfig(embed_dim=30),
            r"model.embed_dim is 30; allowed: a multiple of 4 and of num_heads",
        ),
        (lambda: ModelConfig(num_hierarchies=5), "model.num_hierarchies is 5; allowed: 2 to 4"),
        (lambda: ModelConfig(num_hierarchies=2), r"model.hierarchy_weights is .*; allowed: 2 numbers"),
        (lambda: DataConfig(kind="mnist"), "data.kind is 'mnist'; allowed: one of 'digits', 'image_folder'"),
        (lambda: DataConfig(kind="image_folder"), "data.root is None; allowed: a folder of images"),
        (
            lambda: DataConfig(image_size=(28, 28)),
            r"data.image_size is \(28, 28\); allowed: null or \[8, 8\]",
        ),
        (lambda: TrainingConfig(epochs=0), "training.epochs is 0; allowed: 1 or more"),
        (lambda: TrainingConfig(clip_grad=0.0), "training.clip_grad is 0.0; allowed: more than 0"),
        (lambda: TrainingConfig(resume=True), "training.resume is True; allowed: true only with"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(build, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_settings_do_not_change_under_way():
    with pytest.raises(FrozenInstanceError):
        DataConfig().batch_size = 3
