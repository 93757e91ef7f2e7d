"""Start training on several processes of this machine, as torchrun does, without its traceback at Ctrl-C.

python launch/torchrun.py --nproc-per-node 2 launch/train.py --config configs/default.yaml
"""

from __future__ import annotations

import logging
import sys


class _WithoutSignals(logging.Filter):
    """Leave out what torch's launcher says of the signals that it passes on."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is not about a signal."""
        return not any(text in str(record.msg) for text in ("death signal", "closing signal"))


def main() -> int:
    """Run torch's launcher; 128 and the signal's number where the job was told to stop."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).addFilter(_WithoutSignals())
    arguments = run.parse_args(sys.argv[1:])  # type: ignore[no-untyped-call]
    try:
        run.run(arguments)  # type: ignore[no-untyped-call]
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        return max(failure.exitcode for failure in failed.failures.values()) or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
