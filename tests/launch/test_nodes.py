"""Two machines, each with an agent of its own, are one job; here both are this one."""

from pathlib import Path

from tests.helpers.jobs import TORCHRUN, TRAIN, arguments, finish_all, start, told
from tests.helpers.processes import free_port
from tests.launch.test_invariance import assert_same_run


def test_two_agents_train_one_job_with_one_writer(jobs, tmp_path: Path):
    rendezvous = (
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
        "--rdzv-id",
        "test",
    )
    launcher = (*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "2", *rendezvous)
    log_dir = tmp_path / "logs"
    command = [*launcher, TRAIN, *arguments({"logging.log_dir": log_dir})]
    agents = [start(command, tmp_path) for _ in range(2)]
    ended = finish_all(agents, log_dir)
    assert [job.returncode for job in ended] == [0, 0], told(ended)
    # The main process is on one of the two machines only.
    assert sorted("training on 4 ranks" in job.stderr for job in ended) == [False, True]
    assert len(ended[0].event_files) == 1
    assert_same_run(ended[0], jobs(1), rel=1e-3)
