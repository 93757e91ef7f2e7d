"""Streams of features and losses that are healthy or ill by construction, and what the judge says of them."""

import math
from collections.abc import Callable

import pytest
import torch

from hjepa_dist_metrics import Collapse
from hjepa_dist_metrics.monitor.health.judge import Judge

DIM, IMAGES, TOKENS, EVERY, LOGS, PLANTED = 128, 32, 8, 10, 55, 25


def _numbers(features: torch.Tensor, loss: float, norm: float, ratio: float = 1e-3) -> dict[str, float]:
    metric = Collapse(features.shape[-1])
    metric.update(features)
    values = {tag: float(v.value) for tag, v in metric.compute().items() if hasattr(v, "value")}
    more = {"loss/total": loss, "gradients/global_norm": norm, "update/group0_ratio": ratio}
    return {tag: value for tag, value in values.items() if isinstance(value, float)} | more


class Stream:
    """Features whose rank, common mean and kind can change with the log."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.basis = torch.linalg.qr(self.normal(DIM, DIM))[0]
        self.places = self.normal(1, TOKENS, DIM)
        self.centres = self.normal(10, DIM)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def rows(self, rank: int = DIM, count: int = 256, mean: float = 0.0) -> torch.Tensor:
        return self.normal(count, rank) @ self.basis[:rank] * math.sqrt(DIM / rank) + mean

    def tokens(self, of_image: float, of_place: float) -> torch.Tensor:
        images = self.normal(IMAGES, 1, DIM) * of_image
        return images + self.places * of_place + 0.3 * of_image * self.normal(IMAGES, TOKENS, DIM)

    def loss(self, log: int) -> float:
        return (1.0 + 2.0 * math.exp(-log / 15)) * (1 + 0.01 * float(self.normal(1)))

    def norm(self) -> float:
        return 1.0 + 0.2 * abs(float(self.normal(1)))


Log = Callable[[Stream, int], dict[str, float]]


def after(log: int) -> float:
    """Return how far a slow failure has come, from 0 to 1."""
    return min(max((log - PLANTED) / 20, 0.0), 1.0)


def ranks(then: int, at_once: bool, count: int = 256) -> Log:
    def log(stream: Stream, i: int) -> dict[str, float]:
        part = float(i >= PLANTED) if at_once else after(i)
        rank = round(math.exp((1 - part) * math.log(DIM) + part * math.log(then)))
        return _numbers(stream.rows(rank, count), stream.loss(i), stream.norm())

    return log


def clusters(stream: Stream, i: int) -> dict[str, float]:
    if i < PLANTED:
        features = stream.rows()
    else:
        features = stream.centres[torch.randint(10, (256,), generator=stream.random)] + 0.01 * stream.rows()
    return _numbers(features, stream.loss(i), stream.norm())


def half_dead(stream: Stream, i: int) -> dict[str, float]:
    features = stream.rows()
    features[:, : DIM // 2] *= float(i < PLANTED)
    return _numbers(features, stream.loss(i), stream.norm())


def losses(factor: Callable[[int], float]) -> Log:
    return lambda stream, i: _numbers(stream.rows(), stream.loss(i) * factor(i), stream.norm())


def norms(factor: Callable[[int], float]) -> Log:
    return lambda stream, i: _numbers(stream.rows(), stream.loss(i), stream.norm() * factor(i))


def cheap(stream: Stream, i: int) -> dict[str, float]:
    rank, factor = (16, 0.1) if i >= PLANTED else (DIM, 1.0)
    return _numbers(stream.rows(rank), stream.loss(i) * factor, stream.norm())


def diverging(stream: Stream, i: int) -> dict[str, float]:
    return _numbers(stream.rows(), 2.3 * 1.5 ** min(i, 10), stream.norm(), ratio=5.8 / (1 + i))


def point(stream: Stream, i: int) -> dict[str, float]:
    spread = 0.9 ** max(i - PLANTED, 0)
    return _numbers(torch.ones(DIM) + spread * stream.rows(), stream.loss(i), stream.norm())


def vicreg(stream: Stream, i: int) -> dict[str, float]:
    rank = 3 + max(i - 4, 0) // 2 if i != 3 else 2
    spread = 0.1 + 0.9 * min(i / 20, 1.0)
    features = torch.ones(DIM) + spread * stream.rows(min(rank, DIM))
    return _numbers(features, stream.loss(i), stream.norm())


def overtrained(stream: Stream, i: int) -> dict[str, float]:
    fade = math.exp(-i / 4)
    return _numbers(stream.rows(), 2.3 * fade if i < 50 else 0.0, stream.norm() * fade)


FAILURES: dict[str, tuple[Log, str, int]] = {
    # what happens, the finding's name, the logs after planting within which it must begin
    "rank 128 to 8 at once": (ranks(8, True), "dimensional_collapse", 3),
    "rank 128 to 16 at once": (ranks(16, True), "dimensional_collapse", 3),
    "rank 128 to 8 slowly": (ranks(8, False), "dimensional_collapse", 15),
    "rank 128 to 16 slowly": (ranks(16, False), "dimensional_collapse", 18),
    "32 rows to 2 dimensions": (ranks(2, True, 32), "dimensional_collapse", 3),
    "64 rows to 4 dimensions": (ranks(4, True, 64), "dimensional_collapse", 3),
    "a point": (point, "point_collapse", 25),
    "ten clusters": (clusters, "cluster_collapse", 4),
    "half of the features dead": (half_dead, "dead_features", 4),
    "every image the same tokens": (
        lambda s, i: _numbers(s.tokens(float(i < PLANTED) + 1e-3, 1.0), s.loss(i), s.norm()),
        "image_collapse",
        4,
    ),
    "a loss that drops tenfold with the rank": (cheap, "partial_collapse", 4),
    "a loss 45 % higher for good": (losses(lambda i: 1.0 + 0.45 * (i >= PLANTED)), "loss_level_shift", 4),
    "a creeping gradient": (norms(lambda i: 1.2 ** max(i - PLANTED, 0)), "gradient_explosion", 30),
    "a gradient that is gone": (norms(lambda i: 1e-6 if i >= PLANTED else 1.0), "gradient_vanishing", 4),
    "a learning rate 300 times too high": (diverging, "learning_rate_too_high", 3 - PLANTED),
}

HEALTHY: dict[str, Log] = {
    "even rows": lambda s, i: _numbers(s.rows(), s.loss(i), s.norm()),
    "a large common mean": lambda s, i: _numbers(s.rows(mean=3.7), s.loss(i), s.norm()),
    "tokens with a large common mean": lambda s, i: _numbers(s.tokens(1.0, 0.3) + 3.7, s.loss(i), s.norm()),
    "tokens that hold their place and image": lambda s, i: _numbers(s.tokens(1.0, 1.0), s.loss(i), s.norm()),
    "independent tokens": lambda s, i: _numbers(s.normal(IMAGES, TOKENS, DIM), s.loss(i), s.norm()),
    "a bad start that is left": vicreg,
    "a loss of 0 at the end": overtrained,
    "few rows": lambda s, i: _numbers(s.rows(count=24), s.loss(i), s.norm()),
    "a last batch of 3 rows": lambda s, i: _numbers(
        s.rows(count=3 if i % 9 == 8 else 256), s.loss(i), s.norm()
    ),
    "rows without a mean of norm 1e-20": lambda s, i: _numbers(s.rows() * 1e-20, s.loss(i), s.norm()),
}


def findings(log: Log) -> tuple[list[tuple[int, str]], str]:
    stream, judge, begun = Stream(), Judge(), []
    for i in range(LOGS):
        health = judge.update(i * EVERY, log(stream, i))
        begun += [(i, finding.name) for finding in judge.change.begun]
    return begun, health.findings[0].name if health.findings else "healthy"


@pytest.mark.parametrize("name", FAILURES)
def test_a_planted_failure_is_found_in_time_and_is_the_headline(name):
    log, expected, delay = FAILURES[name]
    begun, headline = findings(log)
    first = {found: i for i, found in reversed(begun)}
    assert headline == expected, begun
    assert first[expected] <= PLANTED + delay, begun
    assert all(i >= min(PLANTED, PLANTED + delay - 3) for i, _ in begun), begun


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_stream_has_no_finding(name):
    assert findings(HEALTHY[name]) == ([], "healthy")
