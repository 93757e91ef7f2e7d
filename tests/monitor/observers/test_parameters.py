"""Parameters that no optimizer holds, against the sets that a reader of the loop would write down."""

import copy
import itertools

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.metrics.optimization.coverage import identifiable_parameters
from hjepa_dist_metrics.sinks import read_jsonl
from tests.monitor.test_monitor import config

DIM = 4
PLAIN = {"tensorboard": {"enabled": False}, "dashboards": [], "sync": "inline"}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.context_encoder = nn.Linear(DIM, DIM)
        self.target_encoder = copy.deepcopy(self.context_encoder)
        self.head = nn.Linear(DIM, DIM)
        self.unused = nn.Linear(DIM, DIM)

    def forward(self, x):
        with torch.no_grad():
            target = self.target_encoder(x)
        return (self.head(self.context_encoder(x)) - target).square().mean()


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def train(monitor, model, optimizers, steps=1, zero=lambda model, optimizers: None, **more):
    for _ in range(steps):
        with monitor.backward():
            model(torch.ones(2, DIM)).backward()
        for optimizer in optimizers:
            optimizer.step()
        zero(model, optimizers)
        monitor.step(samples=2, losses=1.0, **more)


def published(log_dir):
    """Return what the optimizers hold, by step."""
    return {
        line["step"]: {
            tag.removeprefix("parameters/"): value["text"] if isinstance(value, dict) else value
            for tag, value in line.items()
            if tag.startswith(("parameters/unoptimized", "parameters/teacher"))
        }
        for line in read_jsonl(log_dir / "metrics" / "run.jsonl")
    }


ZERO = {
    "none": lambda model, optimizers: None,
    "optimizers": lambda model, optimizers: [optimizer.zero_grad() for optimizer in optimizers],
    "model": lambda model, optimizers: model.zero_grad(),
}


@pytest.mark.parametrize("zero", ZERO)
@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_of_no_optimizer(tmp_path, zero, compiled):
    model = Model()
    optimizers = [sgd(model.context_encoder)]
    watched = nn.Sequential()
    watched.add_module("_orig_mod", model)  # the names that torch.compile makes
    with TrainingMonitor(watched if compiled else model, optimizers, config(tmp_path, **PLAIN)) as monitor:
        train(monitor, model, optimizers, zero=ZERO[zero])
    assert published(tmp_path)[0] == {"unoptimized": 2.0, "unoptimized_name": "`head.bias`, `head.weight`"}


@pytest.mark.parametrize("split", [1, 2])
def test_several_optimizers_hold_all_that_is_trained(tmp_path, split):
    model = Model()
    parts = [model.context_encoder, model.head]
    optimizers = [sgd(*parts)] if split == 1 else [sgd(part) for part in parts]
    with TrainingMonitor(model, optimizers, config(tmp_path, **PLAIN)) as monitor:
        train(monitor, model, optimizers)
    assert published(tmp_path)[0] == {"unoptimized": 0.0}


def test_without_any_backward_all_trained_parameters_but_the_teachers_count(tmp_path):
    model = Model()
    model.unused.bias.requires_grad_(False)
    with TrainingMonitor(model, sgd(model.context_encoder), config(tmp_path, **PLAIN)) as monitor:
        monitor.step(samples=1)
    expected = "`head.bias`, `head.weight`, `unused.weight`"
    assert published(tmp_path)[0] == {"unoptimized": 3.0, "unoptimized_name": expected}


def test_many_names_are_counted(tmp_path):
    model = nn.ModuleDict({f"layer{i}": nn.Linear(1, 1) for i in range(5)})
    with TrainingMonitor(model, sgd(model["layer0"]), config(tmp_path, **PLAIN)) as monitor:
        monitor.step(samples=1)
    text = published(tmp_path)[0]["unoptimized_name"]
    assert text == "`layer1.bias`, `layer1.weight`, `layer2.weight` and 5 more"


@pytest.mark.parametrize(
    ("held", "declared"), [*itertools.product([False, True], ["momentum", "encoders", "no"])]
)
def test_a_teacher_in_an_optimizer(tmp_path, held, declared):
    model = Model()
    optimizer = sgd(model.context_encoder, model.head, *([model.target_encoder] if held else []))
    pair = (model.context_encoder, model.target_encoder) if declared == "encoders" else None
    more = {"momentum": 0.9} if declared == "momentum" else {}
    with TrainingMonitor(model, optimizer, config(tmp_path, **PLAIN), encoders=pair) as monitor:
        train(monitor, model, [optimizer], **more)
    expected = {} if declared == "no" else {"teacher_optimized": 2.0 * held}
    assert published(tmp_path)[0] == {"unoptimized": 0.0, **expected}


def test_groups_and_parameters_that_change(tmp_path):
    model = Model()
    optimizer = sgd(model.context_encoder)
    with TrainingMonitor(model, optimizer, config(tmp_path, **PLAIN)) as monitor:
        train(monitor, model, [optimizer], steps=2)
        optimizer.add_param_group({"params": [model.head.weight], "lr": 0.3})
        train(monitor, model, [optimizer], steps=2)
        model.head.bias.requires_grad_(False)
        train(monitor, model, [optimizer])
        latest = monitor.latest
    rates = [latest[f"learning_rate/param_group_{i}"] for i in (0, 1)]
    assert rates == pytest.approx([0.1, 0.3])
    counts = {step: numbers["unoptimized"] for step, numbers in published(tmp_path).items()}
    assert counts == {0: 2.0, 1: 2.0, 2: 1.0, 3: 1.0, 4: 0.0}


def test_optimizers_of_copies_say_nothing(tmp_path):
    model = Model()
    master = [p.detach().double().requires_grad_() for p in model.parameters()]
    with TrainingMonitor(model, torch.optim.SGD(master, lr=0.1), config(tmp_path, **PLAIN)) as monitor:
        monitor.step(samples=1)
    assert published(tmp_path)[0] == {}


def sharded(log_dir, kind):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, DIM))
    if kind == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh

        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    elif kind == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        wrapped = FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=kind == "orig"
        )
    first = next(iter(wrapped.parameters())) if kind.startswith(("flat", "orig")) else model[0].weight
    optimizer = torch.optim.SGD([first], lr=0.1)
    with TrainingMonitor(wrapped, optimizer, config(log_dir, **PLAIN)) as monitor:
        for _ in range(2):
            wrapped(torch.ones(2, DIM)).sum().backward()
            optimizer.step()
            monitor.step(samples=2)
    return len(identifiable_parameters(wrapped))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "flat", "orig"])
def test_layouts(gloo, tmp_path, kind):
    known = gloo(2).run(sharded, str(tmp_path), kind)
    named = {"unoptimized": 3.0, "unoptimized_name": "`0.bias`, `1.bias`, `1.weight`"}
    flattened = kind in ("flat", "orig")
    assert known == [0 if flattened else 4] * 2
    assert published(tmp_path)[1] == ({} if flattened else named)
