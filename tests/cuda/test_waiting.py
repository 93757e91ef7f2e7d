"""No step of the monitor waits for the device, on cadence or off it; its numbers are those of the host."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import GradientClipping, GradientFlow, GradientNoise, TrainingMonitor, Updates
from hjepa_dist_metrics.sinks import read_jsonl
from tests.cuda.device import compiled, device, waiting_is_an_error
from tests.cuda.loops import Student, train

NEVER = {"log_frequency": 100_000}
ALWAYS = {
    "cadence": {**dict.fromkeys(("scalars", "representations", "histograms"), 1), "figures": 4},
    "gradients": {"noise": True, "per_parameter": True},
}
WARMUP, STEPS = 3, 6


def settings(tmp_path, **more):
    return {"experiment_name": "run", "log_dir": str(tmp_path), **more}


def monitored(tmp_path, where, *, micro=1, compiling=False, strict=True, **more):
    """Train a few steps under a monitor, the first ones unwatched: they make what is made once."""
    model = Student().to(where)
    forward: nn.Module = compiled(model) if compiling else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with TrainingMonitor(model, optimizer, settings(tmp_path, **more)) as monitor:
        train(monitor, model, forward, optimizer, range(WARMUP), micro=micro)
        train(monitor, model, forward, optimizer, range(WARMUP, STEPS), micro=micro, strict=strict)
        assert monitor.failures == []
    return monitor


@pytest.mark.parametrize("cadence", ["off cadence", "on cadence"])
@pytest.mark.parametrize("loop", ["plain", "compiled", "accumulated"])
def test_a_step_does_not_wait_for_the_device(tmp_path, loop, cadence):
    shape = {"micro": 2 if loop == "accumulated" else 1, "compiling": loop == "compiled"}
    monitor = monitored(tmp_path, device(), **shape, **(NEVER if cadence == "off cadence" else ALWAYS))
    assert monitor.failures == []
    logged = set(numbers(tmp_path)["loss/total"])
    assert logged == ({0, STEPS - 1} if cadence == "off cadence" else set(range(STEPS)))


COMPARED = ("loss/", "gradient/", "gradients/", "collapse/", "ema/", "masking/", "learning_rate/")


def numbers(tmp_path):
    """Return what was written under tags that do not depend on clocks and machines, by tag and step."""
    found: dict[str, dict[int, float]] = {}
    for line in read_jsonl(tmp_path / "metrics" / "run.jsonl"):
        for tag, value in line.items():
            if isinstance(value, float) and tag.startswith(COMPARED):
                found.setdefault(tag, {})[line["step"]] = value
    return found


# bf16 autocast rounds differently on the two devices; a wrong reduction or a race is off by far more.
CLOSE = (
    "loss/total",
    "gradient/global_norm_before_clip",
    "collapse/context_rms_norm",
    "ema/momentum_current",
)


def test_the_numbers_are_those_of_the_host(tmp_path):
    monitored(tmp_path / "device", device(), strict=False, **ALWAYS)
    monitored(tmp_path / "host", torch.device("cpu"), strict=False, **ALWAYS)
    found, expected = numbers(tmp_path / "device"), numbers(tmp_path / "host")
    assert len(expected) > 50
    assert set(expected) <= set(found)
    for tag in CLOSE:
        assert found[tag] == pytest.approx(expected[tag], rel=0.05), tag
    finite = [tag for tag, values in expected.items() if all(map(math.isfinite, values.values()))]
    assert [tag for tag in finite if not all(map(math.isfinite, found[tag].values()))] == []


def test_reading_gradients_does_not_wait_for_the_device():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).to(device())
    model(torch.randn(4, 64, device=device())).square().sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    flow, clipping, noise = GradientFlow(model), GradientClipping(model), GradientNoise(model)
    updates = Updates(model, optimizer)

    def read():
        flow.update()
        clipping.clip_(math.inf)
        noise.small(2, 2)
        noise.large(4)
        with updates.around():
            optimizer.step()

    read()
    with waiting_is_an_error():
        read()
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    assert math.isclose(float(flow.compute()["gradients/global_norm"]), math.sqrt(squares), rel_tol=1e-5)
