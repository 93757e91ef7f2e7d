"""PSNR and similarity by frame: against torchmetrics and NumPy, with a frame's patches on several ranks."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from hjepa_dist_metrics import (
    ConfigError,
    FrameQuality,
    MetricCollection,
    Reconstruction,
    SemanticSimilarity,
)
from hjepa_dist_metrics.metrics import generalization_gaps, psnr
from tests.helpers.ranks import run_ranks, try_ranks

pytestmark = pytest.mark.accuracy

FRAMES, PATCHES = 5, 8


def images(count=FRAMES * PATCHES, seed=0):
    """Patches whose noise differs from patch to patch, and the frame of each, in no order."""
    rng = np.random.default_rng(seed)
    target = rng.random((count, 3, 6, 6))
    noise = rng.normal(0.0, 1.0, target.shape) * rng.uniform(0.01, 0.3, (count, 1, 1, 1))
    frame = rng.permutation(count) % FRAMES
    made = (target + noise, target)
    return *(torch.from_numpy(part).float() for part in made), torch.from_numpy(frame)


def by_hand(prediction, target):
    error = prediction.double().numpy() - target.double().numpy()
    return -10 * np.log10((error**2).reshape(len(error), -1).mean(1))


def test_psnr_is_torchmetrics_and_numpys():
    prediction, target, _ = images()
    theirs = peak_signal_noise_ratio(prediction, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(psnr(prediction, target), theirs, rtol=1e-5)
    np.testing.assert_allclose(psnr(prediction, target), by_hand(prediction, target), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_psnr_of_other_precisions_is_that_of_the_rounded_images(dtype):
    prediction, target, _ = (part.to(dtype) if part.is_floating_point() else part for part in images())
    np.testing.assert_allclose(psnr(prediction, target), by_hand(prediction, target), rtol=1e-6)


def test_a_known_error_has_a_known_psnr():
    """An error of 0.1 everywhere: MSE 0.01, 20 dB."""
    target = torch.full((2, 1, 4, 4), 0.5)
    assert psnr(target + 0.1, target).tolist() == pytest.approx([20.0, 20.0], rel=1e-6)


def test_perfect_patches_count_as_the_cap():
    target = torch.rand(4, 3, 4, 4)
    metric = Reconstruction("val")
    metric.update(target, target, torch.tensor([0, 0, 1, 1]))
    values = metric.compute()
    assert float(values["Eval/Frame/val_psnr"]) == 100.0
    assert float(values["Eval/PSNR_Stats/val_std"]) == 0.0
    assert values["Eval/Histogram/val_psnr_distribution"].counts[-1] == 2
    assert float(psnr(target, target, cap=60.0)[0]) == pytest.approx(60.0)


def expected_tags(prediction, target, frame, s):
    patch = by_hand(prediction, target)
    frames = np.array([patch[frame.numpy() == f].mean() for f in np.unique(frame)])
    return {
        f"Eval/Frame/{s}psnr": frames.mean(),
        f"Eval/PSNR_Stats/{s}std": np.std(frames),
        f"Eval/PSNR_Stats/{s}min": frames.min(),
        f"Eval/PSNR_Stats/{s}max": frames.max(),
        f"Eval/Patch/{s}psnr_std": np.std(patch),
        f"Eval/Patch/{s}psnr_nonfinite": 0,
        f"Eval/Quantile/{s}psnr_p10": np.percentile(frames, 10),
        f"Eval/Quantile/{s}psnr_p50": np.median(frames),
        f"Eval/Quantile/{s}psnr_p90": np.percentile(frames, 90),
        f"Eval/Info/num_{s}frames": len(frames),
        f"Eval/Info/num_{s}patches": len(patch),
    }, frames


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_frames_whose_patches_lie_on_several_ranks_are_those_of_one_process(world):
    prediction, target, frame = images()
    expected, frames = expected_tags(prediction, target, frame, "val_")

    def body(context):
        metric = Reconstruction("val", num_frames=FRAMES, patches_per_frame=PATCHES)
        mine = slice(context.rank, None, world)
        metric.update(prediction[mine], target[mine], frame[mine])
        return MetricCollection({"m": metric}, context).compute()

    for values in run_ranks(world, body):
        histogram = values.pop("Eval/Histogram/val_psnr_distribution")
        assert {tag: float(value) for tag, value in values.items()} == pytest.approx(expected, rel=1e-6)
        assert histogram.counts.tolist() == np.histogram(frames, histogram.edges)[0].tolist()
        alone = in_small_batches(prediction, target, frame)
        spread = "Eval/Patch/val_psnr_std"
        assert float(values.pop(spread)) == pytest.approx(float(alone.pop(spread)), rel=1e-12)
        assert values == alone  # bit for bit


def in_small_batches(prediction, target, frame):
    metric = Reconstruction("val")
    for start in range(0, len(frame), 7):
        part = slice(start, start + 7)
        metric.update(prediction[part], target[part], frame[part])
    values = metric.compute()
    del values["Eval/Histogram/val_psnr_distribution"]
    return values


def test_without_ids_every_image_is_a_frame():
    prediction, target, _ = images()
    metric = Reconstruction("")
    metric.update(prediction[:7], target[:7])
    metric.update(prediction[7:], target[7:])
    values = metric.compute()
    expected, _ = expected_tags(prediction, target, torch.arange(len(target)), "")
    del values["Eval/Histogram/psnr_distribution"]
    assert {tag: float(value) for tag, value in values.items()} == pytest.approx(expected, rel=1e-6)


def test_padding_counts_nowhere_not_even_for_the_range():
    prediction, target, frame = images()
    metric, padded = Reconstruction(), Reconstruction()
    metric.update(prediction, target, frame)
    junk = torch.full((3, 3, 6, 6), 7.0)
    valid = torch.tensor([True] * len(frame) + [False] * 3)
    ids = torch.cat([frame, torch.tensor([77, 78, 79])])
    padded.update(torch.cat([prediction, junk]), torch.cat([target, junk * float("nan")]), ids, valid)
    one, other = metric.compute(), padded.compute()
    assert {t: float(v) for t, v in one.items() if "Histogram" not in t} == {
        t: float(v) for t, v in other.items() if "Histogram" not in t
    }


def test_nan_is_a_finding():
    prediction, target, frame = images()
    prediction[3, 0, 0, 0] = float("nan")
    metric = Reconstruction("val")
    metric.update(prediction, target, frame)
    values = metric.compute()
    for tag in ("Eval/Frame/val_psnr", "Eval/PSNR_Stats/val_std", "Eval/Patch/val_psnr_std"):
        assert np.isnan(float(values[tag]))
    assert float(values["Eval/Patch/val_psnr_nonfinite"]) == 1
    histogram = values["Eval/Histogram/val_psnr_distribution"]
    assert (histogram.count, histogram.nonfinite) == (FRAMES - 1, 1)


def test_similarity_is_numpys_cosine():
    rng = np.random.default_rng(1)
    prediction, target = rng.normal(size=(2, 40, 16))
    prediction[0] = 0.0
    frame = np.arange(40) % FRAMES
    metric = SemanticSimilarity("clip", "val")
    metric.update(*(torch.from_numpy(part) for part in (prediction, target, frame)))
    values = metric.compute()
    norms = np.linalg.norm(prediction, axis=1) * np.linalg.norm(target, axis=1)
    cosine = (prediction * target).sum(1) / np.where(norms > 0, norms, 1.0)
    frames = np.array([cosine[frame == f].mean() for f in range(FRAMES)])
    assert float(values["Eval/Frame/val_clip_sim"]) == pytest.approx(frames.mean(), abs=1e-8)
    assert float(values["Eval/Frame/val_clip_dist"]) == pytest.approx(1 - frames.mean(), abs=1e-8)
    assert float(values["Eval/Patch/val_clip_sim_std"]) == pytest.approx(np.std(cosine), abs=1e-8)
    assert values["Eval/Histogram/val_clip_sim_distribution"].count == FRAMES


def test_gaps_are_training_minus_validation():
    values = {"Eval/Frame/train_psnr": 30.0, "Eval/Frame/val_psnr": 26.5, "Eval/Frame/train_clip_sim": 0.9}
    assert generalization_gaps(values, ["psnr", "clip_sim"]) == {"Eval/Gap/psnr_gap": 3.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t, f: (p, t * 255, f), r"images must lie in \[0, 1\], got values from .* to 25"),
        (lambda p, t, f: (p, t - 0.5, f), r"images must lie in \[0, 1\], got values from -0\."),
        (lambda p, t, f: (p, (t * 255).to(torch.uint8), f), r"torch.uint8: divide by 255"),
        (lambda p, t, f: (p[:-1], t, f), r"one shape \[B, C, H, W\], got \[39, 3, 6, 6\] and \[40"),
        (lambda p, t, f: (p[0], t[0], f), r"one shape \[B, C, H, W\], got \[3, 6, 6\]"),
        (lambda p, t, f: (p, t, f[:-1]), r"a frame id for each of 40 patches, got ids of \[39\]"),
        (lambda p, t, f: (p, t, f.float()), r"keys must be integers, got torch.float32"),
        (lambda p, t, f: (p, t, f, torch.ones(3)), r"valid mask of shape \[40\], got \[3\]"),
    ],
)
def test_bad_input_says_what_is_wrong(change, message):
    with pytest.raises(ConfigError, match=message):
        Reconstruction().update(*change(*images()))


def test_a_range_that_was_not_waited_for_is_an_error_of_compute():
    prediction, target, frame = images()
    metric = Reconstruction()
    metric.update(prediction, target, frame)
    metric.highest.update(1.5)
    with pytest.raises(ConfigError, match=r"from .* to 1\.5"):
        metric.compute()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([0, 0, 2, 2], r"of 'val_psnr': no rank has a patch of frame 1"),
        ([3, 3, 3, 3], r"no rank has a patch of frames 0, 1, 2"),
        ([0, 1, 2, 5], r"unknown frame 5: ids are 0 to 2"),
        ([0, 0, 1, 2], r"frame 1 has 1 patches over all ranks, expected 2"),
    ],
)
def test_a_frame_that_is_missing_or_not_whole_is_the_same_error_on_every_rank(frame, message):
    prediction, target, _ = images(4)

    def body(context):
        metric = Reconstruction("val", num_frames=3, patches_per_frame=2)
        mine = slice(context.rank, None, 2)
        metric.update(prediction[mine], target[mine], torch.tensor(frame)[mine])
        return MetricCollection({"m": metric}, context).compute()

    first, second = try_ranks(2, body)
    assert isinstance(first, ConfigError)
    assert str(first) == str(second)
    with pytest.raises(ConfigError, match=message):
        raise first


def test_promised_frames_and_none_seen_is_an_error():
    with pytest.raises(ConfigError, match="no rank has a patch of frames 0, 1, 2, 3, 4 and 2 more"):
        Reconstruction("val", num_frames=7).compute()
    assert Reconstruction("val").compute() == {}


@pytest.mark.parametrize("arguments", [{"num_frames": 0}, {"patches_per_frame": 0}, {"cap": float("inf")}])
def test_settings_are_checked(arguments):
    with pytest.raises(ConfigError, match="allowed"):
        Reconstruction("val", **arguments)
    with pytest.raises(ConfigError, match=r"\[B\], got shape"):
        FrameQuality("mine", edges=[0, 1]).update(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match=r"one shape \[B, D\]"):
        SemanticSimilarity().update(torch.zeros(2, 3), torch.zeros(2, 4))


def test_ids_may_be_any_integers_and_the_order_of_patches_does_not_matter():
    prediction, target, frame = images()
    order = torch.randperm(len(frame), generator=torch.Generator().manual_seed(0))
    one, other = Reconstruction(), Reconstruction()
    one.update(prediction, target, frame * 1_000_003 - 2_000_000)
    other.update(prediction[order], target[order], frame[order])
    same = "Eval/Frame/val_psnr", *(f"Eval/PSNR_Stats/val_{name}" for name in ("std", "min", "max"))
    assert [one.compute()[tag] for tag in same] == [other.compute()[tag] for tag in same]
