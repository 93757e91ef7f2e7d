"""Text, image and audio as a real job: one run at every number of ranks, and all that it shows."""

from __future__ import annotations

import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from tests.helpers.jobs import ROOT, STEPS, TORCHRUN, TRAIN, Job, run

PAIRS = ("text_image", "text_audio", "image_audio")
SAME = ("loss/", "embeddings/", "alignment/", "optimization/", "val/", "gradient/", "alerts/")
SETTINGS = {
    "model.embed_dim": 16,
    "data.batch_size": 90,  # not the same share for each of 4 ranks
    "training.max_steps": STEPS,
    "logging.log_interval": 1,
    "logging.histogram_interval": 1,
    "logging.cadence.figures": 10,
}


def train(ranks: int, log_dir) -> Job:
    named = [part for key, value in SETTINGS.items() for part in (f"--{key}", str(value))]
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks))
    config = ("--config", str(ROOT / "configs/multimodal.yaml"), "--logging.log_dir", str(log_dir))
    job = run([*launcher, TRAIN, *config, *named], log_dir)
    assert job.returncode == 0, f"{job.stdout[-2000:]}\n{job.stderr[-4000:]}"
    return job


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(1, tmp_path_factory.mktemp("one") / "logs")


@pytest.fixture(scope="module")
def board(alone):
    sizes = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    return EventAccumulator(str(alone.event_files[0].parent), size_guidance=sizes).Reload()


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_first_steps_are_those_of_one_process(alone, ranks, tmp_path):
    job = train(ranks, tmp_path / "logs")
    assert f"training on {ranks} ranks" in job.stderr
    assert "arning" not in job.stderr
    for step in range(STEPS):
        for name in ("total", "global_modal", *PAIRS):
            tag = f"loss/train/{name}"
            expected = alone.metrics[step][tag]
            assert job.metrics[step][tag] == pytest.approx(expected, rel=1e-4), f"{tag} at step {step}"
    mine, theirs = job.untimed, alone.untimed
    assert {step: set(values) for step, values in mine.items()} == {
        step: set(values) for step, values in theirs.items()
    }
    for step, values in theirs.items():
        for tag in (tag for tag in values if tag.startswith(SAME)):
            assert mine[step][tag] == pytest.approx(values[tag], rel=1e-3, abs=1e-5), f"{tag} at step {step}"


def test_the_whole_tree_of_tags_is_written(board):
    tags = set(board.Tags()["scalars"])
    modalities = ("text", "image", "audio")
    expected = {
        f"loss/{part}/{name}" for part in ("train", "val") for name in ("total", "global_modal", *PAIRS)
    }
    expected |= {"loss/train/epoch_mean", "loss/train/epoch_std", "optimization/lr", "optimization/grad_norm"}
    expected |= {
        f"embeddings/{name}/{key}" for name in (*modalities, "global") for key in ("mean", "std", "norm")
    }
    for a, b in (pair.split("_") for pair in PAIRS):
        names = ["diagonal_similarity", "mean_similarity", "modality_gap", "diagonal_contrast"]
        names += [f"recall_at_{k}_{x}_to_{y}" for k in (1, 5) for x, y in ((a, b), (b, a))]
        expected |= {f"alignment/{a}_vs_{b}/{name}" for name in names}
    assert expected <= tags


def test_pictures_texts_histograms_graph_and_points_are_there(alone, board):
    tags = board.Tags()
    matrices = {f"alignment/{a}_vs_{b}/similarity_matrix" for a, b in (p.split("_") for p in PAIRS)}
    assert {"samples/pictures", *matrices} <= set(tags["images"])
    assert {"weights/text_encoder.places", "gradients/text_encoder"} <= set(tags["histograms"])
    assert [e.step for e in board.Histograms("weights/log_scale")] == [0, 15, 19]  # 15 an epoch, and the last
    assert [e.step for e in board.Histograms("gradients/audio_encoder")] == [0, 15, 19]
    table = board.Tensors("samples/captions/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.startswith("| sample | caption |")
    assert len(table.splitlines()) == 2 + 16
    assert tags["graph"]
    points = (alone.event_files[0].parent / "projector_config.pbtxt").read_text()
    for name in ("text", "image", "audio", "global"):
        assert f'"embeddings/{name}:00000"' in points
    assert "metadata_path" in points
    assert "sprite" in points


def test_the_documents_layouts_find_their_tags(board):
    *_, event = board.Tensors("custom_scalars__config__")  # laid out anew as tags appear
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles[:5] == ["Health", "Training Progress", "Embeddings", "Optimization", "Alignment"]
    for category in layout.category[:5]:
        for chart in category.chart:
            for regex in chart.multiline.tag:
                assert any(re.match(regex, tag) for tag in board.Tags()["scalars"]), regex
