"""One seed and one global batch give one run, whatever the number of ranks and the launcher."""

import re
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.jobs import ROOT, STEPS, Job, train

INVARIANT = re.compile(
    r"loss/(total|h\d+)|collapse/(effective_rank|mean_similarity)|gradient/global_norm_before_clip"
)
# Rounding decides whether a gradient is exactly zero.
COUNTS_OF_EXACT_ZEROS = "zero_fraction"


def assert_same_run(job: Job, reference: Job, rel: float) -> None:
    """Require that every number which does not come from a clock is the same."""
    mine, theirs = job.untimed, reference.untimed
    assert sorted(mine) == sorted(theirs)
    for step, values in theirs.items():
        assert sorted(mine[step]) == sorted(values), f"step {step}"
        for tag in values.keys() - {tag for tag in values if tag.endswith(COUNTS_OF_EXACT_ZEROS)}:
            expected = pytest.approx(values[tag], rel=rel, abs=1e-7, nan_ok=True)
            assert mine[step][tag] == expected, f"{tag} at step {step}"


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_first_steps_agree_with_a_single_process(ranks: int, jobs):
    one, many = jobs(1).metrics, jobs(ranks).metrics
    for step in range(STEPS):
        tags = [tag for tag in one[step] if INVARIANT.fullmatch(tag)]
        assert len(tags) == 7, tags
        for tag in tags:
            assert many[step][tag] == pytest.approx(one[step][tag], rel=1e-3), f"{tag} at step {step}"


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_other_number_agrees_too(ranks: int, jobs):
    assert_same_run(jobs(ranks), jobs(1), rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_job_says_how_many_ranks_it_has(ranks: int, jobs):
    assert f"training on {ranks} rank{'s' if ranks > 1 else ''}" in jobs(ranks).stderr


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_one_process_writes_and_tensorboard_reads_every_tag_back(ranks: int, jobs):
    job = jobs(ranks)
    (event_file,) = job.event_files
    events = EventAccumulator(str(event_file.parent), size_guidance={"scalars": 0})
    events.Reload()
    written = {(tag, step): value for step, values in job.metrics.items() for tag, value in values.items()}
    read = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert set(written) <= set(read)
    for key, value in written.items():
        assert read[key] == pytest.approx(value, rel=1e-6, nan_ok=True), key


def test_accelerate_launch_starts_the_same_run_on_two_ranks(jobs, tmp_path: Path):
    config = str(ROOT / "configs/accelerate/cpu.yaml")
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", config)
    job = train(launcher, tmp_path / "logs")
    assert "training on 2 ranks" in job.stderr
    assert len(job.event_files) == 1
    assert_same_run(job, jobs(2), rel=1e-6)
