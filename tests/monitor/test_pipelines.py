"""A monitor over pipeline stages, experts and parts of sequences writes what it writes of one process."""

from __future__ import annotations

import pytest

from tests.helpers.pipelines import BATCH, train_alone, train_in_stages, train_undeclared

STEPS, MAX_NORM = 4, 0.05
SAME = (
    "loss/total",
    "gradient/global_norm_before_clip",
    "gradient/global_norm_after_clip",
    "gradients/global_norm",
    "gradients/layers_std",
    "gradients/ratio_1",
    "gradients/ratio_3",
    "update/group0_ratio",
    "update/group0_exp_avg_norm",
    "weights/group0_norm",
    "learning_rate/avg_param_update",
    "collapse/effective_rank",
    "collapse/mean_similarity",
    "collapse/num_samples",
    "performance/total_samples",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(str(tmp_path_factory.mktemp("alone")), STEPS, MAX_NORM)


@pytest.mark.parametrize("kind", ["gpipe", "1f1b", "interleaved", "fsdp"])
def test_stages_write_the_numbers_of_one_process(gloo, tmp_path, alone, kind: str):
    results = gloo(4).run(train_in_stages, kind, str(tmp_path), STEPS, MAX_NORM)
    # The two parts of a rank lie in a list: their names are not those of the whole model.
    named = ("gradients/layers", "gradients/ratio") if kind == "interleaved" else ()
    tags = [tag for tag in SAME if not tag.startswith(named or "-")]
    for history in results:
        for step, (found, expected) in enumerate(zip(history, alone, strict=True)):
            for tag in tags:
                assert found[tag] == pytest.approx(expected[tag], rel=1e-5), (tag, step)
    assert results[0][-1]["performance/total_samples"] == STEPS * BATCH


@pytest.mark.parametrize("clips", [True, False])
def test_stages_that_are_not_declared_are_an_error_that_shows_the_declaration(gloo, tmp_path, clips: bool):
    for text in gloo(4).run(train_undeclared, str(tmp_path), clips):
        assert 'layout = ParallelLayout(mesh, pipeline="pp")' in text
        assert '[[0, 1], [2, 3]], mesh_dim_names=("pp", "dp")' in text
