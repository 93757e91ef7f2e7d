"""Real short runs: the ill ones are called ill early, by the right rule; the healthy one is left in peace."""

import re

import pytest

from hjepa_dist_metrics import ProcessContext, catalog
from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.hjepa.workload import HJEPAWorkload
from hjepa_dist_metrics.reference.trainer import Trainer
from hjepa_dist_metrics.resources import config_path
from hjepa_dist_metrics.sinks import read_jsonl

QUICK = ["--training.probe_every_epochs", "0", "--logging.tensorboard.enabled", "false"]
EVERY = ["scalars", "representations", "histograms", "figures", "system"]


def run(tmp_path, name, *options):
    arguments = ["--config", str(config_path(f"{name}.yaml")), "--logging.log_dir", str(tmp_path), *options]
    config = parse([*arguments, *QUICK])
    context = ProcessContext.current()
    workload = HJEPAWorkload(config.model, config.data, config.training, context)
    return Trainer(workload, config.training, config.logging, context).run()


@pytest.mark.parametrize(
    ("name", "rule", "tag"),
    [
        ("collapse_demo", "point_collapse", r"collapse/(context_)?mean_similarity"),
        ("collapse_no_stop_gradient", "point_collapse", r"collapse/(context_)?mean_similarity"),
        ("frozen_teacher", "frozen_teacher", "ema/weight_move"),
        ("repeated_masks", "repeated_masks", "masking/repeated_batches"),
    ],
)
def test_an_ill_run_is_stopped_early_by_its_finding(tmp_path, name, rule, tag):
    outcome = run(tmp_path, name, "--logging.alerts.stop_on", f"[{rule}]")
    assert len(outcome.alerts) == 1
    assert re.match(rf"step \d+: {rule}: {tag} = ", outcome.alerts[0])
    assert outcome.stopped_by == rule
    assert outcome.steps <= 65  # of 200; no fall is judged in the first 50
    assert outcome.health.findings[0].name == rule
    # the loss itself looks well
    assert outcome.latest["loss/total"] < 0.9 * outcome.first["loss/total"]


def test_a_healthy_run_fires_nothing_while_it_leaves_a_bad_start(tmp_path):
    often = ("--logging.log_frequency", "10", "--logging.cadence.representations", "50")
    outcome = run(tmp_path, "default", "--training.max_steps", "60", *often)
    assert outcome.alerts == []
    assert str(outcome.health) == "healthy"
    assert outcome.first["collapse/mean_similarity"] > 0.8
    assert outcome.latest["collapse/mean_similarity"] < 0.65


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every tag of a run that logs everything at every step."""
    tmp_path = tmp_path_factory.mktemp("tags")
    cadences = [option for family in EVERY for option in (f"--logging.cadence.{family}", "1")]
    run(tmp_path, "default", "--training.max_steps", "3", *cadences)
    lines = read_jsonl(tmp_path / "metrics" / "hjepa_default.jsonl")
    return {tag for line in lines for tag in line} - {"step", "wall_time"}


def test_every_tag_that_a_run_writes_is_in_the_catalog(written):
    assert sorted(tag for tag in written if catalog.find(tag) is None) == []


# Of other workloads, of loops with views, of ill runs, and of levels that are no means of the finest.
ELSEWHERE = (
    "loss/train/",
    "loss/val/",
    "loss/first_nonfinite_level",
    "stability/first_nonfinite_step",
    "collapse/views_",
    "hierarchy/level{i}_cka",
)


@pytest.mark.parametrize(
    "group", ["loss/", "ema/", "masking/", "hierarchy/", "prediction/", "collapse/", "stability/", "train"]
)
def test_every_number_of_the_catalog_is_written_by_a_run(written, group):
    found = {catalog.find(tag).pattern for tag in written}
    known = {e.pattern for e in catalog.entries() if e.pattern.startswith(group) and e.kind == "scalar"}
    elsewhere = {pattern for pattern in known if pattern.startswith(ELSEWHERE)}
    assert known - found == elsewhere
