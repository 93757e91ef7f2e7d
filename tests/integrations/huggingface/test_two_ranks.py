"""A Trainer under torchrun, with batches of uneven size: what is written is what one loop computes."""

import pytest

from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.jobs import TORCHRUN, run, told
from tests.integrations.huggingface import tiny

WRITTEN = {
    "loss": "loss/total",
    "before": "gradient/global_norm_before_clip",
    "after": "gradient/global_norm_after_clip",
    "lr": "learning_rate/base_lr",
    "rank": "collapse/effective_rank",
}


def series(directory, tag):
    lines = read_jsonl(directory / "metrics/run.jsonl")
    return [line[tag] for line in lines if tag in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trainer")
    command = [*TORCHRUN, "--nproc-per-node", "2", tiny.__file__, str(directory)]
    job = run(command, directory / "logs", PYTHONPATH=str(tiny.ROOT))
    assert job.returncode == 0, told([job])
    return directory


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_every_number_is_that_of_the_whole_job(trained, kind):
    expected = tiny.direct(4, 2, tiny.model(), tiny.sentences())
    for name, tag in WRITTEN.items():
        assert series(trained / kind, tag) == pytest.approx(expected[name], rel=1e-4), tag
    flow = series(trained / kind, "gradients/global_norm")
    assert flow == pytest.approx(expected["before"], rel=1e-4)
    assert series(trained / kind, "performance/total_samples") == [12, 23, 35, 46]
    assert len(list((trained / kind).rglob("*tfevents*"))) == 1
