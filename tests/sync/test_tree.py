"""The reduction itself, on thousands of simulated ranks: depth, bytes, order, determinism, verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics.errors import DesyncError, RankFailureError
from hjepa_dist_metrics.states import (
    Concat,
    Covariance,
    Max,
    Mean,
    Moments,
    RankTable,
    Replicated,
    Sample,
    Sum,
)
from hjepa_dist_metrics.sync.header import Participation
from hjepa_dist_metrics.sync.manifest import Manifest
from hjepa_dist_metrics.sync.merged import Merged
from hjepa_dist_metrics.sync.tree import steps
from tests.helpers.simulated import FRAME, block_of, simulate

WORLDS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 32, 100]
LARGE = [1024, 16384]


def depth(world: int) -> int:
    return math.ceil(math.log2(world)) if world > 1 else 0


def means(rank: int, count: int = 100) -> dict:
    states = {f"m{i}.mean": Mean() for i in range(count)}
    for i, state in enumerate(states.values()):
        state.update(float(rank + i), 1)
    return states


@pytest.mark.parametrize("world", WORLDS + LARGE)
def test_rounds_are_the_logarithm_of_the_number_of_ranks(world):
    for rank in range(world):
        own = list(steps(rank, world))
        assert len(own) <= depth(world) + 2
        for step in own:
            assert rank in step.ranks
            assert step.peer in step.ranks
            assert step.lower == (rank < step.peer)
    pairs = {(rank, step.peer): step for rank in range(min(world, 100)) for step in steps(rank, world)}
    for (rank, peer), step in pairs.items():
        if (peer, rank) in pairs:
            assert pairs[peer, rank].ranks == step.ranks


@pytest.mark.parametrize("world", WORLDS + LARGE)
def test_a_hundred_means_cost_one_frame_a_round(world):
    kinds = [
        means(kind) for kind in range(4)
    ]  # rank r holds what rank r % 4 would: making them takes longest
    shared = Manifest(kinds[0])
    results, traffic = simulate([block_of(rank, kinds[rank % 4], manifest=shared) for rank in range(world)])
    for note in traffic:
        assert note.sent <= depth(world) + 2
        assert note.sent_bytes <= (depth(world) + 2) * FRAME
        assert note.received_bytes <= (depth(world) + 2) * FRAME
        assert len(note.peers) <= depth(world) + 1
    first = results[0].payload.numbers
    for result in results:
        assert result.payload.numbers.tobytes() == first.tobytes()
    merged = Merged(results[-1].manifest, results[-1].payload)
    for i in range(100):
        assert merged[f"m{i}"]["mean"].total == sum(rank % 4 + i for rank in range(world))


def rich(rank: int) -> dict:
    """States of all kinds, among them such as do not fit a frame."""
    rows = torch.randn(3 + rank % 4, 40, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    states = {
        "a.sum": Sum((40,)),
        "a.moments": Moments((40,)),
        "b.cov": Covariance(40),
        "c.rows": Concat(64, 40, torch.float64),
        "d.sample": Sample(16, 40),
        "e.max": Max(),
        "f.table": RankTable(2),
        "g.same": Replicated(),
    }
    for name in ("a.sum", "a.moments", "b.cov", "c.rows", "d.sample"):
        states[name].update(rows)
    states["e.max"].update(rows[:, 0])
    states["f.table"].update([float(rank), -float(rank)])
    states["g.same"].update(7.0)
    return states


@pytest.mark.parametrize("world", WORLDS)
def test_every_kind_of_state_merges_in_rank_order(world):
    results, _ = simulate([block_of(rank, rich(rank)) for rank in range(world)])
    everything = [rich(rank) for rank in range(world)]
    rows = torch.cat([states["c.rows"].rows_kept for states in everything]).numpy()
    for result in results:
        merged = Merged(result.manifest, result.payload)
        np.testing.assert_array_equal(merged["c"]["rows"].rows_kept.numpy(), rows)
        np.testing.assert_allclose(merged["a"]["sum"].value, rows.sum(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(merged["a"]["moments"].variance, rows.var(axis=0, ddof=1), rtol=1e-9)
        np.testing.assert_allclose(merged["b"]["cov"].matrix, np.cov(rows.T), rtol=1e-9, atol=1e-12)
        holders = [states["c.rows"].rows_kept[:, 0].max().item() for states in everything]
        assert (merged["e"]["max"].value, merged["e"]["max"].rank) == (max(holders), int(np.argmax(holders)))
        assert merged["f"]["table"].table[:, 0].tolist() == list(range(world))
        assert merged["g"]["same"].value == 7.0
        assert merged.conflicts() == []
        assert result.payload.encode().tobytes() == results[0].payload.encode().tobytes()


@pytest.mark.parametrize("world", [2, 3, 4, 7, 8, 100])
def test_ranks_that_contradict_each_other_are_both_named(world):
    odd = world - 1

    def states(rank):
        state = Replicated()
        state.update(1.0 if rank != odd else 2.0)
        return {"lr.value": state}

    results, _ = simulate([block_of(rank, states(rank)) for rank in range(world)])
    told = {tuple(Merged(r.manifest, r.payload).conflicts()) for r in results}
    assert len(told) == 1
    ((text,),) = told
    assert text.startswith("'lr.value' must be the same on every rank, got 1 on rank ")
    assert text.endswith(f", 2 on rank {odd}")


@pytest.mark.parametrize("world", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("odd", [0, 1, -1])
def test_one_odd_rank_is_the_same_error_on_all(world, odd):
    odd %= world
    blocks = [block_of(rank, means(rank, 3 if rank == odd else 2)) for rank in range(world)]
    results, _ = simulate(blocks)
    errors = [result.report.exception() for result in results]
    assert {type(error) for error in errors} == {DesyncError}
    assert len({str(error) for error in errors}) == 1
    assert f"held by rank {odd}" in str(errors[0])


@given(
    world=st.integers(2, 12),
    failed=st.sets(st.integers(0, 11), min_size=1),
    numbers=st.lists(st.integers(1, 2), min_size=12, max_size=12),
)
def test_whatever_differs_every_rank_gets_the_same_error(world, failed, numbers):
    blocks = [
        block_of(
            rank,
            means(rank, 2),
            number=numbers[rank],
            failures={"metric 'm0' failed to update": f"ValueError: {rank}"} if rank in failed else None,
        )
        for rank in range(world)
    ]
    results, _ = simulate(blocks)
    expected = set(range(world)) & failed
    if not expected and len(set(numbers[:world])) == 1:
        assert all(result.report is None for result in results)
        return
    texts = {str(result.report.exception()) for result in results}
    assert len(texts) == 1
    for rank in expected:
        assert f"metric 'm0' failed to update on rank {rank} (ValueError: {rank})" in next(iter(texts))


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_a_broken_connection_ends_in_the_same_error_on_all_who_learn_of_it(world):
    for peer in range(world):
        results, _ = simulate(
            [block_of(rank, means(rank, 2)) for rank in range(world)],
            dead=lambda rank, other, message, peer=peer: peer in (rank, other),
        )
        errors = [r.report.exception() for rank, r in enumerate(results) if rank != peer]
        assert {type(error) for error in errors} == {RankFailureError}
        assert {error.ranks for error in errors} == {(peer,)}


@pytest.mark.parametrize("world", [2, 3, 4, 5, 8, 13])
def test_different_metrics_merge_to_their_union(world):
    def states(rank):
        made = {f"m{i}.mean": Mean() for i in range(4) if (rank + i) % 3 or (world < 3 and i == rank)}
        made[f"own{rank % 2}.rows"] = Concat(8, 1, torch.float64)
        for name, state in made.items():
            state.update(torch.full((1, 1), float(rank)) if "rows" in name else float(rank))
        return made

    blocks = [block_of(rank, states(rank), participation=Participation()) for rank in range(world)]
    results, _ = simulate(blocks)
    names = sorted({name for rank in range(world) for name in states(rank)})
    for result in results:
        assert result.report is None
        assert list(result.manifest.states) == names
        merged = Merged(result.manifest, result.payload)
        for name in names:
            metric, state = name.split(".")
            holders = [rank for rank in range(world) if name in states(rank)]
            if state == "rows":
                assert merged[metric]["rows"].rows_kept[:, 0].tolist() == holders
            else:
                assert merged[metric]["mean"].total == sum(holders)
                assert merged[metric]["mean"].count == len(holders)
        assert result.payload.encode().tobytes() == results[0].payload.encode().tobytes()
        everywhere = {
            metric
            for metric in result.manifest.members
            if all(any(n.startswith(metric + ".") for n in states(rank)) for rank in range(world))
        }
        assert result.manifest.membership.everywhere == everywhere


def test_one_name_for_two_kinds_of_states_is_an_error_on_every_rank_also_where_metrics_may_differ():
    def states(rank):
        return {"m.s": Sum() if rank != 2 else Max(), f"own{rank}.s": Sum()}

    results, _ = simulate([block_of(r, states(r), participation=Participation()) for r in range(4)])
    texts = {str(result.report.exception()) for result in results}
    assert len(texts) == 1
    assert "state 'm.s' differ: Sum[] on ranks 0, 1, 3, Max[] on rank 2" in texts.pop()


def test_what_has_more_steps_tells_what_is_alike():
    def states(value):
        state = Replicated()
        state.update(value)
        return {"lr.value": state}

    done = [5, 9, 9, 2]
    blocks = [
        block_of(rank, states(float(n)), participation=Participation(steps_done=n))
        for rank, n in enumerate(done)
    ]
    results, _ = simulate(blocks)
    for result in results:
        merged = Merged(result.manifest, result.payload)
        assert merged["lr"]["value"].value == 9.0
        assert merged.conflicts() == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_participation_merges_to_the_earliest_phase_and_every_request(phases, data):
    parts = [
        Participation(
            phase,
            data.draw(st.integers(0, 9)),
            data.draw(st.integers(0, 9)),
            data.draw(st.integers(0, 1)),
            -1 if phase else data.draw(st.integers(0, 9)),
            0 if phase else data.draw(st.integers(0, 7)),
        )
        for phase in phases
    ]
    results, _ = simulate([block_of(r, {}, participation=part) for r, part in enumerate(parts)])
    for result in results:
        found = result.header.participation
        assert found.phase == min(phases)
        assert found.steps_done == max(part.steps_done for part in parts)
        assert found.next_step == max(part.next_step for part in parts)
        assert found.pending == max(part.pending for part in parts)
        assert found.request_step == max(part.request_step for part in parts)
        assert found.request_flags == np.bitwise_or.reduce([part.request_flags for part in parts])


def test_the_rank_that_waited_least_is_found():
    results, _ = simulate([block_of(rank, means(rank, 1)) for rank in (0, 1, 2, 3, 4)])
    assert {result.header.slowest for result in results} == {0}


@given(
    world=st.integers(2, 12),
    rows=st.lists(st.integers(0, 3000), min_size=12, max_size=12),
)
def test_every_rank_knows_the_largest_payload(world, rows):
    """The next sync's frame has that size: ranks that differ in it would wait for each other."""

    def concat(rank: int) -> dict:
        state = Concat(10**6, 1)
        state.update(torch.zeros(rows[rank], 1))
        return {"m.rows": state}

    results, _ = simulate([block_of(rank, concat(rank)) for rank in range(world)])
    assert len({result.header.most_bytes for result in results}) == 1
    assert results[0].header.most_bytes >= max(result * 4 for result in rows[:world])
