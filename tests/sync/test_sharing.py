"""Spectra are worked out once for all ranks, in a sync that still takes four collectives."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from hjepa_dist_metrics import Collapse, MetricCollection
from hjepa_dist_metrics.distributed import ProcessContext
from hjepa_dist_metrics.states import Concat, Covariance, Min, Sum, Task
from hjepa_dist_metrics.states.decompositions import discriminant_eigenvalues, symmetric_eigenvalues
from hjepa_dist_metrics.sync import Plan, rest as rest_module, sharing
from hjepa_dist_metrics.sync.blobs import encode_blob
from hjepa_dist_metrics.sync.rest import Rest
from tests.ranks import ThreadWorld, run_ranks
from tests.sync.test_counts import Probe

DIM = 128
SPECTRA = 5  # of one full table: unit, raw twice, pooled unit, LiDAR's


def tables(rank: int, world_size: int) -> MetricCollection:
    """Return two collapse tables, fed with a rank's share of the same 12 images."""
    rows = torch.randn(12, 40, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = (rows * torch.linspace(0.05, 1.0, DIM) + 0.3)[rank::world_size]
    collection = MetricCollection({"a": Collapse(DIM, "a"), "b": Collapse(DIM, "b")})
    for metric in collection.values():
        metric.update(rows, ids=torch.arange(12)[rank::world_size])
    return collection


@pytest.fixture
def decompositions(monkeypatch):
    """Write down which thread asked for eigenvalues."""
    asked: list[int] = []
    original = torch.linalg.eigvalsh

    def counting(matrix):
        asked.append(threading.get_ident())
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counting)
    return asked


def synced(world_size: int, make, world: ThreadWorld | None = None) -> list:
    def body(context: ProcessContext):
        collection = make(context.rank, world_size)
        collection._context = context
        return collection.compute()

    return run_ranks(world_size, body, world)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_each_spectrum_is_worked_out_once_for_all_ranks(world_size, decompositions):
    world = ThreadWorld(world_size)
    results = synced(world_size, tables, world)
    assert len(decompositions) == 2 * SPECTRA
    assert len(set(decompositions)) == world_size, "every rank has its share"
    assert world.collectives == 4
    expected = tables(0, 1).compute()
    for result in results:
        assert result.keys() == expected.keys()
        for tag, value in expected.items():
            if isinstance(value, float) and "similarity" not in tag and "uniformity" not in tag:
                assert result[tag] == pytest.approx(value, rel=1e-9, abs=1e-12), tag
            if isinstance(value, float):
                assert result[tag] == results[0][tag]


def test_a_world_of_one_works_each_spectrum_out_once_too(decompositions):
    tables(0, 1).compute()
    assert len(decompositions) == 2 * SPECTRA


def heavy(rank: int, world_size: int) -> MetricCollection:
    """Return a collection with spectra, rows beyond the frame, and bytes of another length on each rank."""
    states = {
        "cov": Covariance(DIM, ["matrix", "second_moment"]),
        "wide": Min(shape=(3000,)),
        "sum": Sum(shape=(2000,)),
        "bytes": Concat(64, DIM),
        "last": Concat(64, DIM),
    }
    rows = torch.randn(60, DIM, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    states["cov"].update(rows)
    states["wide"].update(torch.arange(3000.0).roll(100 * rank))
    states["sum"].update(torch.arange(2000.0) + rank)
    states["bytes"].update(rows[: 3 * rank])
    if rank == 1:
        states["last"].update(rows[:1] * float("nan"))
    return MetricCollection({"m": Probe("m", **states)})


def merged_heavy(world_size: int, world: ThreadWorld) -> list[dict[str, bytes]]:
    def body(context: ProcessContext):
        collection = heavy(context.rank, world_size)
        collection._context = context
        merged = collection.compute(lambda _, merged: dict(merged["m"]))
        spectra = [merged["cov"].spectrum(of) for of in ("matrix", "second_moment")]
        tensors = [t for state in merged.values() for t in state.pack().values()]
        return [t.contiguous().numpy().tobytes() for t in (*spectra, *tensors)]

    return run_ranks(world_size, body, world)


@pytest.mark.parametrize("world_size", [2, 4])
def test_what_the_frame_has_no_room_for_goes_along_with_a_sum_and_stays_exact(world_size, monkeypatch):
    world = ThreadWorld(world_size)
    together = merged_heavy(world_size, world)
    assert world.collectives == 4
    monkeypatch.setattr(rest_module, "_MOST_SLOT_BYTES", 1000)  # too much to go along: nothing is shared
    apart_world = ThreadWorld(world_size)
    apart = merged_heavy(world_size, apart_world)
    assert apart_world.collectives == 4
    assert all(bits == together[0] for bits in (*together, *apart))


def test_where_the_rows_that_sums_need_have_no_room_they_are_gathered_first(decompositions):
    def make(rank, world_size):
        covariances = {f"c{i}": Covariance(2) for i in range(1500)}
        covariances["big"] = Covariance(DIM, ["matrix", "second_moment"])
        covariances["big"].update(torch.eye(DIM) * (rank + 1))
        covariances["c0"].update(torch.eye(2) * (rank + 1))
        return MetricCollection({"m": Probe("m", **covariances)})

    world = ThreadWorld(2)
    synced(2, make, world)
    assert world.collectives == 4
    assert decompositions == []


def spectra_with(bad) -> list[dict[str, torch.Tensor]]:
    """Return by rank the spectra of ten covariances; `bad(rank)` is one of them, and a factor of its rows."""

    def body(context: ProcessContext):
        rows = torch.randn(200, DIM, generator=torch.Generator().manual_seed(0))
        states = {f"c{i}": Covariance(DIM, ["matrix"]) for i in range(9)}
        for state in states.values():
            state.update(rows)
        states["bad"], factor = bad(context.rank)
        states["bad"].update(rows * factor)
        collection = MetricCollection({"m": Probe("m", **states)}, context=context)
        return collection.compute(lambda _, merged: {n: s.spectrum() for n, s in merged["m"].items()})

    return run_ranks(2, body)


def test_a_moment_that_is_not_finite_has_no_spectrum_on_any_rank():
    for found in spectra_with(lambda rank: (Covariance(DIM, ["matrix"]), 1.0 if rank else math.inf)):
        assert found["bad"].isnan().all()
        assert found["c8"].isfinite().all()


@pytest.fixture
def diverging(monkeypatch):
    """Let no decomposition converge."""

    def fail(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)


@pytest.mark.usefixtures("diverging")
def test_a_decomposition_that_does_not_converge_gives_nan():
    assert symmetric_eigenvalues(torch.eye(3, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e13])
def test_discriminant_eigenvalues_equal_those_of_the_whitened_scatter(scale):
    random = np.random.default_rng(5)
    within, between = (np.cov(random.normal(size=(12, 50))) * s for s in (scale, 3.0))
    within[0], within[:, 0] = 0.0, 0.0  # a dead feature: only delta is left
    root = np.linalg.inv(np.linalg.cholesky(within + 1e-4 * np.eye(12)))
    expected = np.linalg.eigvalsh(root @ between @ root.T)
    found = discriminant_eigenvalues(*map(torch.from_numpy, (between, within)), 1e-4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9 * expected[-1])


def test_a_scatter_beside_which_delta_is_rounding_has_eigenvalues_all_the_same():
    direction = torch.linspace(1.0, 2.0, 16, dtype=torch.float64)
    within = 1e16 * torch.outer(direction, direction)
    found = discriminant_eigenvalues(torch.eye(16, dtype=torch.float64), within, 1e-4)
    assert found.isfinite().all()
    assert found[-1] == pytest.approx(1e4, rel=1e-3)


@given(st.lists(st.floats(1e-6, 10.0), max_size=40), st.integers(1, 9))
def test_work_is_spread_so_that_no_rank_has_a_task_more_than_another(seconds, world_size):
    tasks = [Task(s, 1, lambda: torch.zeros(1), lambda values: None) for s in seconds]
    owners = sharing.owners(tasks, world_size)
    loads = [
        sum(s for s, owner in zip(seconds, owners, strict=True) if owner == r) for r in range(world_size)
    ]
    assert len(owners) == len(seconds)
    assert set(owners) <= set(range(world_size))
    assert max(loads) - min(loads) <= max(seconds, default=0.0) + 1e-9


def plan_of(*dims: int) -> Plan:
    """Return the plan of covariances whose states are never made: the largest would take gigabytes."""
    states = {}
    for i, dim in enumerate(dims):
        states[f"c{i}"] = object.__new__(Covariance)
        vars(states[f"c{i}"]).update(dim=dim, spectra=("matrix",))
    return Plan.of(states)


@pytest.mark.parametrize(
    ("dims", "world_size", "shared"),
    [
        ([], 8, False),
        ([2048], 1, False),
        ([8], 2, False),
        ([384] * 5, 8, True),
        ([384] * 5, 16384, False),
        ([2048] * 20, 8, True),
        ([384] * 20 + [8192], 8, False),  # a minute's work: longer than a collective may wait
    ],
)
def test_work_is_shared_where_that_saves_time_and_nobody_waits_too_long(dims, world_size, shared):
    assert sharing.worth_sharing(plan_of(*dims), world_size) is shared


def test_a_task_that_fails_on_its_rank_gives_nan_on_all_ranks():
    class Failing(Covariance):
        def tasks(self):
            def fail():
                raise MemoryError("no room")

            return [replace(task, run=fail) for task in super().tasks()]

    with pytest.warns(UserWarning, match="NaN: MemoryError: no room"):
        found = spectra_with(lambda rank: (Failing(DIM, ["matrix"]), 1.0))
    for spectra in found:
        assert spectra["bad"].isnan().all()
        assert spectra["c8"].isfinite().all()


@pytest.mark.usefixtures("diverging")
def test_what_has_no_eigenvalues_is_reported_as_nan_and_not_as_collapse():
    values = tables(0, 1).compute()
    for name in ("effective_rank", "rankme", "stable_rank", "pooled_effective_rank", "lidar"):
        assert math.isnan(values[f"collapse/a_{name}"]), name
    assert "collapse/a_alpha_req" not in values


@given(
    arrays.arrays(np.int64, st.tuples(st.integers(2, 4), st.integers(0, 6))).map(
        lambda x: x.view(np.float64)
    ),
    st.lists(st.binary(max_size=40), min_size=4, max_size=4),
)
def test_slots_bring_what_a_gather_brings(rows, data):
    blobs = [
        encode_blob({"s": {"t": torch.frombuffer(bytearray(b), dtype=torch.uint8)}}) if b else None
        for b in data[: len(rows)]
    ]
    sizes = [0 if blob is None else blob.numel() for blob in blobs]
    rests = [Rest(own, blob, sizes) for own, blob in zip(rows, blobs, strict=True)]
    total = torch.stack([rest.slots(rank) for rank, rest in enumerate(rests)]).sum(dim=0)
    for own in rests:
        found, tensors = own.read(total)
        assert found.tobytes() == rows.tobytes(), "to the bit: keys travel as float64, NaN among them"
        for got, sent in zip(tensors, data, strict=False):
            assert (got["s"]["t"].numpy().tobytes() if got else b"") == sent


def test_a_rest_of_one_rank_alone_is_a_rest_for_all():
    assert not Rest(np.zeros(0), None, [0, 0])
    assert Rest(np.zeros(0), None, [0, 8])
    assert Rest(np.zeros(1), None, [0, 0])
    assert math.isfinite(Rest(np.zeros(1), None, [0, 0]).slots(0).sum())
