import pytest
import torch

from hjepa_dist_metrics import ConfigError, MetricCollection, Throughput, TotalSamples
from hjepa_dist_metrics.metrics.system.flops import count_flops, peak_of
from tests.helpers.ranks import run_ranks


def numbers(values):
    return {tag: float(value) for tag, value in values.items()}


def test_arithmetic_on_one_rank():
    throughput = Throughput()
    throughput.update(samples=32, forward_s=0.02, backward_s=0.05, data_s=0.01)
    throughput.update(samples=32, forward_s=0.04, backward_s=0.07, data_s=0.01)
    values = numbers(throughput.compute())
    assert values["performance/samples_per_second"] == pytest.approx(64 / 0.20)  # 320 samples/s
    assert values["performance/forward_time_ms"] == pytest.approx(30.0)
    assert values["performance/backward_time_ms"] == pytest.approx(60.0)
    assert values["performance/forward_backward_ratio"] == pytest.approx(0.06 / 0.12)
    assert values["performance/step_time_ms"] == pytest.approx(100.0)


def test_samples_of_all_ranks_over_the_slowest_ranks_time():
    samples, seconds = [10, 20, 30, 0], [1.0, 2.0, 1.5, 0.5]

    def body(context):
        throughput = Throughput()
        throughput.update(samples=samples[context.rank], forward_s=seconds[context.rank])
        return numbers(MetricCollection({"t": throughput}, context).compute())

    for values in run_ranks(4, body):
        assert values["performance/samples_per_second"] == pytest.approx(60 / 2.0)
        assert values["performance/forward_time_ms"] == pytest.approx(1000 * sum(seconds) / 4)
        assert values["performance/forward_time_ms_max"] == pytest.approx(2000.0)
        assert values["performance/forward_time_ms_max_rank"] == 1


def test_a_rank_without_steps_does_not_count():
    def body(context):
        throughput = Throughput()
        if context.rank == 1:
            throughput.update(samples=8, forward_s=0.1, backward_s=0.1, step_s=0.4, tokens=80)
        return numbers(MetricCollection({"t": throughput}, context).compute())

    for values in run_ranks(3, body):
        assert values["performance/samples_per_second"] == pytest.approx(20.0)
        assert values["performance/tokens_per_second"] == pytest.approx(200.0)
        assert values["performance/step_time_ms"] == pytest.approx(400.0)


def test_times_that_arrive_later_and_the_monitors_own_share():
    throughput = Throughput()
    throughput.update(samples=4, step_s=2.0)
    throughput.add_time("forward", 0.5)
    throughput.add_time("monitor", 0.1)
    values = numbers(throughput.compute())
    assert values["performance/forward_time_ms"] == pytest.approx(500.0)
    assert values["performance/monitor_overhead_percent"] == pytest.approx(5.0)
    assert "performance/backward_time_ms" not in values


def test_nothing_before_the_first_step():
    assert Throughput().compute() == {}


def test_utilization_is_the_jobs_arithmetic_over_all_peaks():
    def body(context, peak):
        throughput = Throughput(flops_per_sample=100.0, peak_flops=peak[context.rank])
        throughput.update(samples=30 if context.rank else 10, step_s=2.0)
        return numbers(MetricCollection({"t": throughput}, context).compute())

    for values in run_ranks(2, lambda context: body(context, [1500.0, 2500.0])):
        assert values["performance/mfu"] == pytest.approx(40 * 100 / 2.0 / 4000)
    for values in run_ranks(2, lambda context: body(context, [1500.0, None])):
        assert "performance/mfu" not in values


def test_flops_of_a_linear_layer_by_hand():
    layer = torch.nn.Linear(8, 5)
    x = torch.randn(3, 8)
    # 2 * 3 * 8 * 5 forward; the weight's gradient costs the same, and x needs none
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * 240
    with pytest.raises(ConfigError, match="no floating-point operation"):
        count_flops(lambda: None)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 3090", None),
        ("Some A1000 Card", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_of(name) == peak


def test_bad_flops_and_phases():
    with pytest.raises(ConfigError, match="peak_flops must be a positive number, got 0"):
        Throughput(peak_flops=0)
    with pytest.raises(ConfigError, match="'sideways'"):
        Throughput().add_time("sideways", 1.0)


def test_totals_survive_a_reset_of_the_window():
    def body(context):
        total, window = TotalSamples(), Throughput()
        for _ in range(3):
            total.update(8 if context.rank else 4, seconds=0.5, tokens=100)
            window.update(8, step_s=0.5)
            window.reset()
        collection = MetricCollection({"total": total, "window": window}, context)
        return numbers(collection.compute())

    for values in run_ranks(2, body):
        assert values == {
            "performance/total_samples": 36.0,
            "performance/total_tokens": 600.0,
            "performance/samples_per_second_total": 24.0,
        }


def test_merging_and_looking_settle_what_was_gathered():
    one, other = Throughput(), Throughput()
    one.update(10, forward_s=1.0)
    other.update(30, forward_s=3.0)
    one.merge(other)
    assert one.states["forward_s"].total == 4.0
    values = numbers(one.compute())
    assert values["performance/samples_per_second"] == pytest.approx(10.0)
    assert numbers(other.compute())["performance/samples_per_second"] == pytest.approx(10.0)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (4, 1), (1, 3)])
@pytest.mark.parametrize("make", [Throughput, TotalSamples])
def test_rates_go_on_from_a_checkpoint_at_any_number_of_ranks(make, before, after):
    """Every rank takes 10 samples in a second, before and after."""

    def first(context):
        collection = MetricCollection({"t": make()}, context)
        collection["t"].update(10, **second)
        return collection.state_dict()

    def then(context):
        collection = MetricCollection({"t": make()}, context)
        collection.load_state_dict(saved)
        loaded = numbers(collection.compute())
        collection["t"].update(10, **second)
        return loaded, numbers(collection.compute())

    second = {"step_s": 1.0} if make is Throughput else {"seconds": 1.0}
    saved = run_ranks(before, first)[0]
    tag = "performance/samples_per_second" + ("" if make is Throughput else "_total")
    for loaded, later in run_ranks(after, then):
        assert loaded[tag] == pytest.approx(10 * before)
        assert later[tag] == pytest.approx((10 * before + 10 * after) / 2)
        if make is Throughput:
            for values in (loaded, later):
                assert values["performance/step_time_ms"] == pytest.approx(1000.0)
                assert values["performance/step_time_ms_max"] == pytest.approx(1000.0)
