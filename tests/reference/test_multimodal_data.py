"""Captions, dialled keys and sets of modalities: what they hold, whoever draws them, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.reference.multimodal.audio import SAMPLE_RATE, SAMPLES, dial, frequencies
from hjepa_dist_metrics.reference.multimodal.captions import TEMPLATES, WORDS, captions, tokenize, vocabulary
from hjepa_dist_metrics.reference.multimodal.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.multimodal.data import VALIDATION_EPOCH, digits
from hjepa_dist_metrics.reference.multimodal.modality import Modality, PairedData

QUIET = {"noise": (1e-6, 1e-6), "level_db": 0.0, "seed": 0}


def tones(signal):
    """The two strongest frequencies of a signal, to a bin of 1 / 8 Hz, by a transform padded with zeros."""
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal)), 8 * SAMPLE_RATE))
    hertz = np.arange(len(spectrum)) / 8
    return [
        hertz[(low := int(8 * cut)) + spectrum[low : 8 * top].argmax()]
        for cut, top in ((600, 1000), (1150, 1550))
    ]


# The keypad of ITU-T Q.23, written down from there.
KEYPAD = {
    1: (697, 1209), 2: (697, 1336), 3: (697, 1477),
    4: (770, 1209), 5: (770, 1336), 6: (770, 1477),
    7: (852, 1209), 8: (852, 1336), 9: (852, 1477),
    0: (941, 1336),
}  # fmt: skip


def test_every_digit_has_the_two_tones_of_its_key():
    labels = torch.arange(10)
    signals = dial(labels, labels, epoch=0, **QUIET).numpy()
    for digit in range(10):
        assert frequencies(digit) == KEYPAD[digit]
        assert tones(signals[digit]) == pytest.approx(KEYPAD[digit], abs=8.0)


def test_signals_vary_in_phase_level_and_noise_but_only_by_index_and_epoch():
    labels, indices = torch.full((6,), 5), torch.tensor([0, 1, 2, 3, 4, 1])
    loud = {"noise": (0.1, 1.0), "level_db": 12.0, "seed": 0}
    signals = dial(labels, indices, epoch=0, **loud)
    assert signals.shape == (6, SAMPLES)
    assert torch.equal(signals[1], signals[5])
    assert torch.equal(dial(labels[:1], indices[3:4], epoch=0, **loud)[0], signals[3])
    assert not torch.equal(dial(labels, indices, epoch=1, **loud)[0], signals[0])
    levels = dial(torch.full((500,), 5), torch.arange(500), epoch=0, **{**loud, "noise": (1e-6, 1e-6)}).std(
        dim=1
    )
    assert float(levels.max() / levels.min()) == pytest.approx(10 ** (12 / 20), rel=0.15)


def test_noise_is_normal_and_as_loud_as_asked():
    labels, indices = torch.zeros(400, dtype=torch.int64), torch.arange(400)
    clean = dial(labels, indices, epoch=0, **QUIET)
    noisy = dial(labels, indices, epoch=0, **{**QUIET, "noise": (0.5, 0.5 + 1e-9)})
    noise = ((noisy - clean).double() / 0.5).flatten()
    assert float(noise.mean()) == pytest.approx(0.0, abs=5 / len(noise) ** 0.5)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)
    assert float((noise.abs() < 1.0).double().mean()) == pytest.approx(0.6827, abs=0.01)


def test_captions_name_the_digit_in_several_ways():
    labels = torch.arange(400) % 10
    texts = captions(labels, torch.arange(400), seed=0)
    for label, text in zip(labels.tolist(), texts, strict=True):
        assert (WORDS[label] in text.split()) != (str(label) in text.split())
    assert len(set(texts)) == 10 * len(TEMPLATES)
    assert captions(labels[5:6], torch.tensor([5]), seed=0) == texts[5:6]


def test_tokens_are_the_words_in_order():
    tokens = tokenize(["a handwritten seven", "7"])
    words = vocabulary()
    assert [words[t - 1] for t in tokens[0] if t] == ["a", "handwritten", "seven"]
    assert [words[t - 1] for t in tokens[1] if t] == ["7"]
    assert tokens.shape == (2, max(len(template.split()) for template in TEMPLATES))


def test_digits_match_over_modalities_and_validation_is_always_the_same():
    data = digits(DataConfig(), seed=0)
    assert (data.num_train, data.num_val) == (1400, 397)
    assert len(data.labels) == len(data.captions) == len(data.pictures) == 1797
    indices = torch.tensor([3, 1500, 1796])
    one, two = (data.inputs(indices, VALIDATION_EPOCH) for _ in range(2))
    assert {name: tuple(rows.shape) for name, rows in one.items()} == {
        "text": (3, 7),
        "image": (3, 1, 8, 8),
        "audio": (3, SAMPLES),
    }
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = data.inputs(indices, 4)
    assert torch.equal(other["text"], one["text"])
    assert not torch.equal(other["audio"], one["audio"])


def modality(name, rows=None):
    return Modality(
        name, lambda dim: nn.Linear(3, dim), lambda indices, epoch: torch.ones(rows or len(indices), 3)
    )


@pytest.mark.parametrize(
    ("names", "sizes", "match"),
    [
        (["a"], (10, 5), "names of 2 or more modalities"),
        (["a", "a"], (10, 5), "each once"),
        (["a", "global"], (10, 5), "cannot be named 'global'"),
        (["a", "b.c"], (10, 5), r"nor with a '\.'"),
        (["a", "b"], (10, 0), r"validation split has 0 sample\(s\)"),
        (["a", "b"], (10, 1), r"validation split has 1 sample\(s\)"),
    ],
)
def test_sets_that_cannot_be_trained_on_are_refused(names, sizes, match):
    with pytest.raises(ConfigError, match=match):
        PairedData([modality(name) for name in names], *sizes)


def test_things_to_show_must_be_as_many_as_samples():
    with pytest.raises(ConfigError, match="captions for 15 samples, got 2"):
        PairedData([modality("a"), modality("b")], 10, 5, captions=["x", "y"])


def test_a_modality_with_another_batch_size_is_named():
    data = PairedData([modality("a"), modality("b", rows=3)], 10, 5)
    with pytest.raises(ConfigError, match=r"4 inputs of every modality, got \{'a': 4, 'b': 3\}"):
        data.inputs(torch.arange(4), 0)


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (ModelConfig, {"embed_dim": 1}, r"model\.embed_dim is 1"),
        (ModelConfig, {"temperature": 0.0}, r"model\.temperature is 0\.0; allowed: 0\.01 to 1"),
        (ModelConfig, {"global_weight": -1.0}, r"model\.global_weight is -1"),
        (ModelConfig, {"pair_weight": 0.0, "global_weight": 0.0}, r"model\.pair_weight is 0"),
        (DataConfig, {"batch_size": 1}, r"data\.batch_size is 1"),
        (DataConfig, {"audio_noise": (1.0, 0.5)}, r"data\.audio_noise"),
        (DataConfig, {"audio_level_db": -1.0}, r"data\.audio_level_db is -1"),
    ],
)
def test_wrong_settings_are_named(kind, settings, match):
    with pytest.raises(ConfigError, match=match):
        kind(**settings)
