"""MetricsLogger: what it is given is what TensorBoard's and the JSON reader find, on any number of ranks."""

import gc
import logging
import math
import shutil
import threading
import weakref
from itertools import chain

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hjepa_dist_metrics import ConfigError, DesyncError, MetricsLogger, ProcessContext
from hjepa_dist_metrics.sinks import read_jsonl


def board(log_dir, name="run"):
    guidance = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(log_dir / "tensorboard" / name), size_guidance=guidance).Reload()


def lines(log_dir, name="run"):
    return read_jsonl(log_dir / "metrics" / f"{name}.jsonl")


def points(log_dir, tag, name="run"):
    return [(event.step, event.value) for event in board(log_dir, name).Scalars(tag)]


@pytest.fixture
def logger(tmp_path):
    with MetricsLogger("run", tmp_path) as made:
        yield made


NUMBERS = {
    "python": (0.5, 0.5),
    "integer": (3, 3.0),
    "boolean": (True, 1.0),
    "numpy": (np.float32(0.25), 0.25),
    "numpy integer": (np.int64(7), 7.0),
    "zero dimensions": (torch.tensor(0.125), 0.125),
    "one element": (torch.tensor([[2.0]]), 2.0),
    "bfloat16": (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    "half": (torch.tensor(0.5, dtype=torch.float16), 0.5),
    "integer tensor": (torch.tensor(4), 4.0),
    "boolean tensor": (torch.tensor(True), 1.0),
    "gradient": (torch.tensor(2.5, requires_grad=True) * 2, 5.0),
    "array": (np.array([9.0]), 9.0),
    "infinity": (math.inf, math.inf),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_kind_of_number_is_written(tmp_path, logger, kind):
    given, expected = NUMBERS[kind]
    logger.log_metrics({"loss": given}, step=4, prefix="train")
    logger.finish()
    assert points(tmp_path, "train/loss") == [(4, expected)]
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [(4, expected)]


def test_nan_is_written_as_such(tmp_path, logger):
    logger.log_metrics({"loss": torch.tensor(math.nan)}, step=0)
    logger.finish()
    assert math.isnan(lines(tmp_path)[0]["loss"])


def test_nested_dictionaries_and_prefixes_give_tags(tmp_path, logger):
    logger.log_metrics({"loss": {"h0": 1, "h1": 2}, "lr": 3}, 0, prefix="train/")
    logger.finish()
    assert board(tmp_path).Tags()["scalars"] == ["train/loss/h0", "train/loss/h1", "train/lr"]


@pytest.mark.parametrize(
    "metrics",
    [
        {"a": [1, 2]},
        {"a": torch.zeros(2)},
        {"a": "text"},
        {"a": None},
        {"a": 1j},
        {"": 1},
        {"a/b": 1, "a": {"b": 2}},
    ],
)
def test_what_is_no_number_is_refused_at_once(logger, metrics):
    with pytest.raises(ConfigError, match="metric"):
        logger.log_metrics(metrics)


def test_a_value_is_taken_when_it_is_logged(tmp_path, logger):
    number, picture = torch.tensor(1.0), np.zeros((2, 2), np.uint8)
    weights = torch.ones(8)
    logger.log_metrics({"a": number}, 0)
    logger.log_image("picture", picture, 0)
    logger.log_histogram("weights", weights, 0)
    number.fill_(2.0)
    picture.fill(255)
    weights.zero_()
    logger.finish()
    assert points(tmp_path, "a") == [(0, 1.0)]
    assert lines(tmp_path)[-1]["weights"]["histogram"]["mean"] == 1.0


def test_calls_without_a_step_count_by_themselves(tmp_path, logger):
    for value in range(3):
        logger.log_metrics({"loss": value}, prefix="train")
        logger.log_metrics({"loss": -value}, prefix="val")
        logger.log_text("note", "same step")
    logger.log_metrics({"loss": 9}, step=50, prefix="train")
    logger.log_metrics({"loss": 10}, prefix="train")
    logger.finish()
    assert points(tmp_path, "train/loss") == [(0, 0), (1, 1), (2, 2), (50, 9), (51, 10)]
    assert points(tmp_path, "val/loss") == [(0, 0), (1, -1), (2, -2)]
    assert [event.step for event in board(tmp_path).Tensors("note/text_summary")] == [0, 1, 2]


def test_weighted_means_match_numpy_and_start_anew(tmp_path, logger):
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=20), rng.integers(0, 5, size=20)
    for value, weight in zip(values, weights, strict=True):
        logger.accumulate_metrics({"loss": value, "acc": {"top1": torch.tensor(value)}}, weight=int(weight))
    means = logger.log_accumulated_metrics(step=7, prefix="val")
    assert means == pytest.approx(
        {"val/loss": np.average(values, weights=weights), "val/acc/top1": np.average(values, weights=weights)}
    )
    logger.accumulate_metrics({"loss": 1.0})
    assert logger.log_accumulated_metrics(reset=False) == {"loss": 1.0}
    assert logger.log_accumulated_metrics() == {"loss": 1.0}
    assert logger.log_accumulated_metrics() == {}
    logger.finish()
    assert points(tmp_path, "val/loss")[0][0] == 7


def test_an_empty_batch_adds_nothing_even_if_its_mean_is_nan(logger):
    logger.accumulate_metrics({"loss": math.nan}, weight=0)
    assert logger.log_accumulated_metrics() == {}
    logger.accumulate_metrics({"loss": 2.0}, weight=3)
    assert logger.log_accumulated_metrics() == {"loss": 2.0}


def test_each_name_may_have_a_weight(logger):
    logger.accumulate_metrics({"a": 1.0, "b": 1.0}, weight={"a": 1, "b": 3})
    logger.accumulate_metrics({"a": 3.0, "b": 3.0}, weight={"a": 3, "b": 1})
    assert logger.log_accumulated_metrics() == {"a": 2.5, "b": 1.5}
    with pytest.raises(ConfigError, match="no weight for 'c'"):
        logger.accumulate_metrics({"c": 1.0}, weight={"a": 1})


@pytest.mark.parametrize(
    ("metrics", "weight", "message"),
    [
        ({"a": 9.0, "c": 1.0}, {"a": 1}, "no weight for 'c'"),
        ({"a": 9.0}, [1, 2], "'weight of a' must be a number"),
        ({"a": 9.0, "b": "high"}, 1, "'b' must be a number"),
    ],
)
def test_what_is_refused_changes_nothing(logger, metrics, weight, message):
    logger.accumulate_metrics({"a": 1.0})
    with pytest.raises(ConfigError, match=message):
        logger.accumulate_metrics(metrics, weight)
    assert logger.log_accumulated_metrics() == {"a": 1.0}


def failing_once(log_dir):
    """Fail on the last rank within the update itself; return what each of three logs gave."""
    context = ProcessContext.current()
    with MetricsLogger("run", log_dir) as logger:
        found = []
        for call in range(3):
            if call == 0 and context.rank == context.world_size - 1:
                logger._means.failure = "RuntimeError: out of memory"
            logger.accumulate_metrics({"a": float(call)})
            try:
                found.append(logger.log_accumulated_metrics())
            except DesyncError as error:
                found.append(str(error))
        return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_failed_update_is_told_once_on_every_rank(tmp_path, gloo, world_size):
    for told, *after in gloo(world_size).run(failing_once, tmp_path):
        assert "out of memory" in told
        assert after == [{"a": 0.5}, {"a": 2.0}]


def test_accumulating_keeps_no_autograd_graph(logger):
    x = torch.ones(4, requires_grad=True)
    hidden = x * 2
    seen = weakref.ref(hidden)
    logger.accumulate_metrics({"loss": hidden.sum()})
    del hidden
    gc.collect()
    assert seen() is None


def test_the_mean_of_many_small_numbers_does_not_drift(logger):
    for _ in range(1000):
        logger.accumulate_metrics({"loss": torch.tensor(0.1, dtype=torch.float32)})
    expected = float(np.float32(0.1))
    assert logger.log_accumulated_metrics()["loss"] == pytest.approx(expected, rel=1e-12)


def on_ranks(log_dir, values, weights):
    """What one rank does: the calls of any training script."""
    import torch.distributed as dist

    rank = dist.get_rank()
    with MetricsLogger("run", log_dir) as logger:
        for value, weight in zip(values[rank], weights[rank], strict=True):
            logger.accumulate_metrics({"loss": value, f"only/{rank}": float(rank)}, weight)
        means = logger.log_accumulated_metrics(step=3, prefix="val")
        logger.log_metrics({"lr": 0.1}, step=3)
        logger.log_image("picture", np.zeros((4, 4)), step=3)
        logger.log_system_metrics(step=3)
        state = logger.state_dict()
        return means, logger.run_name, threading.active_count(), state["step"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_average_exactly_and_only_the_first_writes(tmp_path, gloo, world_size):
    rng = np.random.default_rng(1)
    values = [rng.normal(size=n).tolist() for n in (5, 0, 9)[:world_size]]  # uneven, one rank with nothing
    weights = [rng.integers(1, 9, size=len(v)).tolist() for v in values]
    answers = gloo(world_size).run(on_ranks, tmp_path, values, weights)
    flat, all_weights = list(chain(*values)), list(chain(*weights))
    expected = {"val/loss": np.average(flat, weights=all_weights)}
    expected |= {f"val/only/{rank}": float(rank) for rank in range(world_size) if values[rank]}
    for means, name, _, step in answers:
        assert means == pytest.approx(expected, rel=1e-12)
        assert (name, step) == ("run", 3)
    assert len(list((tmp_path / "tensorboard" / "run").iterdir())) == 1
    assert points(tmp_path, "val/loss") == [(3, pytest.approx(expected["val/loss"], rel=1e-6))]
    assert "lr" in board(tmp_path).Tags()["scalars"]


def continue_on_ranks(log_dir, state, extra):
    import torch.distributed as dist

    with MetricsLogger("run", log_dir, resume=True) as logger:
        logger.load_state_dict(state)
        logger.accumulate_metrics({"loss": extra[dist.get_rank()]})
        return logger.log_accumulated_metrics()


def test_running_means_survive_a_changed_world_size(tmp_path, gloo):
    with MetricsLogger("run", tmp_path) as logger:
        logger.log_metrics({"a": 1}, step=10)
        for value in (1.0, 2.0, 6.0):
            logger.accumulate_metrics({"loss": value})
        state = logger.state_dict()
    for means in gloo(2).run(continue_on_ranks, tmp_path, state, [3.0, 8.0]):
        assert means == {"loss": 4.0}
    assert points(tmp_path, "loss") == [(11, 4.0)]  # behind the last step logged before


def test_histograms_count_like_numpy(tmp_path, logger):
    values = np.random.default_rng(2).normal(size=1000)
    logger.log_histogram("h", torch.from_numpy(values), 0, edges=[-4, -1, 0, 1, 4])
    logger.log_histogram("with/nan", np.array([1.0, math.nan, math.inf]), 0)
    logger.finish()
    histogram = board(tmp_path).Histograms("h")[0].histogram_value
    assert histogram.bucket == np.histogram(values, bins=[-4, -1, 0, 1, 4])[0].tolist()
    assert histogram.min == pytest.approx(values.min())
    assert histogram.sum_squares == pytest.approx((values**2).sum())
    summary = {k: v for line in lines(tmp_path) for k, v in line.items()}["with/nan"]["histogram"]
    assert (summary["count"], summary["nonfinite"], summary["max"]) == (1, 2, 1.0)


def test_model_histograms_have_the_models_names(tmp_path, logger):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    wrapped = nn.Module()
    wrapped.module = model  # what DistributedDataParallel looks like
    model(torch.randn(5, 3)).square().sum().backward()
    logger.log_model_gradients(wrapped, 1)
    logger.log_model_weights(model, 1)
    logger.finish()
    names = ["0.bias", "0.weight", "1.weight"]
    tags = board(tmp_path).Tags()["histograms"]
    assert tags == sorted(f"{kind}/{name}" for kind in ("gradients", "weights") for name in names) or set(
        tags
    ) == {f"{kind}/{name}" for kind in ("gradients", "weights") for name in names}
    histogram = board(tmp_path).Histograms("gradients/0.weight")[0].histogram_value
    gradient = model[0].weight.grad.double()
    assert histogram.num == 12
    assert histogram.sum == pytest.approx(float(gradient.sum()))
    assert (histogram.min, histogram.max) == pytest.approx((float(gradient.min()), float(gradient.max())))


def test_text_embedding_hparams_graph_and_video_arrive(tmp_path, logger):
    logger.log_text("notes/plan", "**bold**", 2)
    vectors = torch.randn(4, 3)
    logger.log_embedding("e", vectors, labels=torch.arange(4), images=torch.rand(4, 1, 5, 5), step=2)
    logger.log_hparams({"lr": 0.1, "model": {"depth": 3, "act": None}}, {"hparam/accuracy": 0.5})
    logger.log_video("masks", torch.rand(6, 16) > 0.5, 2, grid=(4, 4))
    logger.log_graph(nn.Linear(3, 2), torch.zeros(1, 3))
    logger.finish()
    accumulator = board(tmp_path)
    assert accumulator.Tensors("notes/plan/text_summary")[0].tensor_proto.string_val == [b"**bold**"]
    assert accumulator.Tags()["graph"]
    assert points(tmp_path, "hparam/accuracy") == [(2, 0.5)]
    assert "depth" in str(accumulator.SummaryMetadata("_hparams_/session_start_info"))
    saved = np.loadtxt(tmp_path / "tensorboard/run/00002/e/tensors.tsv")
    np.testing.assert_allclose(saved, vectors.numpy(), rtol=1e-5)
    assert accumulator.Images("masks")[0].width == 128


def test_a_graph_leaves_model_and_random_numbers_alone(logger):
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    logger.log_graph(model, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model] == [True, False, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_second_run_gets_a_suffix_and_resume_goes_on(tmp_path):
    for _ in range(2):
        with MetricsLogger("run", tmp_path) as logger:
            for step in range(5):
                logger.log_metrics({"a": step}, step)
    assert logger.run_name == "run-2"
    with MetricsLogger("run", tmp_path, resume=True, start_step=3) as logger:
        for step in range(3, 6):
            logger.log_metrics({"a": 10 * step}, step)
    assert points(tmp_path, "a") == [(0, 0), (1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]
    assert [line["step"] for line in lines(tmp_path)] == list(range(6))
    assert points(tmp_path, "a", "run-2") == [(step, step) for step in range(5)]


def test_resume_without_json_lines_finds_the_last_step_in_the_events(tmp_path):
    config = {"jsonl": {"enabled": False}}
    with MetricsLogger("run", tmp_path, config) as logger:
        logger.log_metrics({"a": 1}, 41)
    with MetricsLogger("run", tmp_path, config, resume=True) as logger:
        logger.log_metrics({"a": 2})
    assert points(tmp_path, "a") == [(41, 1), (42, 2)]


def test_switches_and_settings_decide_what_is_written(tmp_path):
    with MetricsLogger("run", tmp_path, use_tensorboard=False) as logger:
        logger.log_metrics({"a": 1})
    assert not list((tmp_path / "tensorboard" / "run").iterdir())
    settings = {
        "logging": {"experiment_name": "other", "log_dir": str(tmp_path), "jsonl": {"enabled": False}}
    }
    with MetricsLogger(config=settings) as logger:
        logger.log_metrics({"a": 1})
    assert (logger.run_name, points(tmp_path, "a", "other")) == ("other", [(0, 1)])
    assert not (tmp_path / "metrics" / "other.jsonl").exists()


def test_a_removed_directory_is_said_once_and_the_loop_goes_on(tmp_path, caplog):
    with MetricsLogger("run", tmp_path) as logger:
        logger.flush()
        shutil.rmtree(tmp_path / "tensorboard")
        for step in range(3):
            logger.log_metrics({"a": step}, step)
            logger.flush()
    assert [line["a"] for line in lines(tmp_path)] == [0, 1, 2]
    (failure,) = logger.failures
    assert "TensorBoard" in failure
    assert "switched off" in failure
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


def test_system_metrics_are_the_jobs(tmp_path, logger):
    logger.log_system_metrics(step=5)
    logger.log_system_metrics()
    logger.finish()
    assert [step for step, _ in points(tmp_path, "system/ram_gb")] == [5, 6]
    assert all(0.01 < value < 100 for _, value in points(tmp_path, "system/ram_gb"))


def test_after_finish_calls_do_nothing(tmp_path, logger):
    logger.log_metrics({"a": 1}, 0)
    logger.finish()
    logger.finish()
    logger.log_metrics({"a": 2}, 1)
    assert points(tmp_path, "a") == [(0, 1)]


@pytest.mark.parametrize(("error", "status"), [(None, 1), (RuntimeError("training broke"), 2)])
def test_the_run_says_how_it_ended(tmp_path, error, status):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def run():
        with MetricsLogger("run", tmp_path) as logger:
            logger.log_hparams({"lr": 1.0}, ["a"])
            if error:
                raise error

    if error:
        with pytest.raises(RuntimeError, match="training broke"):
            run()
    else:
        run()
    content = board(tmp_path).SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(content).session_end_info.status == status


def sharded_on_ranks(log_dir):
    """Parameters and a number that no rank holds whole, as FSDP2 leaves them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    model = nn.Linear(3, 5, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(15.0).reshape(5, 3))
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    with MetricsLogger("run", log_dir) as logger:
        logger.log_model_weights(model, 0)
        logger.log_metrics({"sum": model.weight.detach().sum()}, 0)
        return logger.failures


def test_sharded_parameters_are_counted_whole(tmp_path, gloo):
    assert gloo(2).run(sharded_on_ranks, tmp_path) == [[], []]
    histogram = board(tmp_path).Histograms("weights/weight")[0].histogram_value
    assert (histogram.num, histogram.sum, histogram.max) == (15, sum(range(15)), 14)
    assert points(tmp_path, "sum") == [(0, sum(range(15)))]


def test_pandas_reads_the_lines(tmp_path, logger):
    pandas = pytest.importorskip("pandas", reason="pandas, another reader of JSON lines, is not installed")
    for step in range(5):
        logger.log_metrics({"loss": 1 / (1 + step), "sometimes": step}, step)
    logger.log_metrics({"loss": 0.125}, 7)
    logger.finish()
    table = pandas.read_json(tmp_path / "metrics" / "run.jsonl", lines=True).set_index("step")
    assert table["loss"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0.125])
    assert table.index.tolist() == [0, 1, 2, 3, 4, 7]
    assert table["sometimes"].isna().tolist() == [False] * 5 + [True]
