"""Start training on several processes of this machine, as torchrun does, without its traceback at Ctrl-C.

python launch/torchrun.py --nproc-per-node 2 launch/train.py --config configs/default.yaml
"""

from __future__ import annotations

import logging
import sys


def main() -> int:
    """Run torch's launcher; 128 and the signal's number where the job was told to stop."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    quiet = logging.Filter()
    quiet.filter = lambda record: (
        "death signal" not in str(record.msg) and "closing signal" not in str(record.msg)
    )  # type: ignore[method-assign]
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).addFilter(quiet)
    arguments = run.parse_args(sys.argv[1:])
    try:
        run.run(arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        return max(failure.exitcode for failure in failed.failures.values()) or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
