"""Findings that one or two numbers tell: what begins them, and what is rightly no finding."""

import math

import pytest

from hjepa_dist_metrics.monitor.health.judge import Judge

TEACHER = {"ema/momentum_current": 0.99, "ema/weight_distance": 0.02, "ema/weight_move": 2e-4}
UPDATES = {"update/group0_ratio": 1e-3}


def after(*logs, every=10):
    """Return the findings after logs, each a mapping, or a function of the log's number, and how often."""
    judge, i = Judge(), 0
    for numbers, times in logs:
        for _ in range(times):
            judge.update(every * i, numbers(i) if callable(numbers) else numbers)
            i += 1
    return judge.firing()


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        (TEACHER, set()),
        (TEACHER | {"ema/weight_move": 0.0}, {"frozen_teacher"}),
        (TEACHER | {"ema/weight_move": 0.0, "ema/momentum_current": 1.0}, set()),  # frozen on purpose
        ({"ema/weight_move": 0.0, "ema/weight_distance": 0.02}, {"frozen_teacher"}),  # no momentum is passed
        ({"ema/weight_move": 1e-4, "ema/weight_distance": 0.02}, set()),
        (TEACHER | {"ema/weight_distance": 0.0}, {"teacher_is_student"}),
        ({"parameters/teacher_optimized": 3.0}, {"teacher_gets_gradients"}),
        ({"parameters/unoptimized": 2.0}, {"unoptimized_parameters"}),
        ({"masking/context_target_overlap": 0.2}, {"mask_leak"}),
        ({"masking/mask_ratio": 0.0}, {"degenerate_masks"}),
        ({"masking/mask_ratio": 1.0}, {"degenerate_masks"}),
        ({"masking/mask_ratio": 0.75, "masking/context_target_overlap": 0.0}, set()),
        ({"masking/repeated_batches": 0.8}, {"repeated_masks"}),
        ({"masking/collision_probability": 0.9}, {"repeated_masks"}),
        ({"data/repeated_batches": 0.9}, {"repeated_batches"}),
        ({"data/shared_batches": 1.0}, {"shared_shards"}),
        ({"data/constant_batches": 1.0}, {"constant_inputs"}),
        ({"data/repeated_batches": 0.1, "data/shared_batches": 0.0, "data/constant_batches": 0.0}, set()),
        (
            {"parameters/replica_disagreement": 1.0, "parameters/replica_disagreement_rank": 1.0},
            {"replica_drift"},
        ),
        ({"parameters/buffer_disagreement": 1.0}, {"stale_buffers"}),
        ({"performance/slow_ranks": 1.0, "performance/slowest_rank": 3.0}, {"straggler"}),
        ({"performance/slow_ranks": 0.0, "performance/slowest_rank": 3.0}, set()),
        ({"loss/contribution_h0": 99.0, "loss/contribution_h1": 1.0}, {"level_imbalance"}),
        ({"loss/contribution_h0": 90.0, "loss/contribution_h1": 10.0}, set()),
        ({"gradient/clipping_ratio": 0.01}, {"clipping_every_step"}),
        ({"gradient/clipping_ratio": 0.5}, set()),
        ({"update/group0_ratio": 1e-8, "loss/total": 2.3}, {"learning_rate_too_low"}),
        ({"update/group0_ratio": 1e-3, "loss/total": 2.3}, set()),
        ({"collapse/nonfinite": 4.0}, {"nonfinite"}),
        ({"loss/nonfinite": 0.0, "gradients/nonfinite": 0.0}, set()),
        (
            {"alignment/a_vs_b/diagonal_similarity": 0.1, "alignment/a_vs_b/mean_similarity": 0.2},
            {"misaligned_modalities"},
        ),
        ({"alignment/a_vs_b/diagonal_contrast": 0.1, "alignment/sample_pairs": 100.0}, {"no_diagonal"}),
        ({"alignment/a_vs_b/diagonal_contrast": 0.5, "alignment/sample_pairs": 100.0}, set()),
        ({"Train/Gradients/total_norm": 1e-4}, {"gradient_range"}),
        ({"Train/Gradients/a_to_b_ratio": 20.0}, {"head_imbalance"}),
        ({"Eval/Gap/psnr_gap": 6.0}, {"generalization_gap"}),
    ],
)
def test_numbers_that_stay(numbers, found):
    assert after((numbers, 8)) == found


def test_a_straggler_is_one_rank_at_one_log_after_the_other():
    def turns(i):
        return {"performance/slow_ranks": 1.0, "performance/slowest_rank": float(i % 2)}

    assert after((turns, 10)) == set()


def test_norms_that_meet_a_ceiling_were_clipped_before():
    def clipped(i):
        return {"gradients/global_norm": min(1.0, 0.95 + 0.05 * (i % 4)) * (1 - 1e-6)}

    def free(i):
        return {"gradients/global_norm": 1.0 + 0.01 * (i % 7) / (i + 1)}

    assert after((clipped, 10)) == {"clipped_unseen"}
    assert after((free, 10)) == set()
    assert after(({"gradients/global_norm": 0.0}, 10)) == set()


def test_an_early_end_is_more_than_uneven_shards():
    assert after(({"loss/total": 1.0}, 20), ({"data/steps_missing": 2.0}, 1)) == set()
    assert after(({"loss/total": 1.0}, 20), ({"data/steps_missing": 30.0}, 1)) == {"early_end"}


def test_skipped_steps_are_counted_over_the_whole_run():
    assert after((lambda i: {"gradient/skipped_steps": 10.0 * i}, 6)) == {"skipped_steps"}
    assert after((lambda i: {"gradient/skipped_steps": min(i, 3.0)}, 8)) == set()


def test_a_scaler_that_seeks_its_scale_is_no_nonfinite_run():
    assert after((lambda i: {"gradient/nonfinite_steps": 2.0}, 5)) == set()
    assert after((lambda i: {"gradient/nonfinite_steps": 1.0 + i}, 5)) == {"nonfinite"}


def test_overfitting_is_a_validation_loss_that_rises_while_training_falls():
    def numbers(i, best):
        return {"loss/total": 2.0 - 0.05 * i, "val/loss": 1.0 + 0.1 * abs(i - best)}

    assert after((lambda i: numbers(i, 10), 15)) == {"overfitting"}
    assert after((lambda i: numbers(i, 15), 15)) == set()


def test_memory_that_grows_by_the_step():
    assert after((lambda i: {"system/ram_gb": 1.0 + 0.02 * i}, 40)) == {"memory_growth"}
    assert after((lambda i: {"system/ram_gb": 1.0 + 0.3 * min(i, 5)}, 40)) == set()


def test_speed_that_decays_and_a_machine_that_got_busy():
    assert after((lambda i: {"performance/samples_per_second": 100.0 * 0.96**i}, 40)) == {"throughput_decay"}
    assert (
        after((lambda i: {"performance/samples_per_second": 100.0 if i < 20 else 40.0 + i % 3}, 40)) == set()
    )


def test_weights_that_shrink():
    assert after(
        (lambda i: UPDATES | {"weights/group0_norm": 20.0 * (1.0 if i < 15 else 0.9 ** (i - 15))}, 30)
    ) == {"weights_vanishing"}
    assert after((lambda i: UPDATES | {"weights/group0_norm": 20.0 - 0.1 * i}, 30)) == set()


def test_a_plateau_needs_weights_that_move():
    def flat(i):
        return {"loss/total": 2.3 + 0.001 * math.sin(i)}

    assert after((lambda i: flat(i) | UPDATES, 30)) == {"plateau"}
    assert after((flat, 30)) == set()


def test_a_warm_up_is_no_learning_rate_that_is_too_low():
    assert after((lambda i: {"update/group0_ratio": 1e-7 * (i + 1), "loss/total": 2.3}, 12)) == set()
