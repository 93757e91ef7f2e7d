"""One or more classes of every family of torchmetrics that needs no download, over uneven and empty ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics import aggregation, classification, image, regression, retrieval, text, wrappers

from hjepa_dist_metrics import MetricCollection
from hjepa_dist_metrics.integrations.torchmetrics import TorchMetric
from tests.helpers.ranks import run_ranks
from tests.integrations.test_torchmetrics import (
    CLASSES,
    Batch,
    Case,
    batches_of,
    binary,
    flat,
    images,
    in_order,
    labels,
    numbers,
    on_ranks,
    oracle,
    pairs,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric `.*` will save all:UserWarning"),
    pytest.mark.filterwarnings("ignore:Metric `.*` will store all:UserWarning"),
]
WORDS = ["a", "mean", "of", "means", "is", "no", "norm", "and", "one", "rank"]


def positive(rng: torch.Generator, n: int) -> Batch:
    return torch.rand(n, generator=rng) + 0.1, torch.rand(n, generator=rng) + 0.1


def distributions(rng: torch.Generator, n: int) -> Batch:
    return torch.rand((n, 4), generator=rng).softmax(1), torch.rand((n, 4), generator=rng).softmax(1)


def several_labels(rng: torch.Generator, n: int) -> Batch:
    return torch.rand((n, CLASSES), generator=rng), torch.randint(2, (n, CLASSES), generator=rng)


def queries(rng: torch.Generator, n: int) -> Batch:
    """Documents of seven queries, which lie on any rank and in any batch."""
    return (
        torch.rand(n, generator=rng),
        torch.randint(2, (n,), generator=rng),
        torch.randint(7, (n,), generator=rng),
    )


def colours(rng: torch.Generator, n: int) -> Batch:
    return torch.rand((n, 3, 16, 16), generator=rng), torch.rand((n, 3, 16, 16), generator=rng)


def tokens(rng: torch.Generator, n: int) -> Batch:
    return torch.randn((n, 6, 8), generator=rng), torch.randint(8, (n, 6), generator=rng)


def _sentence(rng: torch.Generator) -> str:
    chosen = torch.randint(len(WORDS), (int(torch.randint(4, 12, (1,), generator=rng)),), generator=rng)
    return " ".join(WORDS[int(i)] for i in chosen)


def sentences(rng: torch.Generator, n: int) -> tuple[list[str], list[str]]:
    return [_sentence(rng) for _ in range(n)], [_sentence(rng) for _ in range(n)]


def references(rng: torch.Generator, n: int) -> tuple[list[str], list[list[str]]]:
    return [_sentence(rng) for _ in range(n)], [[_sentence(rng), _sentence(rng)] for _ in range(n)]


CASES = {
    "classification precision": Case(lambda: classification.MulticlassPrecision(CLASSES), labels),
    "classification specificity": Case(lambda: classification.BinarySpecificity(), binary),
    "classification matthews": Case(lambda: classification.MulticlassMatthewsCorrCoef(CLASSES), labels),
    "classification jaccard": Case(lambda: classification.MulticlassJaccardIndex(CLASSES), labels),
    "classification hinge": Case(lambda: classification.MulticlassHingeLoss(CLASSES), labels),
    "classification each class": Case(
        lambda: classification.MulticlassAccuracy(CLASSES, average=None), labels
    ),
    "classification several labels": Case(lambda: classification.MultilabelF1Score(CLASSES), several_labels),
    "classification ranking": Case(lambda: classification.MultilabelRankingLoss(CLASSES), several_labels),
    "classification auroc": Case(lambda: classification.MulticlassAUROC(CLASSES), labels),
    "regression log error": Case(regression.MeanSquaredLogError, positive),
    "regression percentage": Case(regression.MeanAbsolutePercentageError, positive),
    "regression weighted percentage": Case(regression.WeightedMeanAbsolutePercentageError, positive),
    "regression log cosh": Case(regression.LogCoshError, numbers),
    "regression minkowski": Case(lambda: regression.MinkowskiDistance(3), numbers),
    "regression tweedie": Case(lambda: regression.TweedieDevianceScore(1.5), positive),
    "regression relative": Case(regression.RelativeSquaredError, numbers),
    "regression divergence": Case(regression.KLDivergence, distributions),
    "regression kendall": Case(regression.KendallRankCorrCoef, numbers),
    "regression rms": Case(lambda: regression.MeanSquaredError(squared=False), pairs),
    "retrieval map": Case(retrieval.RetrievalMAP, queries),
    "retrieval mrr": Case(retrieval.RetrievalMRR, queries),
    "retrieval ndcg": Case(retrieval.RetrievalNormalizedDCG, queries),
    "retrieval precision": Case(lambda: retrieval.RetrievalPrecision(top_k=2), queries),
    "retrieval hits": Case(lambda: retrieval.RetrievalHitRate(top_k=3), queries),
    "aggregation weighted": Case(aggregation.MeanMetric, positive),
    "image total variation": Case(
        lambda: image.TotalVariation(reduction="mean"), lambda r, n: images(r, n)[:1]
    ),
    "image quality index": Case(image.UniversalImageQualityIndex, images),
    "image spectral angle": Case(image.SpectralAngleMapper, colours),
    "image ergas": Case(image.ErrorRelativeGlobalDimensionlessSynthesis, colours),
    "text characters": Case(text.CharErrorRate, sentences),
    "text words": Case(text.WordErrorRate, sentences),
    "text matches": Case(text.MatchErrorRate, sentences),
    "text preserved": Case(text.WordInfoPreserved, sentences),
    "text edits": Case(text.EditDistance, sentences),
    "text bleu": Case(text.BLEUScore, references),
    "text chrf": Case(text.CHRFScore, references),
    "text translation edits": Case(text.TranslationEditRate, references),
    "text perplexity": Case(text.Perplexity, tokens),
    "wrapper by class": Case(
        lambda: wrappers.ClasswiseWrapper(classification.MulticlassAccuracy(CLASSES, average=None)), labels
    ),
    "wrapper several outputs": Case(
        lambda: wrappers.MultioutputWrapper(regression.MeanAbsoluteError(), 3), pairs
    ),
    "wrapper extremes": Case(lambda: wrappers.MinMaxMetric(regression.MeanSquaredError()), numbers),
}


@pytest.mark.parametrize("name", CASES)
def test_uneven_and_empty_ranks_give_the_single_process_answer(name: str):
    case = CASES[name]
    batches = batches_of(case, [[6, 9], [], [25]], seed=4)
    expected = flat(oracle(case, batches))
    for result in on_ranks(case, batches):
        assert in_order(result) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def feed(adapter: TorchMetric, values: list[float]) -> TorchMetric:
    for value in values:
        adapter.update(value)
    return adapter


@pytest.mark.parametrize("kind", [aggregation.SumMetric, aggregation.MeanMetric])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_running_window_is_that_of_torchmetrics(kind: type, count: int):
    values = [float(i * i) for i in range(count)]
    peer = wrappers.Running(kind(), window=3)
    for value in values:
        peer.update(value)
    adapter = feed(TorchMetric(wrappers.Running(kind(), window=3), tag="t"), values)
    assert float(adapter.compute()["t"]) == float(peer.compute())
    assert float(adapter.compute()["t"]) == float(peer.compute())  # computing changes nothing
    adapter.reset()
    assert adapter.compute() == {}


def test_a_running_window_over_ranks_holds_every_ranks_last_values():
    values = [[1.0, 2.0, 4.0, 8.0], [], [16.0]]

    def window(kind):
        return TorchMetric(wrappers.Running(kind(), window=3), "t")

    def body(context):
        coll = MetricCollection(context=context)
        for name, kind in (("sum", aggregation.SumMetric), ("mean", aggregation.MeanMetric)):
            coll.add(name, feed(TorchMetric(wrappers.Running(kind(), window=3), name), values[context.rank]))
        saved = MetricCollection({"m": feed(window(aggregation.SumMetric), values[context.rank])}, context)
        restored = MetricCollection({"m": window(aggregation.SumMetric)}, context)
        restored.load_state_dict(saved.state_dict())
        result = {tag: float(value) for tag, value in coll.compute().items()}
        return result, float(restored.compute()["t"])

    expected: Tensor = torch.tensor([2.0, 4.0, 8.0, 16.0])
    for result, restored in run_ranks(3, body):
        assert result == {"sum": float(expected.sum()), "mean": float(expected.mean())}
        assert restored == float(expected.sum())
