"""Tags of plain dictionaries, the step of a call without one, and SummaryWriter's names."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics import ConfigError, MetricsLogger
from hjepa_dist_metrics.logging import tags
from hjepa_dist_metrics.logging.tags import PlainTags, StepCounter, flatten
from hjepa_dist_metrics.sinks import MemorySink

NAMES = st.text(st.sampled_from("ab/ "), max_size=4)


METRICS = st.tuples(st.dictionaries(NAMES, st.floats()), st.sampled_from(["", "p", "/p/"]))


def result(tags_of, metrics, prefix):
    """Return the tags, or the text of the ConfigError."""
    try:
        return tuple(tags_of(metrics, prefix))
    except ConfigError as error:
        return str(error)


@given(st.lists(METRICS, max_size=8))
def test_plain_dictionaries_get_the_tags_that_flattening_gives(calls):
    plain = PlainTags()
    for call in [*calls, *calls]:
        assert result(plain.of, *call) == result(flatten, *call)


@pytest.mark.parametrize(
    "metrics",
    [{"a": torch.tensor(1.0)}, {"a": np.ones(1)}, {"a": {"b": 1}}, {1: 1.0}, {"a": "1"}, {"a": None}],
)
def test_what_may_change_or_must_be_looked_at_is_not_plain(metrics):
    assert PlainTags().of(metrics, "") is None


class PlainCounter:
    """What StepCounter is to do, tag by tag."""

    def __init__(self):
        self.current, self.latest = 0, {}

    def resolve(self, step, names):
        if step is None:
            step = max([self.current, *(self.latest[n] + 1 for n in names if n in self.latest)])
        self.current = max(self.current, step)
        self.latest.update((n, max(step, self.latest.get(n, step))) for n in names)
        return step


CALLS = st.lists(
    st.tuples(st.none() | st.integers(0, 9), st.lists(st.sampled_from("abcd"), unique=True).map(tuple))
)


@given(CALLS, st.booleans())
def test_steps_count_as_they_do_tag_by_tag(calls, few):
    counter, oracle = StepCounter(), PlainCounter()
    if few:
        counter._limit = 1
    given_sets = {names: names for _, names in calls}  # a logger passes the same object for the same names
    for step, names in calls:
        assert counter.resolve(step, given_sets[names]) == oracle.resolve(step, names)
        assert counter.current == oracle.current


def test_ever_other_names_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(tags, "_MOST_SETS", 8)
    counter, plain = StepCounter(), PlainTags()
    rng = np.random.default_rng(0)
    for step in range(500):
        names = {f"t{index}": 0.5 for index in rng.permutation(10)[:5]}
        counter.resolve(step, plain.of(names, ""))
    assert len(plain._known) <= 8
    assert len(counter._latest) <= 2 * 10 + 8


def test_the_names_of_summary_writer_work_or_say_what_they_are_called_here(tmp_path):
    kept = MemorySink()
    with MetricsLogger("run", tmp_path, sinks=[lambda: kept]) as logger:
        logger.add_scalar("loss", torch.tensor(0.5), 3)
        logger.add_scalars("loss", {"h0": 1.0, "h1": 2.0}, 3)
        with pytest.raises(AttributeError, match=r"use log_image\(tag, image, step\)"):
            logger.add_image("a", None)
        with pytest.raises(AttributeError, match="has no attribute 'add_mesh'"):
            logger.add_mesh("a", None)
    assert {tag: kept.scalars(tag) for tag in kept.tags()} == {
        "loss": [(3, 0.5)],
        "loss/h0": [(3, 1.0)],
        "loss/h1": [(3, 2.0)],
    }


def test_an_integer_beyond_every_float_is_infinite_and_the_others_stay(tmp_path):
    kept = MemorySink()
    with MetricsLogger("run", tmp_path, sinks=[lambda: kept]) as logger:
        logger.log_metrics({"a": 10**400, "b": -(10**400), "c": 1.5})
        logger.log_metrics({"d": {"e": 10**400}})
    assert {tag: kept.scalars(tag)[0][1] for tag in kept.tags()} == {
        "a": float("inf"),
        "b": float("-inf"),
        "c": 1.5,
        "d/e": float("inf"),
    }
