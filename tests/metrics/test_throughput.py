import pytest

from hjepa_dist_metrics import MetricCollection, Throughput
from tests.ranks import run_ranks


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
