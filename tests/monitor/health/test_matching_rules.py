import math

import pytest

from hjepa_dist_metrics.monitor.health.matching_rules import misaligned_rule, no_diagonal_rule

PAIR, OTHER = "alignment/text_vs_image/", "alignment/left_vs_right/"


def numbers(diagonal=0.6, mean=0.1, contrast=2.0, prefix=PAIR):
    return {
        f"{prefix}diagonal_similarity": diagonal,
        f"{prefix}mean_similarity": mean,
        f"{prefix}diagonal_contrast": contrast,
        "alignment/sample_pairs": 100.0,
        "loss/total": 1.0,
    }


def test_no_modalities_say_nothing():
    for rule in (misaligned_rule, no_diagonal_rule):
        assert rule({"loss/total": 1.0}) is None
        assert rule(numbers()) == []


@pytest.mark.parametrize(("diagonal", "bad"), [(0.11, False), (0.1, True), (0.05, True), (math.nan, True)])
def test_right_pairs_must_be_more_alike_than_all_pairs(diagonal, bad):
    findings = misaligned_rule({**numbers(), **numbers(diagonal, prefix=OTHER)})
    assert [finding.tag for finding in findings] == [OTHER + "diagonal_similarity"] * bad
    assert not bad or "the 0.1 of all pairs" in findings[0].reason


@pytest.mark.parametrize(("contrast", "bad"), [(0.31, False), (0.3, True), (-1.0, True), (math.nan, True)])
def test_a_diagonal_must_be_more_than_chance(contrast, bad):
    """100 pairs: 3 / sqrt(100) = 0.3."""
    findings = no_diagonal_rule({**numbers(), **numbers(contrast=contrast, prefix=OTHER)})
    assert [finding.tag for finding in findings] == [OTHER + "diagonal_contrast"] * bad
    assert not bad or "0.3" in findings[0].reason
