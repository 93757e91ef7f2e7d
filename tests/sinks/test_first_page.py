"""What TensorBoard shows first of a real H-JEPA run: Health, with data everywhere, and not too many tags."""

import re

import pytest

from hjepa_dist_metrics import ProcessContext, catalog
from hjepa_dist_metrics.catalog.headline import CARDS, GROUP, is_rarely_read, pinned_link
from hjepa_dist_metrics.commands.runs import load_runs
from hjepa_dist_metrics.readers.logs import jsonl_log
from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.main import train
from tests.helpers.served import serve, wait_for

ARGUMENTS = ["--config", "configs/default.yaml", "--training.max_steps", "20", "--logging.log_frequency", "4"]
LEVELS = range(3)
# What the documents that the package follows name of a run on one CPU process.
NAMED = [
    *("loss/total", "loss/unweighted", "train/loss", "train/lr", "train/ema_momentum", "train_epoch/loss"),
    *(f"loss/{name}{i}" for name in ("h", "contribution_h") for i in LEVELS),
    *(f"train/{side}_{kind}" for side in ("context", "target") for kind in ("std", "norm", "rank")),
    *("ema/momentum_current", "ema/momentum_target", "ema/parameter_divergence"),
    *("ema/target_weight_stability", "masking/mask_ratio", "masking/num_masked_patches"),
    *("masking/num_unmasked_patches", "masking/context_target_overlap", "val/loss"),
    *(
        f"hierarchy/level{i}_{k}"
        for i in LEVELS
        for k in ("feat_mean", "feat_std", "feat_norm", "effective_rank")
    ),
    *(f"hierarchy/level{i}_{k}" for i in LEVELS for k in ("feat_min", "feat_max", "num_tokens")),
    *(f"prediction/level{i}_cosine_sim_{k}" for i in LEVELS for k in ("mean", "std", "min", "max")),
    *(f"prediction/level{i}_{k}" for i in LEVELS for k in ("normalized_mse", "l2_distance")),
    *(f"collapse/{k}_std_per_dim" for k in ("mean", "min")),
    *(f"collapse/{k}" for k in ("effective_rank", "mean_similarity", "max_similarity", "rankme", "lidar")),
    *(f"collapse/{k}" for k in ("uniformity", "alignment", "vicreg_variance", "vicreg_covariance", "sigreg")),
    *(f"collapse/{k}" for k in ("participation_ratio", "stable_rank", "alpha_req", "std_similarity")),
    *(f"gradients/predictor_{k}" for k in ("mean", "max", "min", "std", "avg", "total_norm")),
    *("gradients/global_norm", "gradients/ratio_1", "learning_rate/base_lr", "learning_rate/param_group_0"),
    *("learning_rate/avg_param_update", "stability/loss_smoothness", "stability/loss_trend_slope"),
    *("stability/loss_max_spike", "stability/val_train_loss_ratio"),
    *(f"gradient/global_norm_{k}_clip" for k in ("before", "after")),
    *(f"gradient/{k}" for k in ("was_clipped", "clipping_ratio", "clipping_percentage", "nonfinite_steps")),
    *(f"performance/{k}_time_ms" for k in ("forward", "backward", "data", "optimizer", "step")),
    *("performance/samples_per_second", "performance/forward_backward_ratio"),
    *("performance/tokens_per_second", "performance/monitor_overhead_percent", "update/group0_ratio"),
]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    config = parse([*ARGUMENTS, "--logging.log_dir", str(folder), "--logging.figures.enabled", "false"])
    train(config)
    assert ProcessContext.current().world_size == 1
    return folder


@pytest.fixture(scope="module")
def board(logs):
    with serve(logs) as served:
        wait_for("the layout", lambda: served.get("/data/plugin/custom_scalars/layout"))
        wait_for("the last step", lambda: points(served, "loss/total")[-1][1] == 19)
        yield served


def points(board, tag):
    return board.get("/data/plugin/scalars/scalars", run="hjepa_default", tag=tag)


def scalar_tags(board):
    return board.get("/data/plugin/scalars/tags")["hjepa_default"]


def test_the_first_dashboard_is_health_with_data_in_all_charts(board):
    first, *others = board.get("/data/plugin/custom_scalars/layout")["category"]
    assert (first["title"], first["closed"]) == ("Health", False)
    assert others
    assert all(category["closed"] for category in others)
    assert 6 <= len(first["chart"]) <= 8
    for chart in first["chart"]:
        for regex in chart["multiline"]["tag"]:
            answer = board.get("/data/plugin/custom_scalars/scalars", run="hjepa_default", tag=regex)
            assert all(answer["tag_to_events"].values()), chart["title"]
            assert answer["tag_to_events"], chart["title"]


def test_the_group_of_headline_numbers_sorts_first(board):
    groups = sorted({tag.partition("/")[0] for tag in scalar_tags(board)})
    assert groups[0] == GROUP
    shown = {tag.partition("/")[2] for tag in scalar_tags(board) if tag.startswith(f"{GROUP}/")}
    assert shown == set(CARDS) - {"9_straggler_score"}  # of one process
    for name in shown:
        assert [p[1:] for p in points(board, f"{GROUP}/{name}")] == [
            p[1:] for p in points(board, CARDS[name])
        ]


def test_at_most_200_tags_and_what_the_documents_name(board):
    tags = set(scalar_tags(board))
    assert len(tags) <= 185  # GPUs add a dozen
    assert [tag for tag in NAMED if tag not in tags] == []
    assert not any(is_rarely_read(tag) for tag in tags)


def test_every_tag_has_a_description(board):
    for kind in ("scalars", "histograms", "text"):
        tags = board.get(f"/data/plugin/{kind}/tags")["hjepa_default"]
        if kind == "text":
            continue  # its page has no place for them
        missing = [tag for tag, what in tags.items() if not what["description"]]
        assert missing == []
    assert "<strong>effective rank" in scalar_tags(board)["collapse/effective_rank"]["description"].lower()


def test_the_last_step_has_every_family(board):
    assert points(board, "collapse/effective_rank")[-1][1] == 19
    assert points(board, "health/effective_rank_limit")[-1][1] == 19


def test_commands_read_all_numbers_and_no_second_names(logs):
    (run,) = load_runs(logs)
    lines = jsonl_log(logs / "metrics/hjepa_default.jsonl").scalars
    assert run.scalars.keys() == lines.keys()
    assert any(is_rarely_read(tag) for tag in lines)
    assert not any(tag.startswith(GROUP) for tag in run.scalars)


def test_the_projector_has_held_out_images(board):
    (embedding, *_) = board.get("/data/plugin/projector/info", run="hjepa_default")["embeddings"]
    assert re.fullmatch(r"embeddings/held_out:\d+", embedding["tensorName"])
    assert embedding["sprite"]["imagePath"]
    assert embedding["metadataPath"]


def test_the_link_pins_the_headline_numbers():
    link = pinned_link("http://localhost:6006")
    assert link.startswith(
        "http://localhost:6006/?pinnedCards=%5B%7B%22plugin%22%3A%22scalars%22%2C%22tag%22%3A%22health"
    )
    assert link.endswith("&smoothing=0#timeseries")
    assert all(catalog.find(tag) is not None for tag in CARDS.values())
