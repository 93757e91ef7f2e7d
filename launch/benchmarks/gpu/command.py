"""The command: parts in turn, within a budget of seconds, each written as soon as it is measured."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._ranks import positive, write
from benchmarks.gpu import covariances, gradients, training
from benchmarks.gpu.jobs import HJEPAJob, Job, LanguageJob
from benchmarks.gpu.report import report
from hjepa_dist_metrics import ConfigError

_CONTEXT = """\
An H-JEPA with a ViT-B/16 and a language model of 110 M parameters train in bf16 with compiled blocks, in
turns of 100 steps: without a monitor, at default cadences, with representations every 50 steps, and with all.
Clipping and gradient statistics run beside torch's fused ones and one read of the memory; covariances and
spectra at D = 768 and 1,408. --cpu rehearses all of it on the host at tiny sizes: its times say nothing.
"""
_LARGE = 40 << 30  # bytes of a card that holds larger batches


def run(argv: Sequence[str]) -> int:
    """Measure, print the table, write gpu.md and gpu.json."""
    options = _parser().parse_args(argv)
    device = _device(options.cpu)
    ended = time.monotonic() + options.seconds
    found: dict[str, Any] = {"device": _name(device), "torch": torch.__version__, "rehearsal": options.cpu}
    found["training"] = []
    for add in _parts(device, options.cpu, ended, found):
        add()
        write(options.out, "gpu.json", json.dumps(found, indent=1))
        write(options.out, "gpu.md", report(found))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(report(found))
    failures = [part["failures"] for part in found["training"] if part["failures"]]
    if failures:
        print(f"outputs of the monitors failed: {failures}")
    return 1 if failures else 0


def _device(cpu: bool) -> torch.device:
    if cpu:
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("no GPU: torch.cuda.is_available() is False; --cpu rehearses this on the host")
    return torch.device("cuda", 0)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "The host: a rehearsal, whose times say nothing"


def _parts(device: torch.device, tiny: bool, ended: float, found: dict[str, Any]) -> list[Callable[[], None]]:
    """Return what adds to `found`, part by part; what is left of the time is shared by the two jobs."""
    rounds = 2 if tiny else 20
    widths, rows = ([8, 12], 2 * 196) if tiny else ([768, 1408], 64 * 196)
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE
    images, texts = (4, 4) if tiny else (64, 16) if large else (16, 4)

    def read_gradients() -> None:
        model = HJEPAJob(device, 2, tiny).model
        found["gradients"] = gradients.measure(model, device, rounds, 1 << (20 if tiny else 30))

    def fold_features_in() -> None:
        found["covariances"] = covariances.measure(device, widths, rows, rounds)

    def train(make: Callable[[], Job], jobs_left: int) -> None:
        cadence = training.Cadence(4, 2) if tiny else training.Cadence(100, 50)
        share = max(0.0, ended - time.monotonic()) / jobs_left
        with tempfile.TemporaryDirectory() as folder:
            found["training"].append(training.measure(make, device, cadence, share, Path(folder)))

    return [
        read_gradients,
        fold_features_in,
        lambda: train(lambda: HJEPAJob(device, images, tiny), 2),
        lambda: train(lambda: LanguageJob(device, texts, tiny), 1),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py gpu", description=_CONTEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="rehearse on the host at tiny sizes")
    parser.add_argument("--seconds", type=positive, default=240.0, help="time for all parts (default 240)")
    parser.add_argument("--out", default="results/benchmarks", help="folder of gpu.md and gpu.json")
    return parser
