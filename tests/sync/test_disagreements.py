"""Ranks that disagree: the same error on every rank, naming ranks and metrics, before anything is reduced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from hjepa_dist_metrics import DesyncError, MetricCollection, ProcessContext, __version__
from hjepa_dist_metrics.states import Concat, Covariance, Histogram, Max, Replicated, Sample, State, Sum
from hjepa_dist_metrics.sync import manifest, verdict
from tests.helpers.ranks import run_ranks, try_ranks
from tests.sync.test_counts import Probe

# Each case: what is odd about the last rank, and what every rank's error must say ("{}": its number).
Make = Callable[[bool], dict[str, dict[str, State]]]
CASES: dict[str, tuple[Make, list[str]]] = {
    "missing metric": (
        lambda odd: {"a": {"s": Sum()}} if odd else {"a": {"s": Sum()}, "b": {"s": Sum()}},
        ["metric 'b' is missing on rank {}"],
    ),
    "extra metric": (
        lambda odd: {"a": {"s": Sum()}, "z": {"s": Sum()}} if odd else {"a": {"s": Sum()}},
        ["metric 'z' is missing on rank", "held by rank {}"],
    ),
    "another kind": (
        lambda odd: {"a": {"s": Max() if odd else Sum()}},
        ["state 'a.s' differ", "Max[] on rank {}"],
    ),
    "dims": (lambda odd: {"c": {"s": Covariance(4 if odd else 3)}}, ["Covariance[4] on rank {}"]),
    "shapes": (lambda odd: {"c": {"s": Sum((2,) if odd else ())}}, ["Sum[2] on rank {}"]),
    "dtypes": (
        lambda odd: {"c": {"s": Concat(2, 1, torch.float64 if odd else torch.float32)}},
        ["torch.float64] on rank {}"],
    ),
    "edges": (
        lambda odd: {"h": {"s": Histogram([0.0, 0.4 if odd else 0.5, 1.0])}},
        ["state 'h.s' differ", "on rank {}"],
    ),
    "sample sizes": (lambda odd: {"x": {"s": Sample(9 if odd else 8, 2)}}, ["Sample[9,2,seed=0] on rank {}"]),
}


def build(states: dict[str, dict[str, State]], context: ProcessContext) -> MetricCollection:
    return MetricCollection(
        {name: Probe(name, **held) for name, held in states.items()}, context=context, sync_timeout=20
    )


def usable(context: ProcessContext) -> bool:
    """Return whether the channel still syncs."""
    check = build({"check": {"s": Sum()}}, context)
    check["check"].states["s"].update(1.0)
    return check.compute(lambda _, merged: merged["check"]["s"].value) == context.world_size


def desync(context: ProcessContext, collection: MetricCollection, check: bool = True) -> tuple[str, bool]:
    try:
        collection.compute()
    except DesyncError as error:
        return str(error), not check or usable(context)
    return "no error", not check or usable(context)


def disagree(case: str, context: ProcessContext | None = None) -> tuple[str, bool]:
    context = context or ProcessContext.current()
    make, _ = CASES[case]
    return desync(context, build(make(context.rank == context.world_size - 1), context))


def check(results, words: list[str], world_size: int) -> None:
    assert all(isinstance(result, tuple) for result in results), results
    texts = {text for text, _ in results}
    assert len(texts) == 1
    for word in words:
        assert word.format(world_size - 1) in results[0][0]
    assert [works for _, works in results] == [True] * world_size


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_schemas_that_differ_over_gloo(gloo, case, world_size):
    check(gloo(world_size).run(disagree, case), CASES[case][1], world_size)


@pytest.mark.parametrize("case", CASES)
def test_schemas_that_differ_over_threads(case):
    check(try_ranks(3, lambda context: disagree(case, context)), CASES[case][1], 3)


def test_another_order_works():
    def body(context):
        names = ["a", "b", "c"] if context.rank == 0 else ["c", "a", "b"]
        collection = build({name: {"s": Sum()} for name in names}, context)
        for name in names:
            collection[name].states["s"].update({"a": 1, "b": 10, "c": 100}[name])
        return collection.compute(lambda _, merged: {name: merged[name]["s"].value for name in names})

    assert try_ranks(2, body) == [{"a": 2, "b": 20, "c": 200}] * 2


class Broken(Probe):
    def update(self, seed: int) -> None:
        if seed:
            raise ValueError("negative length")


def failing_update(context: ProcessContext | None = None) -> tuple[str, bool]:
    context = context or ProcessContext.current()
    collection = MetricCollection({"lengths": Broken("lengths", s=Sum())}, context=context, sync_timeout=20)
    if context.rank:
        with pytest.raises(ValueError, match="negative length"):
            collection["lengths"].update(context.rank)
    result = desync(context, collection)
    collection.reset()
    collection.compute()
    return result


def test_an_update_that_failed_on_one_rank_is_everybodys_error(gloo):
    words = ["metric 'lengths' failed to update on rank {} (ValueError: negative length)"]
    check(gloo(2).run(failing_update), words, 2)
    check(try_ranks(2, failing_update), words, 2)


def ahead(context: ProcessContext | None = None) -> tuple[str, bool]:
    context = context or ProcessContext.current()
    collection = build({"a": {"s": Sum()}}, context)
    collection.compute()
    collection.resume_at(7 if context.rank == context.world_size - 1 else 1)
    return desync(context, collection)


def test_a_sync_number_ahead_of_the_others(gloo):
    words = ["sync numbers differ: 2 on", "8 on rank {}"]
    check(gloo(4).run(ahead), words, 4)
    check(try_ranks(3, ahead), words, 3)


def two_collections(context: ProcessContext) -> tuple[str, bool]:
    one = build({"a": {"s": Sum()}}, context)
    other = build({"b": {"s": Sum()}}, context)
    first = desync(context, one if context.rank else other)
    second = desync(context, other if context.rank else one)
    assert first[0] != second[0]
    return first


def test_collections_computed_in_another_order():
    check(
        try_ranks(2, two_collections),
        ["metric 'a' is missing on rank 0", "metric 'b' is missing on rank 1"],
        2,
    )


def mixed_versions() -> tuple[str, bool]:
    context = ProcessContext.current()
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            for module in (manifest, verdict):
                patch.setattr(module, "__version__", "9.9.9")
        text, _ = desync(context, build({"a": {"s": Sum()}}, context), check=False)
    return text, usable(context)


def test_mixed_package_versions(gloo):
    check(
        gloo(2).run(mixed_versions), [f"package versions differ: {__version__} on rank 0, 9.9.9 on rank 1"], 2
    )


def unlike_values(context: ProcessContext | None = None) -> tuple[str, bool]:
    context = context or ProcessContext.current()
    collection = build({"lr": {"rates": Replicated((3,))}, "n": {"s": Replicated()}}, context)
    odd = context.rank == context.world_size - 1
    collection["lr"].states["rates"].update([[1.0, 0.5 if odd else 0.25, 2.0]])
    if not odd:
        collection["n"].states["s"].update(1.0)
    return desync(context, collection)


def test_replicated_values_that_differ_name_their_ranks(gloo):
    words = ["'lr.rates' must be the same on every rank", "0.25 on rank", "0.5 on rank {}"]
    for results in (gloo(2).run(unlike_values), try_ranks(3, unlike_values)):
        check(results, words, len(results))
        assert "'n.s'" not in results[0][0]


def test_many_differences_are_cut_short():
    def body(context):
        count = 40 if context.rank else 1
        return desync(context, build({f"m{i:02d}": {"s": Sum()} for i in range(count)}, context))

    check(try_ranks(2, body), ["metric 'm01' is missing on rank 0", "and 29 more"], 2)


def test_a_missing_metric_is_one_line_however_many_states_it_has():
    def body(context):
        states = {f"s{i}": Sum() for i in range(30)}
        return desync(context, build({"a": {"s": Sum()}} | ({"b": states} if context.rank else {}), context))

    results = try_ranks(2, body)
    check(results, ["metric 'b' is missing on rank 0, held by rank 1"], 2)
    assert "s1" not in results[0][0]


def entry(ranks, number=0, failures=()):
    return verdict.Entry([[ranks.start, ranks.stop]], number, "v", "", (), tuple(failures))


def test_an_error_of_many_words_and_many_ranks_stays_short():
    failing = [entry(range(r, r + 1), 0, [(f"m{i}", "x" * 10_000) for i in range(20)]) for r in range(3000)]
    assert len(str(verdict.disagreement([*failing, entry(range(3000, 3001), 1)]))) < 5000
    many = str(verdict.disagreement([entry(range(3000)), entry(range(3000, 3001), 1)]))
    assert "0 on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2992 more, 1 on rank 3000" in many


def test_a_report_stays_small_however_many_ranks_differ():
    lines = tuple((f"metric{i}.state", "Sum[]") for i in range(200))
    merged = verdict.Report()
    for rank in range(1000):
        own = verdict.Report.own(rank, "", (), range(rank, rank + 1), lines, {"m": "x" * 10_000})
        merged = merged.merge(own)
    assert len(merged.encode()) < 100_000
    assert len(merged.entries) == 17
    assert sum(beyond - first for e in merged.entries for first, beyond in e.ranks) == 1000
    assert len(str(merged.exception())) < 5000


def two_alike(names, context):
    """Two collections with the same metrics, which the first rank syncs the other way round."""
    made = []
    for number, name in enumerate(names):
        collection = MetricCollection({"m": Probe("m", s=Sum())}, context, 20, name)
        collection["m"].states["s"].update(float(number))
        made.append(collection)
    order = made if context.rank else made[::-1]
    try:
        return [each.compute(lambda _, merged: merged["m"]["s"].value) for each in order]
    except DesyncError as error:
        return str(error)


def test_collections_that_are_alike_are_told_apart_by_name():
    told = run_ranks(3, lambda context: two_alike(["train", "validation"], context))
    expected = "collections differ: 'validation' on rank 0, 'train' on ranks 1, 2"
    assert set(told) == {f"the ranks cannot sync their metrics: {expected}"}


def other_order(context: ProcessContext | None = None):
    """Two collections with the same metrics and no names, which one rank syncs the other way round."""
    where = context or ProcessContext.current()
    return two_alike(["", ""], where)


def test_collections_that_are_alike_are_told_apart_by_the_order_of_their_making(gloo):
    for told in (gloo(2).run(other_order), run_ranks(3, other_order)):
        (text,) = set(told)
        assert text.startswith("the ranks cannot sync their metrics: collections differ: 'MetricCollection ")


class OddFormula(Probe):
    """Returns another tag on the last rank, or fails there."""

    def compute_from(self, states):
        if self.name == "fails":
            raise ZeroDivisionError("no samples")
        return {self.name: 1.0}


def odd_formula(kind: str, context: ProcessContext | None = None) -> tuple[str, bool]:
    where = context or ProcessContext.current()
    name = kind if where.rank == where.world_size - 1 else "right"
    collection = MetricCollection({"m": OddFormula(name, s=Sum())}, context=where, sync_timeout=20)
    if name == "fails":
        with pytest.raises(ZeroDivisionError):
            collection.compute()
    else:
        collection.compute()
    return desync(where, collection)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("other", ["in the last sync rank {} got 'other' and rank", "got 'right' and rank {} did not"]),
        ("fails", ["rank {} got 'ZeroDivisionError: no samples' and rank"]),
    ],
)
def test_a_formula_that_differs_on_one_rank_is_told_at_the_next_sync(gloo, kind, words):
    check(gloo(2).run(odd_formula, kind), words, 2)
    check(try_ranks(3, lambda context: odd_formula(kind, context)), words, 3)


class OddStates(Probe):
    """Cannot give its states on the last rank."""

    broken = False

    @property
    def states(self):
        if self.broken:
            raise RuntimeError("shape changed")
        return self._states


def failing_states(context: ProcessContext | None = None) -> tuple[str, bool]:
    where = context or ProcessContext.current()
    metric = OddStates("m", s=Sum())
    metric.broken = where.rank == where.world_size - 1
    return desync(where, MetricCollection({"m": metric}, context=where, sync_timeout=20))


def test_states_that_one_rank_cannot_give_are_everybodys_error(gloo):
    words = ["metric 'm' failed to give its states on rank {} (RuntimeError: shape changed)"]
    check(gloo(2).run(failing_states), words, 2)
    check(try_ranks(3, failing_states), words, 3)


def test_alone_the_error_is_raised_as_it_is():
    metric = OddStates("m", s=Sum())
    metric.broken = True
    with pytest.raises(RuntimeError, match="shape changed"):
        MetricCollection({"m": metric}).compute()
