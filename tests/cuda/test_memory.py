"""What the monitor allocates on the device does not grow."""

from __future__ import annotations

import torch

from hjepa_dist_metrics import TrainingMonitor
from tests.cuda.device import allocated, device, rehearsed
from tests.cuda.loops import Student, train

STEPS = 50 if rehearsed() else 500
MARKS = 5
CADENCE = {"scalars": 5, "representations": 10, "histograms": 10, "figures": 0}


def test_memory_is_steady_over_500_steps(tmp_path, record_property):
    where = device()
    model = Student().to(where)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    settings = {
        "experiment_name": "run",
        "log_dir": str(tmp_path),
        "cadence": CADENCE,
        "gradients": {"noise": True},
    }
    used = []
    with TrainingMonitor(model, optimizer, settings) as monitor:
        for start in range(0, STEPS, STEPS // MARKS):
            train(monitor, model, model, optimizer, range(start, start + STEPS // MARKS))
            monitor.flush()
            used.append(allocated())
    # The loop's own last tensors are of one size at each mark; 64 KiB are what the allocator rounds up to.
    assert max(used[1:]) - used[1] <= 1 << 16
    del monitor
    left = allocated()
    record_property(f"bytes on the device at {MARKS} marks over {STEPS} steps", str(used))
    record_property("bytes of them that the monitor held", str(used[-1] - left))
    assert used[-1] - left < 64 << 20
