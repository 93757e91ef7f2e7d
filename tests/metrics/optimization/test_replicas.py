"""Copies of a model that agree or drift, on processes that train it, against a comparison of all bits."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.two_tensor import TwoTensor

from hjepa_dist_metrics import MetricCollection, ReplicaAgreement, TrainingMonitor
from tests.helpers.ranks import run_ranks
from tests.monitor.test_monitor import config, series

DIM = 6
PLAIN = {"tensorboard": {"enabled": False}, "dashboards": [], "sync": "inline", "log_frequency": 2}


class Model(nn.Module):
    """A batch norm, a buffer that is the same for good, one that every forward replaces, and a counter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.Linear(DIM, DIM))
        self.register_buffer("table", torch.arange(40.0))
        self.register_buffer("center", torch.zeros(DIM))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        y = self.body(x)
        if self.training:
            self.center = 0.9 * self.center + 0.1 * y.detach().mean(0)
            self.seen += len(x)
        return y


def numbers(values):
    return {tag.removeprefix("parameters/"): float(value) for tag, value in values.items()}


def bits(tensors):
    return b"".join(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors)


def train(log_dir, course, broadcast, steps=9):
    rank = dist.get_rank()
    model = Model()
    if course == "other start" and rank == 1:
        with torch.no_grad():
            model.body[0].weight[0, 0] += 1e-7
    if course == "ignored":
        model.body[0].bias.requires_grad_(False)
        names = ["body.0.bias", "table"]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    wrapped = DistributedDataParallel(model, broadcast_buffers=broadcast)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(rank)
    with TrainingMonitor(wrapped, optimizer, config(log_dir, **PLAIN)) as monitor:
        for step in range(steps):
            if step == 4 and rank == 1:
                plant(model, course)
            with monitor.backward():
                wrapped(torch.randn(8 + rank, DIM, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(samples=8)
    return bits(model.parameters())


def plant(model, course):
    with torch.no_grad():
        if course in ("weight", "ignored"):
            model.body[2 if course == "weight" else 0].bias[-1] += 1e-6
        if course == "far off":
            model.body[2].weight += 1.0
        if course in ("table", "ignored"):
            model.table[7] += 1
        if course == "stale":
            model.eval()


HEALTHY = {"replica_disagreement": 0.0, "buffer_disagreement": 0.0}
DRIFTED = {"replica_disagreement": 1.0, "replica_disagreement_rank": 1.0, "buffer_disagreement": 0.0}
STALE = {"replica_disagreement": 0.0, "buffer_disagreement": 1.0, "buffer_disagreement_rank": 1.0}


@pytest.mark.parametrize(
    ("course", "broadcast", "expected"),
    [
        ("plain", True, HEALTHY),
        ("plain", False, HEALTHY),
        ("ignored", True, HEALTHY),
        ("weight", True, DRIFTED),
        ("far off", True, DRIFTED),
        ("table", False, STALE),
        ("stale", False, STALE),
        ("table", True, HEALTHY),  # the next forward takes rank 0's buffers
    ],
)
def test_ddp(gloo, tmp_path, course, broadcast, expected):
    first, second = gloo(2).run(train, str(tmp_path), course, broadcast)
    tags = set(HEALTHY) | set(expected)
    found = {tag: series(tmp_path, f"parameters/{tag}") for tag in tags}
    assert {tag: values[8] for tag, values in found.items()} == expected
    disagreement = found["replica_disagreement"]
    assert {disagreement[step] for step in (0, 2)} == {0.0}
    assert found["buffer_disagreement"][2] == 0.0
    assert (first == second) == (expected["replica_disagreement"] == 0.0) or course == "ignored"


def one(context, model, steps=(0, 1)):
    metric = ReplicaAgreement(model)
    for step in steps:
        metric.update(step)
    return numbers(MetricCollection({"m": metric}, context).compute())


def test_the_lowest_of_several_ranks_is_named():
    def body(context):
        model = nn.Linear(200, 200)
        with torch.no_grad():
            nn.init.constant_(model.weight, 1.0).view(-1)[-1] += 1e-6 * (context.rank in (2, 3))
            nn.init.zeros_(model.bias)
        return one(context, model)

    expected = {"replica_disagreement": 2.0, "replica_disagreement_rank": 2.0}
    assert run_ranks(5, body) == [expected] * 5


def test_stages_of_a_pipeline_and_a_single_rank_report_nothing():
    assert run_ranks(2, lambda context: one(context, nn.Linear(3, 3 + context.rank))) == [{}, {}]
    assert numbers(ReplicaAgreement(nn.Linear(3, 3)).compute()) == {}


def test_parameters_without_memory_of_their_own_are_left_out():
    def body(context):
        model = nn.LazyLinear(2)
        model.register_parameter("made_up", nn.Parameter(TwoTensor(torch.ones(2), torch.ones(2))))
        model.register_buffer("table", torch.full((3,), float(context.rank)))
        return one(context, model)

    assert run_ranks(2, body) == [{"buffer_disagreement": 1.0, "buffer_disagreement_rank": 1.0}] * 2


def test_a_buffer_of_another_shape_begins_anew():
    def body(context):
        model = nn.Linear(2, 2).requires_grad_(False)
        torch.nn.init.constant_(model.weight, 1.0)
        torch.nn.init.constant_(model.bias, 1.0)
        model.register_buffer("queue", torch.zeros(3))
        metric = ReplicaAgreement(model)
        metric.update(0)
        model.queue = torch.zeros(5)
        metric.update(1)
        metric.update(2)
        return numbers(MetricCollection({"m": metric}, context).compute())

    assert run_ranks(2, body) == [HEALTHY] * 2


def sharded(log_dir):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    found = []
    for wrap in (
        lambda m: fully_shard(m, mesh=init_device_mesh("cpu", (2,))),
        lambda m: FullyShardedDataParallel(m, device_id=torch.device("cpu")),
    ):
        metric = ReplicaAgreement(wrap(Model()))
        for step in range(2):
            metric.update(step)
        found.append(numbers(metric.compute()))
    return found


def test_sharded_models_report_nothing(gloo, tmp_path):
    assert gloo(2).run(sharded, str(tmp_path)) == [[{}, {}]] * 2


def test_experts_are_not_compared(tmp_path, gloo):
    assert gloo(2).run(experts, str(tmp_path)) == [[], []]


def experts(log_dir):
    model = nn.Linear(DIM, DIM)
    torch.nn.init.constant_(model.weight, float(dist.get_rank()))
    settings = config(log_dir, **PLAIN, gradients={"enabled": False})
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), settings) as monitor:
        monitor.step(samples=1)
        return [tag for tag in monitor.latest if "disagreement" in tag]


def declared(role):
    from torch.distributed.device_mesh import init_device_mesh

    from hjepa_dist_metrics import BatchContent
    from hjepa_dist_metrics.parallel.layout import ParallelLayout

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dim",))
    roles = {"expert": {r"^experts\.": "dim"}} if role == "expert" else {role: "dim"}
    layout = ParallelLayout(mesh, **roles)
    model = nn.ModuleDict({"experts": nn.Linear(2, 2), "body": nn.BatchNorm1d(2)})
    torch.nn.init.constant_(model["experts"].weight, float(dist.get_rank()))
    torch.nn.init.zeros_(model["experts"].bias)
    replicas, batches = ReplicaAgreement(model, layout), BatchContent(layout.adds_samples)
    for step in range(2):
        replicas.update(step)
        batches.update(torch.arange(40) + step, step)
    values = MetricCollection({"replicas": replicas, "batches": batches}).compute()
    return {tag.rpartition("/")[2]: float(value) for tag, value in values.items()}


@pytest.mark.parametrize(
    ("role", "disagreement", "shared"),
    [("data", 1.0, 1.0), ("expert", 0.0, 1.0), ("tensor", None, 0.0), ("pipeline", None, 0.0)],
)
def test_layouts_that_are_declared(gloo, role, disagreement, shared):
    """Ranks hold other weights of `experts`, and have the same batches."""
    for found in gloo(2).run(declared, role):
        assert found.get("replica_disagreement") == disagreement
        assert found["shared_batches"] == shared
