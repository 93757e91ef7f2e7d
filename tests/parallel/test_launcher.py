"""What the environment tells of the launcher."""

import logging

import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.parallel.launcher import lost_processes

# As `accelerate launch --cpu --num_processes 2` leaves it; see tests/integrations/accelerate/test_loop.py.
LOST = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize("rank", [{"RANK": "0"}, {"OMPI_COMM_WORLD_RANK": "1"}, {"PMI_RANK": "0"}])
def test_a_process_with_a_rank_is_not_alone(rank):
    assert lost_processes(LOST | rank) is None


def test_other_launchers_and_one_process_are_what_was_asked_for():
    assert lost_processes({}) is None
    assert lost_processes({"MASTER_ADDR": "127.0.0.1"}) is None
    assert lost_processes({"ACCELERATE_MIXED_PRECISION": "no"}) is None


def test_a_lost_process_is_told_at_the_start(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in LOST.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING), MetricsLogger("run", tmp_path):
        pass
    assert "asked for several processes and started one" in caplog.text
    assert "torchrun" in caplog.text
