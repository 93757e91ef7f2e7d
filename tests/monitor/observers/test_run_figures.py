"""Figures of a run: drawn once, by the main process, from what all ranks saw, and never in the loop's way."""

import logging
import threading

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import MetricCollection, TrainingMonitor
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.monitor.figure_renderer import draw
from hjepa_dist_metrics.monitor.observers.run_figures import Observed, RunFigures, observed, resolution
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator
from hjepa_dist_metrics.sinks.jsonl import JsonlSink
from hjepa_dist_metrics.values import Drawing, Image
from tests.helpers.ranks import run_ranks

GRID = (4, 6)
TAGS = {
    "masking/geometry_analysis",
    "masking/coverage",
    "patches/similarity_heatmap",
    "prediction/most_difficult_patches",
    "prediction/easiest_patches",
    "prediction/level0_gram_prediction",
    "prediction/level0_gram_target",
    "prediction/level1_gram_prediction",
    "prediction/level1_gram_target",
    "collapse/spectrum",
    "embeddings/pca_pred_vs_target",
}


def batch(count: int = 24, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    drawn = MultiBlockMaskGenerator(GRID, min_visible=4).generate_blocks(torch.arange(count), 0)
    targets = [torch.randn(count, n, 8, generator=generator) for n in (24, 6)]
    return {
        "images": torch.rand(count, 3, 16, 24, generator=generator),
        "mask": drawn.mask,
        "blocks": drawn.blocks,
        "predictions": [t + torch.randn(t.shape, generator=generator) for t in targets],
        "targets": targets,
        "valid": [drawn.mask, None],
        "ids": torch.arange(count),
        "grid": GRID,
    }


def seen(fields: dict) -> Observed:
    rest = dict(fields)
    grid, first = rest.pop("grid"), [rest.pop(name) for name in ("images", "mask", "predictions", "targets")]
    first[1] = first[1].reshape(-1, *grid)
    return observed(*first, **rest)


def part(fields: dict, rank: int, world_size: int) -> dict:
    def cut(value):
        if isinstance(value, torch.Tensor):
            return value[rank::world_size]
        return [cut(v) for v in value] if isinstance(value, list) else value

    return {name: cut(value) for name, value in fields.items()}


def merged(context, world_size: int) -> dict[str, Drawing]:
    metric = RunFigures(seen(batch(2)))
    fields = batch()
    if context is None or context.rank < world_size - 1 or world_size == 1:  # the last of several has nothing
        rank, count = (0, 1) if context is None else (context.rank, max(1, world_size - 1))
        metric.update(seen(part(fields, rank, count)))
    return MetricCollection({"figures": metric}, context).compute()


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_split_draws_the_same_pictures(world_size: int):
    whole = {tag: drawing.draw().pixels.astype(int) for tag, drawing in merged(None, 1).items()}
    assert set(whole) == TAGS
    for drawings in run_ranks(world_size, lambda context: merged(context, world_size))[:1]:
        for tag, drawing in drawings.items():
            # Moments agree to rounding, which may move a line by a hundredth of a pixel.
            assert np.abs(drawing.draw().pixels - whole[tag]).mean() < 0.05, tag


def test_the_states_hold_what_was_seen():
    fields = batch()
    metric = RunFigures(seen(fields))
    metric.update(seen(fields))
    states = metric.states
    np.testing.assert_array_equal(states["coverage"].value, fields["mask"].sum(0))
    sizes = states["sizes"].value.reshape(5, 7)
    blocks = fields["blocks"].reshape(-1, 4)
    blocks = blocks[blocks[:, 2] > 0]
    assert sizes.sum() == len(blocks)
    for _, _, height, width in blocks.tolist():
        assert sizes[height, width] > 0
    cosine = torch.cosine_similarity(fields["predictions"][0], fields["targets"][0], dim=-1)
    lowest = cosine.masked_fill(~fields["mask"], 2).flatten().argsort()[:12]
    wanted = torch.stack([lowest // 24, lowest % 24], dim=1)
    np.testing.assert_array_equal(states["hardest"].labels[:, :2], wanted)
    image, patch = wanted[0].tolist()
    row, column = divmod(patch, 6)
    padded = nn.functional.pad(fields["images"][image], (4, 4, 4, 4))
    crop = padded[:, 4 * row : 4 * row + 12, 4 * column : 4 * column + 12]
    np.testing.assert_allclose(states["hardest"].labels[0, 2:] / 4096, crop.flatten(), atol=1 / 4096)


def settings(tmp_path, **more) -> dict:
    return {
        "experiment_name": "run",
        "log_dir": str(tmp_path),
        "log_frequency": 1,
        "cadence": {"figures": 2},
        "tensorboard": {"enabled": False},
        **more,
    }


def step_arguments(seed: int) -> dict:
    fields = batch(seed=seed)
    mask = fields.pop("mask").reshape(-1, *fields.pop("grid"))
    return {"mask": mask, "prediction_valid": fields.pop("valid"), **fields}


def run_steps(monkeypatch, config: dict, steps: int = 3) -> list[tuple[int, dict, str]]:
    """Train nothing for a few steps; return what was written, and the thread that wrote it."""
    model = nn.Linear(2, 2)
    written = []

    def spy(sink, step, values, wall_time=None):
        written.append((step, dict(values), threading.current_thread().name))

    monkeypatch.setattr(JsonlSink, "write", spy)
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), 0.1), config) as monitor:
        for step in range(steps):
            monitor.step(samples=24, losses=torch.tensor(1.0), **step_arguments(step))
    return written


def test_pictures_come_at_their_cadence_from_the_writing_thread(tmp_path, monkeypatch):
    written = run_steps(monkeypatch, settings(tmp_path))
    pictures = [
        (step, tag, thread)
        for step, values, thread in written
        for tag, v in values.items()
        if isinstance(v, Image)
    ]
    assert {tag for _, tag, _ in pictures} == TAGS
    assert {step for step, _, _ in pictures} == {0, 2}
    assert {thread for _, _, thread in pictures} == {"hjepa-metrics-writer"}
    assert not [v for _, values, _ in written for v in values.values() if isinstance(v, Drawing)]


def test_figures_can_be_switched_off(tmp_path, monkeypatch):
    written = run_steps(monkeypatch, settings(tmp_path, figures={"enabled": False}), steps=1)
    assert not [v for _, values, _ in written for v in values.values() if isinstance(v, Image)]


def test_a_figure_that_fails_is_reported_and_the_others_are_written(caplog, monkeypatch):
    def fail() -> Image:
        raise ValueError("no pen")

    good = Image(np.zeros((2, 2, 3), np.uint8))
    with caplog.at_level(logging.ERROR):
        images = draw({"a/b": Drawing(fail), "c/d": Drawing(lambda: good)})
    assert images == {"c/d": good}
    assert "the figure a/b could not be drawn: ValueError: no pen" in caplog.text


def test_without_matplotlib_one_line_says_what_to_install(caplog, monkeypatch):
    import sys

    metric = RunFigures(seen(batch()))
    metric.update(seen(batch()))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(metric.compute_from(metric.states)) == {}
    assert len(caplog.records) == 1
    assert "hjepa-dist-metrics[figures]" in caplog.text


def test_the_hierarchys_numbers_become_bars():
    numbers = {
        f"hierarchy/level{i}_{k}": 10.0 * (i + 1)
        for i in (0, 1)
        for k in ("num_tokens", "compute_share", "memory_share")
    }
    assert set(draw(resolution(numbers))) == {"hierarchy/resolution"}
    assert resolution({"loss/total": 1.0}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(24, 3, 17, 24)}, "17x24 pixels do not divide into 4x6"),
        ({"grid": (3, 8)}, "16x24 pixels do not divide into 3x8"),
    ],
)
def test_bad_first_batches_are_told(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        RunFigures(seen(batch() | change))


def test_images_need_something_to_be_drawn_on_them():
    with pytest.raises(ConfigError, match=r"missing: \['mask', 'targets'\]"):
        observed(torch.rand(1, 3, 4, 4), None, [torch.rand(1, 4, 2)], None)


def test_later_batches_must_fit():
    metric = RunFigures(seen(batch()))
    with pytest.raises(ConfigError, match=r"expected images \[24, 3, 16, 24\], got \[24, 3, 8, 24\]"):
        metric.update(seen(batch() | {"images": torch.rand(24, 3, 8, 24)}))
    with pytest.raises(ConfigError, match="got 1, 2 and 2 levels"):
        metric.update(seen(batch() | {"predictions": batch()["predictions"][:1]}))


def test_an_empty_metric_draws_nothing():
    assert RunFigures(seen(batch())).compute() == {}


def test_every_tag_is_in_the_catalog():
    from hjepa_dist_metrics import catalog

    for tag in TAGS | {"hierarchy/resolution"}:
        entry = catalog.find(tag)
        assert entry is not None, tag
        assert (entry.kind, entry.family) == ("image", "figures"), tag
