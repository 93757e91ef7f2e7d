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


def test_a_collapse_that_predictions_show_lasts_until_they_part_again():
    def numbers(alike, match):
        return {"collapse/prediction0_mean_similarity": alike, "prediction/level0_cosine_sim_mean": match}

    healthy, collapsed = numbers(0.9, 0.6), numbers(0.999, 0.999)
    assert after((healthy, 20), (collapsed, 8)) == {"point_collapse"}
    assert after((healthy, 20), (collapsed, 80)) == {"point_collapse"}
    assert after((healthy, 20), (collapsed, 80), (healthy, 20)) == set()


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


def moving(i, still=0.0):
    return {
        "update/body_norm": 1e-3,
        "update/head_norm": still,
        "update/head_exp_avg_norm": 0.0,
        "learning_rate/param_group_0": 0.1,
        "learning_rate/param_group_1": 0.1,
    }


def test_a_group_that_never_moves():
    assert after((moving, 20)) == {"unmoved_parameters"}
    assert after((moving, 8)) == set()  # too early to tell
    assert after((lambda i: moving(i, 1e-3), 1), (moving, 19)) == set()  # it has moved
    assert after((moving, 6), (lambda i: moving(i, 1e-3), 1), (moving, 13)) == set()  # after its warm-up
    assert (
        after((lambda i: moving(i) | {"update/body_norm": 0.0}, 20)) == set()
    )  # nothing moves: another finding
    assert after((lambda i: moving(i) | {"learning_rate/param_group_1": 0.0}, 20)) == set()  # on purpose
    assert after((lambda i: {"update/head_exp_avg_norm": 0.0, "update/body_norm": 1.0}, 20)) == set()


def probed(accuracy, loss, rows=3000.0):
    def numbers(i):
        return {"loss/total": loss(i), "probe/x_linear_top1": accuracy(i), "probe/x_linear_rows": rows}

    return numbers


def falling(i):
    return 2.0 * 0.97**i


def late_fall(i):
    return min(0.3 + 0.02 * i, 0.6) if i < 25 else max(0.6 - 0.05 * (i - 25), 0.2)


def test_a_probe_that_falls_while_the_loss_goes_on_falling():
    assert after((probed(late_fall, falling), 36)) == {"forgetting"}
    rises = probed(lambda i: min(0.3 + 0.02 * i, 0.6), falling)
    assert after((rises, 36)) == set()
    noisy = probed(lambda i: 0.5 + 0.08 * math.sin(2.1 * i), falling, rows=100.0)
    assert after((noisy, 36)) == set()
    few = probed(late_fall, falling, rows=30.0)  # ten rows are held out
    assert after((few, 32)) == set()
    assert after((probed(lambda i: 0.6 - 0.05 * i, falling), 6)) == set()  # random features are left
    comes_back = probed(lambda i: late_fall(i) if i < 30 else 0.2 + 0.05 * (i - 30), falling)
    assert "forgetting" not in after((comes_back, 44))


def test_a_run_that_diverges_is_not_forgetting():
    worse = probed(late_fall, lambda i: falling(i) if i < 25 else falling(25) * 1.1 ** (i - 25))
    assert "forgetting" not in after((worse, 36))
