"""The catalog: every public tag is known, once, and its bounds are those of a Gaussian of the run's size."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog.dashboards import load_dashboard
from hjepa_dist_metrics.errors import ConfigError

# The public tags, written down from the enhancement document and the quick reference, not from the catalog.
LEVELS = range(3)
COLLAPSE = [
    "mean_std_per_dim",
    "min_std_per_dim",
    "effective_rank",
    "rankme",
    "participation_ratio",
    "stable_rank",
    "alpha_req",
    "mean_similarity",
    "std_similarity",
    "max_similarity",
    "uniformity",
    "alignment",
    "vicreg_variance",
    "vicreg_covariance",
    "lidar",
    "sigreg",
    "num_samples",
    "nonfinite",
    "is_constant",
]
SCALARS = [
    *[
        "loss/total",
        "loss/unweighted",
        "loss/variance",
        "loss/covariance",
        "loss/nonfinite",
        "loss/first_nonfinite_level",
    ],
    *(f"loss/{name}{i}" for name in ("h", "contribution_h") for i in LEVELS),
    *(
        f"ema/{name}"
        for name in [
            "momentum_current",
            "momentum_target",
            "parameter_divergence",
            "target_weight_stability",
            "relative_divergence",
            "cosine",
            "update_magnitude",
        ]
    ),
    *(
        f"masking/{name}"
        for name in ["mask_ratio", "num_masked_patches", "num_unmasked_patches", "target_mask_count"]
    ),
    *(
        f"hierarchy/level{i}_{name}"
        for i in LEVELS
        for name in [
            "feat_mean",
            "feat_std",
            "feat_norm",
            "feat_min",
            "feat_max",
            "effective_rank",
            "num_tokens",
            "cka",
        ]
    ),
    *(
        f"prediction/level{i}_{name}"
        for i in LEVELS
        for name in [
            "cosine_sim_mean",
            "cosine_sim_std",
            "cosine_sim_min",
            "cosine_sim_max",
            "normalized_mse",
            "l2_distance",
            "cka",
        ]
    ),
    *(f"collapse/{stream}{name}" for stream in ("", "level0_", "context_level2_") for name in COLLAPSE),
    *(
        f"gradients/{module}_{name}"
        for module in ("context_encoder", "predictor", "target_encoder")
        for name in ["mean", "max", "min", "std", "avg", "total_norm"]
    ),
    *["gradients/global_norm", "gradients/ratio_3", "gradients/snr", "gradients/noise_scale"],
    *(
        f"gradient/{name}"
        for name in [
            "global_norm_before_clip",
            "global_norm_after_clip",
            "was_clipped",
            "clipping_ratio",
            "clipping_percentage",
            "clipping_percentage_window",
            "nonfinite_steps",
        ]
    ),
    *(
        f"learning_rate/{name}"
        for name in ["base_lr", "param_group_0", "param_group_12", "avg_param_update", "warmup_stage"]
    ),
    *["update/group0_ratio", "update/decay_ratio"],
    *(
        f"stability/{name}"
        for name in [
            "loss_smoothness",
            "val_train_loss_ratio",
            "loss_trend_slope",
            "loss_max_spike",
            "spike_score",
            "spike_count",
        ]
    ),
    *(
        f"performance/{phase}_time_ms{suffix}"
        for phase in ("forward", "backward", "data", "optimizer", "step")
        for suffix in ("", "_max", "_max_rank")
    ),
    *(
        f"performance/{name}"
        for name in [
            "samples_per_second",
            "tokens_per_second",
            "forward_backward_ratio",
            "mfu",
            "monitor_overhead_percent",
            "straggler_score",
            "slowest_rank",
            "gpu_memory_allocated_gb",
            "gpu_memory_reserved_gb",
            "gpu_memory_peak_gb",
        ]
    ),
    *(
        f"system/gpu{rank}_{name}"
        for rank in (0, 11)
        for name in ["memory_allocated_gb", "memory_reserved_gb", "utilization", "memory_utilization"]
    ),
    *["system/cpu_percent", "system/ram_gb"],
    *["train/loss", "train/lr", "train/ema_momentum", "train_epoch/loss", "val/loss", "val/knn_accuracy"],
    *(f"train/{stream}_{name}" for stream in ("context", "target") for name in ("std", "norm", "rank")),
    *[
        "alerts/collapse",
        "alerts/frozen_teacher",
        "sync/rounds",
        "sync/bytes",
        "sync/seconds",
        "sync/slowest_rank",
    ],
    *(f"loss/{part}/{name}" for part in ("train", "val") for name in ["total", "text_image", "global_modal"]),
    *["loss/train/epoch_mean", "loss/train/epoch_std", "optimization/lr", "optimization/grad_norm"],
    *(f"embeddings/{name}/{key}" for name in ("text", "global") for key in ("mean", "std", "norm")),
    *(
        f"alignment/{pair}/{name}"
        for pair in ("text_vs_image", "image_vs_audio")
        for name in [
            "diagonal_similarity",
            "mean_similarity",
            "modality_gap",
            "diagonal_contrast",
            "recall_at_1_text_to_image",
            "recall_at_5_image_to_text",
        ]
    ),
    *["alignment/num_pairs", "alignment/recall_at_5_chance", "alignment/nonfinite", "embeddings/nonfinite"],
]
OTHERS = {
    "prediction/level1_similarity_histogram": "histogram",
    "collapse/similarity_histogram": "histogram",
    "collapse/level0_similarity_histogram": "histogram",
    "gradients/predictor.blocks.0.weight": "histogram",
    "weights/encoder.bias": "histogram",
    "prediction/most_difficult_patches": "image",
    "embeddings/tsne_pred_vs_target": "image",
    "patches/similarity_heatmap": "image",
    "masking/geometry_analysis": "image",
    "training/original_image_0": "image",
    "notes/how_to_read": "text",
    "alerts/log": "text",
    "embeddings/level0": "embedding",
    "alignment/text_vs_audio/similarity_matrix": "image",
}


@pytest.mark.parametrize("tag", SCALARS)
def test_every_public_scalar_is_known(tag):
    entry = catalog.find(tag)
    assert entry is not None
    assert entry.kind == "scalar"


@pytest.mark.parametrize(("tag", "kind"), OTHERS.items())
def test_every_other_public_tag_is_known(tag, kind):
    assert catalog.find(tag).kind == kind


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "loss",
        "loss/totl",
        "loss/h",
        "loss/hx",
        "xloss/h0",
        "loss/h0/x",
        "loss/h0\n",
        "collapse/a/b_effective_rank",
        "system/gpuX_utilization",
        "LOSS/total",
    ],
)
def test_an_unknown_tag_is_none(tag):
    assert catalog.find(tag) is None


def test_each_pattern_is_there_once_and_finds_itself():
    patterns = [entry.pattern for entry in catalog.entries()]
    assert len(set(patterns)) == len(patterns)
    for entry in catalog.entries():
        tag = re.sub(r"\{(i|rank)\}", "3", entry.pattern)
        tag = re.sub(r"\{\w+\}", "some", tag)
        assert catalog.find(tag) is entry, tag


def test_the_most_specific_entry_is_found():
    assert catalog.find("gradients/predictor_mean").pattern == "gradients/{module}_mean"
    assert catalog.find("gradients/global_norm").pattern == "gradients/global_norm"
    assert catalog.find("alerts/log").kind == "text"
    assert catalog.find("collapse/level0_mean_std_per_dim").pattern == "collapse/{name}_mean_std_per_dim"


def test_patterns_become_anchored_regexes():
    assert catalog.to_regex("loss/h{i}") == r"^loss/h\d+$"
    assert catalog.to_regex("a.b/{name}_c") == r"^a\.b/[^/]+_c$"
    with pytest.raises(ValueError, match=r"\{level\}; placeholders: i, rank"):
        catalog.to_regex("loss/{level}")


def test_every_entry_says_enough():
    for entry in catalog.entries():
        assert entry.title, entry
        assert entry.meaning.endswith((".", ":")), entry
        assert not entry.dashboard or entry.dashboard in catalog.ALL_DASHBOARDS, entry
        assert "\n" not in entry.meaning + entry.healthy + entry.deviation, entry
        assert not re.search(r"\bS[0-4]\b|sketch|the document", str(dataclasses.astuple(entry))), entry


def test_families_split_the_catalog():
    families = ("scalars", "representations", "histograms", "figures", "system")
    parts = [catalog.entries(family) for family in families]
    assert all(parts)
    assert sorted(itertools.chain(*parts), key=lambda entry: entry.pattern) == sorted(
        catalog.entries(), key=lambda entry: entry.pattern
    )


@pytest.mark.parametrize(
    ("name", "dim", "count", "warn", "bad"),
    [
        ("effective_rank_limits", 384, 4096, 96.0, 19.2),
        ("effective_rank_limits", 384, 101, 25.0, 5.0),
        ("effective_rank_limits", 1, 4096, 0.25, 0.25),
        ("effective_rank_limits", 16, 4096, 4.0, 1.1),
        ("effective_rank_limits", 384, 1, 0.25, 0.25),
        ("effective_rank_limits", 384, 0, 0.25, 0.25),
        ("mean_std_limits", 100, 7, 0.03, 0.003),
        ("mean_std_limits", 1, 1, 0.3, 0.03),
        ("mean_similarity_limits", 64, 64, 0.5, 0.9),
    ],
)
def test_limits_are_shares_of_the_gaussian_baseline(name, dim, count, warn, bad):
    limits = getattr(catalog, name)(dim, count)
    assert (limits.warn, limits.bad) == pytest.approx((warn, bad))


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("collapse/effective_rank", {96.0: "ok", 95.9: "warn", 19.21: "warn", 19.19: "bad", math.nan: "bad"}),
        (
            "collapse/level0_mean_similarity",
            {-1.0: "ok", 0.5: "ok", 0.51: "warn", 0.9: "warn", 0.91: "bad", math.nan: "bad"},
        ),
    ],
)
def test_limits_judge_on_the_right_side(tag, values):
    limits = catalog.find(tag).limits(384, 4096)
    assert {value: limits.judge(value) for value in values} == values


def entropy_rank(unit):
    spectrum = np.linalg.svd(unit - unit.mean(0), compute_uv=False) ** 2
    share = spectrum[spectrum > spectrum[0] * 1e-12] / spectrum.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize(("dim", "count"), [(8, 500), (16, 40), (64, 50), (64, 3000), (256, 100)])
def test_a_gaussian_is_ok_and_a_line_and_a_point_are_bad_at_any_size(dim, count):
    rng = np.random.default_rng(0)
    noise, direction = rng.standard_normal((count, dim)), rng.standard_normal(dim)
    line = rng.standard_normal((count, 1)) * direction + 1e-2 * noise
    point = direction + 1e-3 * noise
    verdicts = []
    for rows in (noise, line, point):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        similarity = (np.square(unit.sum(0)).sum() - count) / (count * (count - 1))
        numbers = {
            "effective_rank": entropy_rank(unit),
            "mean_std_per_dim": unit.std(0, ddof=1).mean(),
            "mean_similarity": similarity,
        }
        found = [(name, catalog.find(f"collapse/{name}").limits(dim, count)) for name in numbers]
        verdicts.append({name: limits.judge(numbers[name]) for name, limits in found})
    assert verdicts[0] == dict.fromkeys(verdicts[0], "ok")
    assert verdicts[1]["effective_rank"] == "bad"
    assert (verdicts[2]["mean_std_per_dim"], verdicts[2]["mean_similarity"]) == ("bad", "bad")


def test_explain_tells_everything_in_lines():
    text = catalog.explain("collapse/level0_effective_rank")
    assert text.startswith("collapse/level0_effective_rank: effective rank (centred unit rows) of level0\n")
    for part in (
        "pattern:",
        "collapse/{name}_effective_rank",
        "deviation:",
        "warns below 96, bad below 19.2",
    ):
        assert part in text
    assert catalog.explain("loss/h{i}").startswith("loss/h{i}: loss of level {i}\n")
    assert catalog.explain("loss/h2").startswith("loss/h2: loss of level 2\n")


def test_explain_suggests_near_tags():
    with pytest.raises(ConfigError, match=r"'colapse/efective_rank'; near ones: collapse/effective_rank"):
        catalog.explain("colapse/efective_rank")


def test_the_table_has_a_row_for_each_entry():
    lines = catalog.markdown_table(catalog.entries()).splitlines()
    assert len(lines) == len(catalog.entries()) + 2
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {7}
    odd = dataclasses.replace(catalog.entries()[0], title="a|b")
    assert "a\\|b" in catalog.markdown_table((odd,))


def test_the_page_names_dashboards_rules_and_bounds():
    page = catalog.how_to_read()
    assert page.startswith("# How to read this run")
    requested = catalog.GROUPS["internals"]  # findings of what is measured on request
    titles = [load_dashboard(name).title for name in catalog.DASHBOARDS]
    always = (*titles, *(catalog.FINDINGS.keys() - requested))
    for part in (*always, "collapse/effective_rank", "warns below"):
        assert part in page
    assert not any(part in page for part in (*requested, "Inside the model"))
    page = catalog.how_to_read("ssl", ["attention/logit_max"])
    assert all(part in page for part in (*always, *requested, "Inside the model"))


@pytest.mark.parametrize(
    ("tag", "verdicts"),
    [
        ("loss/nonfinite", {0.0: "ok", 1.0: "bad"}),
        ("gradients/nonfinite", {0.0: "ok", 3.0: "bad"}),
        ("stability/nonfinite_steps", {0.0: "ok", 1.0: "bad"}),
        ("collapse/level1_is_constant", {0.0: "ok", 1.0: "bad"}),
        ("gradient/nonfinite_steps", {0.0: "ok", 7.0: "warn"}),
        ("gradient/clipping_percentage_window", {9.0: "ok", 11.0: "warn"}),
        ("performance/monitor_overhead_percent", {4.9: "ok", 5.1: "warn", 90.0: "warn"}),
    ],
)
def test_bounds_that_are_the_same_for_every_run(tag, verdicts):
    bounds = catalog.find(tag).bounds
    assert {value: bounds.judge(value) for value in verdicts} == verdicts


def test_what_must_be_nothing_has_a_bound():
    unbounded = [e.pattern for e in catalog.entries() if e.healthy == "0" and e.bounds is None]
    assert unbounded == ["alerts/{rule}"]  # judged from its first point to its last


def test_similarity_of_images_and_of_predictions_has_no_limit_of_tokens():
    for tag in ("pooled_", "context_pooled_", "prediction0_", "prediction12_pooled_"):
        assert catalog.find(f"collapse/{tag}mean_similarity").limits is None
    assert catalog.find("collapse/context_mean_similarity").limits is not None
