"""torchmetrics' metrics in our collection: any split over ranks gives torchmetrics' answer on all data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchmetrics
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torchmetrics import aggregation, classification, image, regression

from hjepa_dist_metrics import ConfigError, MetricCollection, WeightedMean
from hjepa_dist_metrics.integrations.torchmetrics import TorchMetric
from hjepa_dist_metrics.parallel.transport import MemoryWorld
from tests.helpers.ranks import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric `.*` will save all:UserWarning"),
    pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero:UserWarning"),
]
Batch = tuple[Tensor, ...]
CLASSES = 5


def labels(rng: torch.Generator, n: int) -> Batch:
    target = torch.randint(CLASSES, (n,), generator=rng)
    return torch.randn((n, CLASSES), generator=rng).softmax(1), target


def binary(rng: torch.Generator, n: int) -> Batch:
    return torch.rand(n, generator=rng), torch.randint(2, (n,), generator=rng)


def numbers(rng: torch.Generator, n: int) -> Batch:
    target = torch.randn(n, generator=rng)
    return target + 0.3 * torch.randn(n, generator=rng), target


def pairs(rng: torch.Generator, n: int) -> Batch:
    target = torch.randn((n, 3), generator=rng)
    return target + 0.3 * torch.randn((n, 3), generator=rng), target


def images(rng: torch.Generator, n: int) -> Batch:
    return torch.rand((n, 1, 12, 12), generator=rng), torch.rand((n, 1, 12, 12), generator=rng)


def values(rng: torch.Generator, n: int) -> Batch:
    return (torch.randn(n, generator=rng),)


def many_labels(rng: torch.Generator, n: int) -> Batch:
    return torch.randint(20, (n,), generator=rng), torch.randint(20, (n,), generator=rng)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Any]
    batch: Callable[[torch.Generator, int], Batch]


CASES = {
    "accuracy": Case(lambda: classification.MulticlassAccuracy(CLASSES), labels),
    "micro_accuracy": Case(lambda: classification.MulticlassAccuracy(CLASSES, average="micro"), labels),
    "f1": Case(lambda: classification.MulticlassF1Score(CLASSES, average="weighted"), labels),
    "confusion": Case(lambda: classification.MulticlassConfusionMatrix(20), many_labels),
    "auroc_lists": Case(classification.BinaryAUROC, binary),
    "auroc_bins": Case(lambda: classification.BinaryAUROC(thresholds=11), binary),
    "average_precision": Case(lambda: classification.MulticlassAveragePrecision(CLASSES), labels),
    "calibration": Case(lambda: classification.BinaryCalibrationError(n_bins=5), binary),
    "cohen_kappa": Case(lambda: classification.MulticlassCohenKappa(CLASSES), labels),
    "mse": Case(regression.MeanSquaredError, numbers),
    "mse_outputs": Case(lambda: regression.MeanSquaredError(num_outputs=3), pairs),
    "mae": Case(regression.MeanAbsoluteError, numbers),
    "r2": Case(regression.R2Score, numbers),
    "explained_variance": Case(regression.ExplainedVariance, numbers),
    "r2_outputs": Case(lambda: regression.R2Score(multioutput="raw_values"), pairs),
    "explained_outputs": Case(lambda: regression.ExplainedVariance(multioutput="raw_values"), pairs),
    "pearson": Case(regression.PearsonCorrCoef, numbers),
    "pearson_outputs": Case(lambda: regression.PearsonCorrCoef(num_outputs=3), pairs),
    "concordance": Case(regression.ConcordanceCorrCoef, numbers),
    "spearman": Case(regression.SpearmanCorrCoef, numbers),
    "cosine": Case(lambda: regression.CosineSimilarity(reduction="mean"), pairs),
    "psnr": Case(lambda: image.PeakSignalNoiseRatio(data_range=1.0), images),
    "psnr_clamped": Case(lambda: image.PeakSignalNoiseRatio(data_range=(0.1, 0.9)), images),
    "psnr_each": Case(lambda: image.PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)), images),
    "ssim": Case(lambda: image.StructuralSimilarityIndexMeasure(data_range=1.0), images),
    "mean": Case(aggregation.MeanMetric, values),
    "sum": Case(aggregation.SumMetric, values),
    "max": Case(aggregation.MaxMetric, values),
    "min": Case(aggregation.MinMetric, values),
    "cat": Case(aggregation.CatMetric, values),
    "collection": Case(
        lambda: torchmetrics.MetricCollection(
            [
                classification.MulticlassPrecision(CLASSES),
                classification.MulticlassRecall(CLASSES),
                classification.MulticlassConfusionMatrix(CLASSES),
            ],
            prefix="val/",
        ),
        labels,
    ),
}


def batches_of(case: Case, sizes: Sequence[Sequence[int]], seed: int) -> list[list[Batch]]:
    """Draw every rank's batches; sizes are [ranks][batches]."""
    rng = torch.Generator().manual_seed(seed)
    return [[case.batch(rng, n) for n in rank] for rank in sizes]


def flat(result: Any) -> list[float]:
    if isinstance(result, dict):
        return [number for key in sorted(result) for number in flat(result[key])]
    return torch.as_tensor(result, dtype=torch.float64).reshape(-1).tolist()


def oracle(case: Case, batches: list[list[Batch]]) -> Any:
    metric = case.make()
    for batch in [batch for rank in batches for batch in rank]:
        metric.update(*batch)
    return metric.compute()


def on_ranks(
    case: Case, batches: list[list[Batch]], world: MemoryWorld | None = None
) -> list[dict[str, float]]:
    def body(context):
        coll = MetricCollection({"m": TorchMetric(case.make(), tag="t")}, context=context)
        for batch in batches[context.rank]:
            coll["m"].update(*batch)
        return {tag: float(value) for tag, value in coll.compute().items()}

    return run_ranks(len(batches), body, world)


def in_order(result: dict[str, float]) -> list[float]:
    """Return the numbers as `flat` orders those of a dict: by its keys, then by place."""
    parts = {tuple(int(p) if p.isdigit() else p for p in tag.split("/")): v for tag, v in result.items()}
    return [parts[key] for key in sorted(parts)]


@pytest.mark.parametrize("name", CASES)
def test_ranks_with_uneven_and_no_batches_give_the_single_process_answer(name: str):
    case = CASES[name]
    batches = batches_of(case, [[6, 9], [], [40]], seed=3)
    expected = flat(oracle(case, batches))
    for result in on_ranks(case, batches):
        assert in_order(result) == pytest.approx(expected, rel=1e-5, abs=1e-6)


SIZES = st.lists(st.lists(st.integers(2, 7), max_size=3), min_size=1, max_size=4).filter(
    lambda ranks: sum(map(sum, ranks)) >= 4
)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), sizes=SIZES, seed=st.integers(0, 1000))
def test_any_split_gives_the_single_process_answer(name: str, sizes: list[list[int]], seed: int):
    case = CASES[name]
    batches = batches_of(case, sizes, seed)
    expected = pytest.approx(flat(oracle(case, batches)), rel=1e-4, abs=1e-5, nan_ok=True)
    for result in on_ranks(case, batches):
        assert in_order(result) == expected


def test_every_kind_of_state_travels_in_one_sync_with_our_own_metrics():
    def body(context):
        coll = MetricCollection(context=context)
        coll.add("loss", WeightedMean("loss"))
        coll["loss"].update(1.0 + context.rank, 2)
        for name in ("accuracy", "micro_accuracy", "psnr", "mean", "max"):
            rng = torch.Generator().manual_seed(context.rank)
            coll.add(name, TorchMetric(CASES[name].make(), tag=name))
            coll[name].update(*CASES[name].batch(rng, 4))
        result = coll.compute()
        return float(result["loss"]), len(result)

    world = MemoryWorld(2)
    assert run_ranks(2, body, world) == [(1.5, 6)] * 2
    assert world.messages == 2


def test_lists_and_large_sums_take_a_second_message_a_round():
    case_names = ("confusion", "auroc_lists", "spearman", "cat")

    def body(context):
        coll = MetricCollection({n: TorchMetric(CASES[n].make(), tag=n) for n in case_names}, context=context)
        for name in case_names:
            coll[name].update(*CASES[name].batch(torch.Generator().manual_seed(context.rank), 4))
        coll.compute()

    world = MemoryWorld(3)
    run_ranks(3, body, world)
    assert world.messages <= 2 * 2 * 3


def test_torchmetrics_own_sync_is_never_called():
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("torchmetrics synced by itself")

    metric = aggregation.MeanMetric(distributed_available_fn=lambda: True, dist_sync_fn=refuse)
    adapter = TorchMetric(metric, tag="mean")
    adapter.update(torch.tensor([1.0, 3.0]))
    assert float(adapter.compute()["mean"]) == 2.0


def test_computing_leaves_the_wrapped_metric_as_it_is():
    adapter = TorchMetric(aggregation.SumMetric(), tag="sum")
    adapter.update(2.0)
    assert float(adapter.compute()["sum"]) == 2.0
    adapter.update(3.0)
    assert float(adapter.metric.sum_value) == 5.0
    assert float(adapter.compute()["sum"]) == 5.0
    adapter.reset()
    assert adapter.compute() == {}


def test_merging_adapters_is_seeing_both_data():
    case = CASES["pearson"]
    left, right = batches_of(case, [[8], [5]], seed=1)
    first, second = TorchMetric(case.make(), "t"), TorchMetric(case.make(), "t")
    first.update(*left[0])
    second.update(*right[0])
    expected = float(oracle(case, [left, right]))
    assert float(first.merge(second).compute()["t"]) == pytest.approx(expected, rel=1e-6)
    assert float(second.compute()["t"]) == pytest.approx(float(oracle(case, [right])), rel=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "pearson", "auroc_lists", "psnr_each", "confusion"])
@pytest.mark.parametrize("world", [1, 3])
def test_a_saved_state_continues_at_another_world_size(name: str, world: int):
    case = CASES[name]
    before, after = batches_of(case, [[5], [7]], 5), batches_of(case, [[4]] * world, 6)

    def first_half(context):
        coll = MetricCollection({"m": TorchMetric(case.make(), "t")}, context=context)
        coll["m"].update(*before[context.rank][0])
        return coll.state_dict()

    saved = run_ranks(2, first_half)[0]

    def second_half(context):
        coll = MetricCollection({"m": TorchMetric(case.make(), "t")}, context=context)
        coll["m"].update(*before[0][0])  # forgotten when the saved state is loaded
        coll.load_state_dict(saved)
        coll["m"].update(*after[context.rank][0])
        return {tag: float(value) for tag, value in coll.compute().items()}

    expected = pytest.approx(flat(oracle(case, [*before, *after])), rel=1e-5, abs=1e-6)
    for result in run_ranks(world, second_half):
        assert in_order(result) == expected


def test_a_formula_makes_values_of_a_curve():
    metric = classification.BinaryROC(thresholds=None)
    adapter = TorchMetric(metric, formula=lambda curve: {"roc/points": float(len(curve[0]))})
    adapter.update(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    assert float(adapter.compute()["roc/points"]) == 5.0


def test_tags_of_a_metric_a_vector_and_a_collection():
    single = TorchMetric(aggregation.MaxMetric())
    single.update(4.0)
    assert {tag: float(v) for tag, v in single.compute().items()} == {"MaxMetric": 4.0}
    vector = TorchMetric(classification.MulticlassAccuracy(2, average=None), tag="val/accuracy")
    vector.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    assert {tag: float(v) for tag, v in vector.compute().items()} == {
        "val/accuracy/0": 0.5,
        "val/accuracy/1": 1.0,
    }
    several = TorchMetric(torchmetrics.MetricCollection({"a": aggregation.SumMetric()}, prefix="val/"))
    several.update(1.0)
    assert {tag: float(v) for tag, v in several.compute().items()} == {"val/a": 1.0}


def test_something_else_is_refused_by_its_type():
    with pytest.raises(ConfigError, match="torchmetrics Metric or MetricCollection, got Linear"):
        TorchMetric(torch.nn.Linear(1, 1))


def test_a_background_sync_sees_the_moment_of_the_call():
    adapter = TorchMetric(aggregation.CatMetric(), formula=lambda parts: {"sum": parts.sum()})
    coll = MetricCollection({"m": adapter})
    adapter.update(torch.tensor([1.0, 2.0]))
    handle = coll.compute_async()
    adapter.update(torch.tensor([5.0]))
    assert float(handle.result(10)["sum"]) == 3.0
