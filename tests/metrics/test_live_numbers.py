"""Numbers that lie side by side: whatever happens to the metrics, a sync brings what they have seen."""

from __future__ import annotations

import ast
import copy
import math
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hjepa_dist_metrics import ConfigError, DesyncError, MetricCollection, ProcessContext, WeightedMean
from hjepa_dist_metrics.metrics.merging import _thread
from hjepa_dist_metrics.states import LiveBlock, Mean
from tests.processes import free_port, join_world, run_disposable
from tests.ranks import run_ranks, try_ranks

PACKAGE = Path(__file__).resolve().parent.parent.parent / "hjepa_dist_metrics"
COUNT = 10
VALUES = st.floats(-1e6, 1e6)
PLACES = st.integers(0, COUNT - 1)


def collection(context=None, count: int = COUNT) -> MetricCollection:
    return MetricCollection({f"m{i}": WeightedMean(f"m{i}") for i in range(count)}, context=context)


def laid(context=None) -> MetricCollection:
    """Return a collection whose numbers lie in a block, after three syncs of nothing."""
    made = collection(context)
    for _ in range(3):
        made.compute()
    assert live(made)
    return made


def live(made: MetricCollection) -> bool:
    return all(metric.mean._live is not None and metric.mean._live[0].whole for metric in made.values())


class Means(RuleBasedStateMachine):
    """Do anything to a collection of means; keep their sums in plain Python beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.collection = collection()
        self.sums = {f"m{i}": [0.0, 0.0] for i in range(COUNT)}

    def expected(self) -> dict[str, float]:
        return {tag: total / count for tag, (total, count) in self.sums.items() if count}

    def count(self, tag: str, value: float, weight: float) -> None:
        self.sums[tag][0] += value * weight
        self.sums[tag][1] += weight

    @rule(place=PLACES, value=VALUES, weight=st.integers(0, 9))
    def update_by_number(self, place, value, weight):
        self.collection[f"m{place}"].update(value, weight)
        self.count(f"m{place}", value, weight)

    @rule(place=PLACES, value=VALUES, weight=st.integers(1, 9))
    def update_by_tensor(self, place, value, weight):
        self.collection[f"m{place}"].update(torch.tensor(value, dtype=torch.float64), torch.tensor(weight))
        self.count(f"m{place}", value, weight)

    @rule(place=PLACES)
    def reset_one(self, place):
        self.collection[f"m{place}"].reset()
        self.sums[f"m{place}"] = [0.0, 0.0]

    @rule()
    def reset_all(self):
        self.collection.reset()
        self.sums = {tag: [0.0, 0.0] for tag in self.sums}

    @rule(place=PLACES, value=VALUES)
    def merge_in(self, place, value):
        other = WeightedMean("other")
        other.update(value, 2)
        self.collection[f"m{place}"].merge(other)
        self.count(f"m{place}", value, 2)

    @rule(place=PLACES)
    def sync_one_alone(self, place):
        tag = f"m{place}"
        assert self.collection[tag].compute() == {t: v for t, v in self.expected().items() if t == tag}

    @rule()
    def sync_some(self):
        names = [f"m{i}" for i in range(0, COUNT, 2)]
        found = self.collection.compute(names=names)
        assert found == {tag: value for tag, value in self.expected().items() if tag in names}

    @rule()
    def sync_behind_the_training(self):
        handle = self.collection.compute_async()
        wanted = self.expected()
        self.update_by_number(0, 3.0, 1)
        assert handle.result(20) == wanted

    @rule()
    def go_on_from_a_checkpoint(self):
        state = pickle.loads(pickle.dumps(self.collection.state_dict()))
        self.collection = MetricCollection({name: WeightedMean(name) for name in self.sums})
        self.collection.load_state_dict(state)

    @rule()
    def go_on_with_a_copy(self):
        kept, self.collection = self.collection, copy.deepcopy(self.collection)
        for metric in kept.values():
            metric.update(1e9, 1)

    @rule()
    def grow(self):
        name = f"n{len(self.collection)}"
        self.collection.add(name, WeightedMean(name))
        self.sums[name] = [0.0, 0.0]
        self.collection[name].update(5.0, 1)
        self.count(name, 5.0, 1)

    @invariant()
    def a_sync_brings_what_was_seen(self):
        found = self.collection.compute()
        assert found.keys() == self.expected().keys()
        for tag, value in self.expected().items():
            assert found[tag] == pytest.approx(value, rel=1e-12, abs=1e-9)


TestMeans = Means.TestCase
TestMeans.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_numbers_lie_together_from_the_second_sync_on_and_stay_there_through_resets():
    made = collection()
    made.compute()
    assert not live(made)
    made.compute()
    assert live(made)
    block = made["m0"].mean._live[0]
    for _ in range(3):
        made.reset()
        made["m3"].update(torch.tensor(2.0))
        assert made.compute() == {"m3": 2.0}
    assert made["m0"].mean._live[0] is block


def test_a_sync_in_the_background_brings_what_was_there_when_it_was_asked_for():
    made, gate = laid(), threading.Event()
    made["m1"].update(1.0)
    _thread.submit(gate.wait)
    handle = made.compute_async()
    made["m1"].update(100.0)
    made["m2"].update(7.0)
    gate.set()
    assert handle.result(20) == {"m1": 1.0}
    made.reset()
    assert made.compute() == {}


def test_a_number_on_a_device_leaves_the_block_and_is_synced_from_there():
    made = laid()
    made["m1"].update(3.0)
    made["m4"].update(torch.ones((), device="meta"))
    assert made["m4"].mean.data.device.type == "meta"
    assert not live(made)
    made["m4"].reset()
    made["m4"].mean._load({"data": torch.zeros(2, 1)})
    assert made.compute() == {"m1": 3.0}


def test_two_collections_of_the_same_metrics_both_bring_what_they_have_seen():
    first = laid()
    second = MetricCollection(dict(first))
    for i in range(6):
        first["m5"].update(float(i))
        expected = {"m5": sum(range(i + 1)) / (i + 1)}
        assert second.compute() == first.compute() == expected


def test_a_failure_after_many_syncs_is_told_to_all_ranks():
    def body(context):
        made = laid(context)
        made["m0"].update(1.0)
        made.compute()
        if context.rank == 1:
            with pytest.raises(ConfigError, match="one number"):
                made["m7"].update(torch.ones(3))
        made.compute()

    for outcome in try_ranks(2, body):
        assert isinstance(outcome, DesyncError)
        assert "'m7' failed to update on rank 1" in str(outcome)


def test_another_tag_is_written_from_the_next_sync_on():
    made = laid()
    made["m0"].update(1.0)
    assert made.compute() == {"m0": 1.0}
    made["m0"].tag = "renamed"
    assert made.compute() == {"renamed": 1.0}


def test_ranks_merge_what_lies_in_their_blocks():
    def body(context):
        made = laid(context)
        for i, metric in enumerate(made.values()):
            metric.update(float(i + context.rank), 1 + context.rank)
        return made.compute()

    for found in run_ranks(3, body):
        for i in range(COUNT):
            assert found[f"m{i}"] == pytest.approx((i + 2 * (i + 1) + 3 * (i + 2)) / 6)


def test_what_is_infinite_adds_up_without_a_warning():
    made = laid()
    for value in (math.inf, -math.inf, 1e308, 1e308):
        made["m0"].update(value)
    made["m1"].update(1e308, 10)
    found = made.compute()
    assert math.isnan(found["m0"])
    assert found["m1"] == math.inf


def test_a_reader_on_another_thread_never_sees_half_of_an_update():
    state, block, over = Mean(), LiveBlock(np.zeros((2, 9))), threading.Event()
    state.live_in(block, 4)
    torn = []

    def read():
        while not over.is_set():
            total, count = state.data[:, 0].tolist()
            torn.append((total, count)) if total != 3.0 * count else None

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20_000):
        state.update(3.0, 1)
    over.set()
    reader.join()
    assert torn == []
    assert (state.total, state.count) == (60_000.0, 20_000.0)


def test_copies_of_a_state_have_numbers_of_their_own():
    state, block = Mean(), LiveBlock(np.zeros((2, 1)))
    state.live_in(block, 0)
    state.update(2.0, 3)
    copies = [state.holding(state.data), state.unpack(state.pack()), state.adopt(state.pack())]
    copies += [copy.copy(state.empty()), pickle.loads(pickle.dumps(state)), copy.deepcopy(state)]
    for one in copies:
        one.update(1.0, 1)
    assert block.rows[:, 0].tolist() == [6.0, 3.0]
    assert [one.count for one in copies] == [4.0, 4.0, 4.0, 1.0, 4.0, 4.0]


def copied_after_syncs() -> list[dict]:
    made = laid()
    made["m0"].update(float(dist.get_rank()), 1)
    made.compute()
    copies = [copy.deepcopy(made), pickle.loads(pickle.dumps(made))]
    found = []
    for one in copies:
        one["m1"].merge(made["m0"])
        found.append(one.compute())
    return [*found, made.compute()]


def test_what_has_synced_over_a_real_group_can_be_copied_and_pickled(gloo):
    both, alone = {"m0": 0.5, "m1": 0.5}, {"m0": 0.5}
    assert gloo(2).run(copied_after_syncs) == [[both, both, alone]] * 2


def test_a_pickled_collection_knows_nothing_of_another_process():
    made = laid()
    made["m0"].update(1.0)
    made.compute()
    data = pickle.dumps(made)
    loaded = pickle.loads(data)
    assert vars(loaded._merger)["_known"] is None
    assert vars(loaded._merger)["_rosters"] == {}
    assert made._merger._known is not None


def synced_before_and_after_a_restart(rank: int, port: int) -> list[float]:
    context = ProcessContext.current()
    made = collection(context)
    for metric in made.values():
        metric.update(1.0 + dist.get_rank())
    before = made.compute()["m3"]
    dist.destroy_process_group()
    join_world(rank, 2, port)
    again = collection(ProcessContext.current())
    for metric in again.values():
        metric.update(3.0)
    first = again.compute()["m3"]
    return [before, first, made.compute()["m3"]]


def test_a_collection_syncs_over_the_group_that_there_is_after_a_restart():
    outcomes = run_disposable(2, synced_before_and_after_a_restart, free_port())
    assert outcomes == {rank: [1.5, 3.0, 1.5] for rank in range(2)}


class Halved(Mean):
    """Assigns its tensor itself, as a state of a user may."""

    def update(self, value, count=1):
        self.data = self.data + torch.tensor([[value / 2], [count]], dtype=torch.float64)


class Loss(WeightedMean):
    """Has its tag from the class."""

    tag = "loss/total"

    def __init__(self) -> None:
        self.add_state("mean", Halved())


def test_subclasses_with_states_and_tags_of_their_own_are_synced_as_they_are():
    class Tagged(Loss):
        def __init__(self, tag: str) -> None:
            super().__init__()
            self._own = tag

        @property
        def tag(self) -> str:
            return self._own

    made = MetricCollection({"loss": Loss()} | {f"t{i}": Tagged(f"t{i}") for i in range(COUNT)})
    for i in range(1, 5):
        made["loss"].update(2.0 * i)
        made["t4"].update(4.0 * i)
        mean = sum(range(1, i + 1)) / i
        assert made.compute() == {"loss/total": mean, made["t4"].tag: 2.0 * mean}
        made["t4"]._own += "'"


def test_states_are_replaced_in_one_place_which_tells_the_syncs():
    """What assigns `_states` elsewhere would go unnoticed by collections that have synced before."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                found += [
                    (path.name, function.name)
                    for node in ast.walk(function)
                    for target in getattr(node, "targets", [getattr(node, "target", None)])
                    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
                    and isinstance(target, ast.Attribute)
                    and target.attr == "_states"
                ]
    assert found == [("base.py", "__new__"), ("base.py", "_hold")]
