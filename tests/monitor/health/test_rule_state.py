"""Rules that compare with what they have seen judge alike in a run that goes on from a checkpoint."""

import json
import threading

import pytest

from hjepa_dist_metrics.monitor.health.alerts import AlertBook
from hjepa_dist_metrics.monitor.health.reconstruction_rules import reconstruction_rules
from hjepa_dist_metrics.monitor.health.rule_state import memory_of, recall
from hjepa_dist_metrics.monitor.health.rules import Convergence
from hjepa_dist_metrics.settings.schema import AlertsConfig
from hjepa_dist_metrics.values import Scalar
from tests.helpers.rules import built_in_rules

NORM = "gradient/global_norm_before_clip"


def book(rules=None):
    rules = rules or {**built_in_rules(), **reconstruction_rules()}
    return AlertBook(AlertsConfig(patience=1), rules)


def stream(similarity):
    return {
        "collapse/num_samples": 64.0,
        "collapse/mean_similarity": similarity,
        "collapse/effective_rank": 7.0,
        "collapse/mean_std_per_dim": 0.3,
    }


SERIES = {
    # the end of each is judged by what came before the checkpoint, which lies after the sixth
    "exploding_gradients": [{NORM: 1.0}] * 7 + [{NORM: 500.0}],
    "vanishing_gradients": [{NORM: 1.0}] * 7 + [{NORM: 2e-6}],
    # a bad start that gets better is not ill
    "collapse": [stream(0.99)] + [stream(0.92)] * 7,
    "overfitting": [{"loss/total": 5.0 - i, "val/loss": 1.0 + 0.2 * max(0, i - 5)} for i in range(8)],
    "poor_semantics": [{"Train/sem_loss_active": 0.0}] * 6 + [{"Eval/Frame/val_sem_sim": 0.01}] * 2,
    "loss_oscillation": [{"Train/Loss/total_loss": 1.0 + i % 2} for i in range(8)],
}


def alerts_of(books, series):
    for number, numbers in enumerate(series):
        books[number].evaluate(number, numbers)
    return [str(alert) for alert in books[-1].alerts]


@pytest.mark.parametrize("rule", SERIES)
def test_a_resumed_run_raises_the_alerts_of_a_whole_one(rule):
    series, whole, first, second = SERIES[rule], book(), book(), book()
    expected = alerts_of([whole] * 8, series)
    alerts_of([first] * 6, series[:6])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert alerts_of([first] * 6 + [second] * 2, [{}] * 6 + series[6:]) == expected
    assert memory_of(second.rules[rule]) == memory_of(whole.rules[rule])


@pytest.mark.parametrize("rule", SERIES)
def test_without_its_memory_a_rule_judges_otherwise(rule):
    series, whole, fresh = SERIES[rule], book(), book()
    expected = alerts_of([whole] * 8, series), memory_of(whole.rules[rule])
    assert (alerts_of([fresh] * 8, [{}] * 6 + series[6:]), memory_of(fresh.rules[rule])) != expected


def test_the_rate_of_convergence_goes_on():
    before, after = Convergence(), Convergence()
    before.rates(0, {"loss/total": Scalar(2.0), "loss/h1": Scalar(1.0)})
    recall(after, json.loads(json.dumps(memory_of(before))))
    rates = after.rates(2, {"loss/total": Scalar(1.0), "loss/h1": Scalar(3.0)})
    assert {tag: rate.value for tag, rate in rates.items()} == {
        "loss/convergence_rate": -0.25,
        "loss/convergence_rate_h1": 1.0,
    }


class Own:
    """A user's rule, with things that no checkpoint can hold, and things of another version."""

    def __init__(self):
        self._lock, self._seen, self.public, self._pairs = threading.Lock(), {"b", "a"}, 3, (1, 2.5)

    def __call__(self, numbers):
        return None


def test_what_is_not_plain_is_left_alone():
    own, other = Own(), Own()
    own._seen = {"c"}
    memory = json.loads(json.dumps(memory_of(own)))
    assert memory == {"_seen": ["c"], "_pairs": [1, 2.5]}
    lock = other._lock
    recall(other, {**memory, "_gone": 1, "_lock": 2})
    assert (other._seen, other._lock, hasattr(other, "_gone")) == ({"c"}, lock, False)
    assert memory_of(lambda numbers: None) == {}
    assert memory_of(print) == {}
    recall(print, {"_seen": 1})


class Slotted:
    """A user's rule without a dictionary of attributes."""

    __slots__ = ("calls",)

    def __call__(self, numbers):
        return None


def test_a_rule_without_attributes_is_no_hindrance_to_a_checkpoint():
    state = json.loads(json.dumps(book({"own": Slotted()}).state_dict()))
    assert state["memories"] == {"own": {}}
    book({"own": Slotted()}).load_state_dict(state)
