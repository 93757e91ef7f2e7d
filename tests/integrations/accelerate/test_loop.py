"""A loop as accelerate's documentation writes it: `prepare`, `accumulate`, `backward`, `clip_grad_norm_`."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.integrations.accelerate import MicroBatches, ObservedAccelerator
from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.jobs import ROOT

DIM, ACCUMULATION, MAX_NORM, LEARNING_RATE = 4, 2, 0.05, 0.5
SIZES = {0: (3, 1, 2, 2), 1: (1, 2, 4, 1)}  # of a rank's micro-batches


def micro_batches():
    generator = torch.Generator().manual_seed(1)
    return {
        rank: [torch.randn(size, DIM, generator=generator) for size in sizes] for rank, sizes in SIZES.items()
    }


def network():
    torch.manual_seed(0)
    return nn.Linear(DIM, DIM)


def loss_of(model, batch):
    return (model(batch) - batch).square().mean()


def train(log_dir, watched):
    """Train on this rank's batches and return the weights."""
    rank = torch.distributed.get_rank()
    before = dict(os.environ)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    try:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
        assert accelerator.num_processes == 2
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        model, optimizer = accelerator.prepare(model, optimizer)
        if watched:
            config = {"experiment_name": "run", "log_dir": log_dir, "log_frequency": 1, "sync_timeout": 30.0}
            with TrainingMonitor(model, optimizer, config) as monitor:
                with ObservedAccelerator(accelerator, monitor):
                    loop(accelerator, model, optimizer, micro_batches()[rank], monitor)
                assert "backward" not in vars(accelerator)
        else:
            loop(accelerator, model, optimizer, micro_batches()[rank])
        return [parameter.detach().clone() for parameter in model.parameters()]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.clear()
        os.environ.update(before)


def loop(accelerator, model, optimizer, batches, monitor=None):
    parts = MicroBatches()
    for batch in batches if monitor is None else monitor.batches(batches):
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
        parts.add(loss, samples=len(batch))
        if monitor is not None and accelerator.sync_gradients:
            monitor.step(**parts.take())


def direct():
    """Return losses and norms of the steps, computed in one loop: micro-batches and ranks weigh the same."""
    model = network().double()
    losses, norms = [], []
    for step in range(2):
        first = step * ACCUMULATION
        parts = [b.double() for own in micro_batches().values() for b in own[first : first + ACCUMULATION]]
        each = [loss_of(model, part) for part in parts]
        sizes = [len(part) for part in parts]
        losses.append(sum(n * loss.item() for n, loss in zip(sizes, each, strict=True)) / sum(sizes))
        model.zero_grad()
        (sum(each) / len(each)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LEARNING_RATE * parameter.grad
    return losses, norms


def test_numbers_are_those_of_a_direct_computation_and_the_training_is_the_same(gloo, tmp_path):
    plain = gloo(2).run(train, str(tmp_path), False)
    watched = gloo(2).run(train, str(tmp_path), True)
    for a, b in zip(plain[0], watched[0], strict=True):
        assert torch.equal(a, b)
    losses, norms = direct()
    lines = read_jsonl(tmp_path / "metrics/run.jsonl")
    steps = {line["step"]: line for line in lines if "loss/total" in line}
    assert [step["loss/total"] for step in steps.values()] == pytest.approx(losses, rel=1e-5)
    for tag in ("gradients/global_norm", "gradient/global_norm_before_clip"):
        assert [step[tag] for step in steps.values()] == pytest.approx(norms, rel=1e-5)
    after = [step["gradient/global_norm_after_clip"] for step in steps.values()]
    assert after == pytest.approx([MAX_NORM] * 2, rel=1e-3)
    assert [step["performance/total_samples"] for step in steps.values()] == [7, 16]


def test_gradients_are_unscaled_once_and_before_they_are_read(tmp_path):
    class Scaling(Accelerator):
        """An accelerator whose gradients are scaled by 8, as a GradScaler scales them under fp16."""

        def unscale_gradients(self, optimizer=None):
            calls.append("unscale")
            for parameter in model.parameters():
                parameter.grad /= 8

    calls, model = [], network()
    accelerator = Scaling(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"experiment_name": "run", "log_dir": str(tmp_path), "log_frequency": 1}
    with TrainingMonitor(model, optimizer, config) as monitor, ObservedAccelerator(accelerator, monitor):
        (8 * loss_of(model, micro_batches()[0][0])).backward()
        accelerator.clip_grad_norm_(model.parameters(), 100.0)
        monitor.step(samples=3)
    assert calls == ["unscale"]
    reference = network()
    loss_of(reference, micro_batches()[0][0]).backward()
    norm = float(nn.utils.clip_grad_norm_(reference.parameters(), 100.0))
    (line,) = [line for line in read_jsonl(tmp_path / "metrics/run.jsonl") if "gradients/global_norm" in line]
    assert line["gradients/global_norm"] == pytest.approx(norm, rel=1e-6)
    assert line["gradient/global_norm_before_clip"] == pytest.approx(norm, rel=1e-6)


def test_a_launch_on_cpus_that_starts_one_process_says_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from hjepa_dist_metrics import MetricsLogger\nMetricsLogger('run', 'logs').finish()\n")
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", script.name]
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    run = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stderr.count("asked for several processes and started one") == 1
