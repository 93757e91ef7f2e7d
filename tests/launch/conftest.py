"""Finished jobs that several tests look at."""

import json
import os

import pytest
from filelock import FileLock

from tests.helpers.jobs import TORCHRUN, Job, train


class Jobs:
    """Run the tiny job once for each number of ranks, also where pytest-xdist's workers share the tests."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        base = folders.getbasetemp()
        self.folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def __call__(self, ranks: int) -> Job:
        place = self.folder / f"ranks{ranks}"
        record = place / "job.json"
        with FileLock(f"{place}.lock"):
            if not record.exists():
                place.mkdir(exist_ok=True)
                launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks))
                job = train(launcher, place / "logs", {"logging.detail": "full"})
                record.write_text(json.dumps([job.returncode, job.stdout, job.stderr]))
        return Job(*json.loads(record.read_text()), place / "logs")


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Give the tiny run's job at a number of ranks."""
    return Jobs(tmp_path_factory)
