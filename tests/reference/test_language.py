"""A language model over pipeline stages and with experts over ranks logs what one process logs."""

from __future__ import annotations

import sys

import pytest
import torch

from hjepa_dist_metrics import ConfigError, ProcessContext
from hjepa_dist_metrics.reference.language.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.language.sums import ALPHABET, sums
from hjepa_dist_metrics.reference.language.workload import LanguageWorkload
from hjepa_dist_metrics.reference.training import TrainingConfig
from tests.helpers.jobs import ROOT, TORCHRUN, TRAIN, finish_all, start, told

STEPS = 20
LAUNCHERS = {
    "language": (sys.executable,),
    "pipeline": (*TORCHRUN, "--nproc-per-node", "4"),
    "experts": (*TORCHRUN, "--nproc-per-node", "4"),
}
# What rounding moves: the smallest element, and whether one is exactly zero.
ROUNDED = ("_min", "_zero_fraction", "/convergence_rate", "/loss_trend_slope")
OF_MACHINE = ("performance/", "system/", "sync/", "memory/")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    processes = []
    for name, launcher in LAUNCHERS.items():
        options = {"training.max_steps": STEPS, "logging.log_frequency": 1, "logging.log_dir": folder / name}
        options |= {"logging.cadence.representations": 1, "logging.tensorboard.enabled": "false"}
        given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        command = [*launcher, TRAIN, "--config", str(ROOT / f"configs/{name}.yaml"), *given]
        processes.append(start(command, folder))
    ended = finish_all(processes, folder, timeout=400)
    assert not any(job.returncode for job in ended), told(ended)
    return {name: type(ended[0])(0, "", "", folder / name).metrics for name in LAUNCHERS}


@pytest.mark.parametrize("name", ["pipeline", "experts"])
def test_twenty_steps_of_a_job_log_the_numbers_of_one_process(jobs, name: str):
    alone, found = jobs["language"], jobs[name]
    assert sorted(found) == sorted(alone) == list(range(STEPS))
    compared = set()
    for step, values in alone.items():
        for tag, expected in values.items():
            if not tag.startswith(OF_MACHINE) and not tag.endswith(ROUNDED):
                assert found[step][tag] == pytest.approx(expected, rel=1e-4, abs=1e-9), (step, tag)
                compared.add(tag)
    assert {
        "loss/total",
        "gradient/global_norm_before_clip",
        "gradients/layers_std",
        "update/group0_ratio",
        "collapse/effective_rank",
        "collapse/mean_similarity",
        "experts/overload_factor_max",
        "experts/dead_experts",
        "experts/routing_entropy",
    } <= compared
    assert found[STEPS - 1]["performance/total_samples"] == 32 * STEPS
    assert alone[STEPS - 1]["loss/total"] < alone[0]["loss/total"]


def test_sums_are_right_and_the_same_for_every_rank():
    indices = torch.arange(50)
    rows = sums(indices, seed=3)
    for row in rows.tolist():
        text = "".join(ALPHABET[number] for number in row)
        left, right = text.removesuffix(";").split("=")
        assert sum(map(int, left.split("+"))) == int(right)
    assert torch.equal(sums(indices[10:20], seed=3), rows[10:20])


@pytest.mark.parametrize(
    ("model", "data", "training", "message"),
    [
        ({"stages": 2}, {}, {}, "multiple of 2 ranks"),
        ({"expert_ranks": 2}, {}, {}, "multiple of 2 ranks"),
        ({}, {}, {"accumulation_steps": 2}, "accumulation_steps"),
    ],
)
def test_what_cannot_be_run_is_an_error(model, data, training, message: str):
    with pytest.raises(ConfigError, match=message):
        LanguageWorkload(
            ModelConfig(**model), DataConfig(**data), TrainingConfig(**training), ProcessContext.current()
        )


def test_bad_sizes_are_errors():
    with pytest.raises(ConfigError, match=r"model\.stages"):
        ModelConfig(layers=4, stages=3)
    with pytest.raises(ConfigError, match=r"model\.expert_ranks"):
        ModelConfig(experts=4, stages=2, expert_ranks=2)
