"""Run launch/benchmark.py gpu in what is left of the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_check.section import Section, last_lines, python, run

_MARGIN = 0.85  # of the limit, that the benchmark aims at: what it has begun it ends


def check(root: Path, out: Path, limit: float, rehearsal: bool) -> Section:
    """Return the benchmark's numbers; those of the parts that were done where time ran out."""
    results, log = out / "gpu.json", out / "benchmark.log"
    results.unlink(missing_ok=True)
    command = python(str(root / "launch/benchmark.py"), "gpu", "--out", str(out))
    command += ["--cpu", "--seconds", "1"] if rehearsal else ["--seconds", f"{_MARGIN * limit:.0f}"]
    ended = run(command, limit, str(log), {})
    data: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if ended.code is None:
        done = [name for name in ("gradients", "covariances", "training") if data.get(name)]
        return Section("benchmark", "failed", ended.seconds, f"out of time after {done}; see {log}", data)
    if ended.code != 0:
        return Section("benchmark", "failed", ended.seconds, f"{last_lines(ended.output)}; see {log}", data)
    detail = "; ".join(
        f"{job['job']} {job['default cadences']:+.2f} % at default cadences" for job in data["training"]
    )
    return Section("benchmark", "passed", ended.seconds, detail, data)
