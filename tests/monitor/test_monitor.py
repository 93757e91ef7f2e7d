import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hjepa_dist_metrics import ConfigError, ProcessContext, TrainingMonitor, WeightedMean
from hjepa_dist_metrics.sinks import read_jsonl

DIM = 6


def config(tmp_path, **logging):
    return {"experiment_name": "run", "log_dir": str(tmp_path), "log_frequency": 1, **logging}


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(DIM, DIM)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def batches(steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, DIM, generator=generator) for _ in range(steps)]


def train(monitor, model, optimizer, data, max_norm=0.5, **observations):
    """A plain loop; returns what a reader of it would compute by hand."""
    seen = {"loss": [], "norm": []}
    for x in monitor.batches(data):
        with monitor.forward():
            y = model(x)
            loss = (y - x).square().mean()
        with monitor.backward():
            loss.backward()
        seen["loss"].append(loss.item())
        seen["norm"].append(math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters())))
        monitor.clip_grad_norm_(max_norm)
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(samples=len(x), losses=loss, **observations)
    return seen


def lines(tmp_path, name="run"):
    return read_jsonl(tmp_path / "metrics" / f"{name}.jsonl")


def series(tmp_path, tag):
    return {line["step"]: line[tag] for line in lines(tmp_path) if tag in line}


@pytest.mark.parametrize("sync", ["inline", "background"])
def test_a_plain_loop_is_written_step_by_step(tmp_path, sync):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, sync=sync)) as monitor:
        seen = train(monitor, model, optimizer, batches(12))
    assert series(tmp_path, "loss/total") == pytest.approx(dict(enumerate(seen["loss"])), rel=1e-6)
    norms = series(tmp_path, "gradient/global_norm_before_clip")
    assert norms == pytest.approx(dict(enumerate(seen["norm"])), rel=1e-6)
    clipped = np.array(seen["norm"]) > 0.5
    percentage = series(tmp_path, "gradient/clipping_percentage")
    assert percentage == pytest.approx({i: 100 * clipped[: i + 1].mean() for i in range(12)})
    assert set(series(tmp_path, "learning_rate/base_lr").values()) == {0.1}
    assert series(tmp_path, "train/loss") == series(tmp_path, "loss/total")


def test_between_logs_the_loss_is_the_mean_of_all_steps(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=4)) as monitor:
        seen = train(monitor, model, optimizer, batches(11))
    losses = np.array(seen["loss"])
    # the last two steps are logged at the end
    expected = {0: losses[0], 4: losses[1:5].mean(), 8: losses[5:9].mean(), 10: losses[9:].mean()}
    assert series(tmp_path, "loss/total") == pytest.approx(expected, rel=1e-6)


def test_event_files_hold_the_same_numbers(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path), hparams={"lr": 0.1}) as monitor:
        seen = train(monitor, model, optimizer, batches(5))
        monitor.log({"val/knn_accuracy": torch.tensor(0.25)})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload()
    points = {event.step: event.value for event in events.Scalars("loss/total")}
    assert points == pytest.approx(dict(enumerate(seen["loss"])), rel=1e-6)
    assert [(e.step, e.value) for e in events.Scalars("val/knn_accuracy")] == [(4, 0.25)]
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_features_only_on_their_cadence(tmp_path):
    model, optimizer = problem()
    rows = torch.randn(20, DIM)
    settings = config(tmp_path, cadence={"representations": 3})
    with TrainingMonitor(model, optimizer, settings) as monitor:
        train(monitor, model, optimizer, batches(7), features={"context": rows, "target": 2 * rows})
    for name in ("context", "target"):
        assert set(series(tmp_path, f"collapse/{name}_num_samples").items()) == {(0, 20), (3, 20), (6, 20)}


def test_due_tells_whether_the_coming_step_logs(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, cadence={"representations": 2})) as monitor:
        due = []
        for _ in range(5):
            due.append(monitor.due("representations"))
            monitor.step(samples=1)
        with pytest.raises(ConfigError, match="cadence family"):
            monitor.due("nothing")
    assert due == [True, False, True, False, True]


def test_a_users_own_metric_travels_along(tmp_path):
    model, optimizer = problem()
    mine = WeightedMean("mine/length")
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=2)) as monitor:
        monitor.add_metric("length", mine)
        for length in (3.0, 5.0, 7.0):
            mine.update(length, 2)
            monitor.step(samples=2)
    assert series(tmp_path, "mine/length") == {0: 3.0, 2: 6.0}


def test_epoch_loss_is_the_mean_over_the_epochs_samples(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        first = train(monitor, model, optimizer, batches(3))
        monitor.end_epoch()
        second = train(monitor, model, optimizer, batches(3))
        monitor.end_epoch()
    expected = {2: np.mean(first["loss"]), 5: np.mean(second["loss"])}
    assert series(tmp_path, "train_epoch/loss") == pytest.approx(expected, rel=1e-6)


def test_wrong_input_raises_where_it_happens_on_one_process(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, cadence={"representations": 1})) as monitor:
        monitor.step(samples=4, features=torch.randn(4, DIM))
        with pytest.raises(ConfigError, match=f"expected features .N, {DIM}"):
            monitor.step(samples=4, features=torch.randn(4, DIM + 1))


def test_nan_loss_raises_an_alert_at_once_and_training_goes_on(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        monitor.step(samples=4, losses=1.0)
        monitor.step(samples=4, losses=math.nan)
        monitor.step(samples=4, losses=1.0)
        monitor.flush()
        assert [(alert.step, alert.rule) for alert in monitor.alerts] == [(1, "nonfinite")]


def test_collapsed_features_raise_an_alert_after_patience(tmp_path):
    model, optimizer = problem()
    settings = config(tmp_path, cadence={"representations": 1}, alerts={"patience": 2, "patience_steps": 1})
    with TrainingMonitor(model, optimizer, settings) as monitor:
        for _ in range(4):
            monitor.step(samples=50, features=torch.ones(50, DIM))
        monitor.flush()
        assert [alert.rule for alert in monitor.alerts] == ["point_collapse"]
        assert monitor.latest["alerts/point_collapse"] == 1.0
        health = monitor.health()
        assert (health.verdict, health.findings[0].since, health.score) == ("failing", 0, 0.0)
        assert "all samples have the same features since step 0" in health.headline


def test_resume_continues_counts_and_steps(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        seen = train(monitor, model, optimizer, batches(4))
        saved = monitor.state_dict()
        train(monitor, model, optimizer, batches(2, seed=9))  # lost with the process that dies here
    with TrainingMonitor(model, optimizer, config(tmp_path), start_step=4, resume=True) as monitor:
        monitor.load_state_dict(saved)
        later = train(monitor, model, optimizer, batches(3, seed=5))
    norms = np.array(seen["norm"] + later["norm"])
    percentage = series(tmp_path, "gradient/clipping_percentage")
    assert percentage == pytest.approx({i: 100 * (norms > 0.5)[: i + 1].mean() for i in range(7)})
    assert [line["step"] for line in lines(tmp_path) if "loss/total" in line] == list(range(7))


def test_resume_goes_on_being_patient(tmp_path):
    """Two bad evaluations before the checkpoint and one after it make three."""
    model, optimizer = problem()
    settings = config(tmp_path, cadence={"representations": 1}, alerts={"patience": 3, "patience_steps": 0})
    with TrainingMonitor(model, optimizer, settings) as monitor:
        for _ in range(2):
            monitor.step(samples=50, features=torch.ones(50, DIM))
        saved = monitor.state_dict()
        assert monitor.alerts == []
    with TrainingMonitor(model, optimizer, settings, start_step=2, resume=True) as monitor:
        monitor.load_state_dict(saved)
        monitor.step(samples=50, features=torch.ones(50, DIM))
        monitor.flush()
        assert [(alert.step, alert.rule) for alert in monitor.alerts] == [(2, "point_collapse")]


def test_a_second_run_gets_its_own_files(tmp_path):
    model, optimizer = problem()
    for expected in ("run", "run-2"):
        with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
            monitor.step(samples=1, losses=1.0)
            assert monitor.run_name == expected
    assert len(lines(tmp_path, "run-2")) == 1


def test_only_the_main_process_makes_files(tmp_path):
    model, optimizer = problem()
    other = dataclasses.replace(ProcessContext.current(), is_main=False)
    with TrainingMonitor(model, optimizer, config(tmp_path), context=other) as monitor:
        train(monitor, model, optimizer, batches(2))
        monitor.log({"val/loss": 1.0})
        monitor.flush()
        assert monitor.latest["loss/total"] > 0
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_fails_does_not_stop_training(tmp_path, caplog):
    (tmp_path / "metrics").write_text("a file where a directory should be")
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        seen = train(monitor, model, optimizer, batches(3))
        monitor.flush()
        assert len(monitor.failures) == 1
        assert "JSON lines" in monitor.failures[0]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload()
    assert len(events.Scalars("loss/total")) == len(seen["loss"])


def test_an_exception_in_the_loop_keeps_what_was_logged(tmp_path):
    model, optimizer = problem()

    def loop():
        with TrainingMonitor(model, optimizer, config(tmp_path, sync="inline")) as monitor:
            monitor.step(samples=1, losses=2.0)
            raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        loop()
    assert series(tmp_path, "loss/total") == {0: 2.0}


def test_unknown_dashboard_is_an_error_before_anything_starts(tmp_path):
    model, optimizer = problem()
    with pytest.raises(ConfigError, match="dashboard"):
        TrainingMonitor(model, optimizer, config(tmp_path, dashboards=["los"]))


@pytest.mark.parametrize("cadence", [{}, {"system": 3}, {"representations": 10}])
def test_the_last_steps_are_logged_whatever_else_is_due(tmp_path, cadence):
    model, optimizer = problem()
    mine = WeightedMean("mine/number")
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=20, cadence=cadence)) as monitor:
        monitor.add_metric("number", mine, family="representations")
        for step in range(45):
            mine.update(float(step))
            monitor.step(samples=2, losses=float(step))
    assert series(tmp_path, "loss/total") == {0: 0.0, 20: np.mean(range(1, 21)), 40: 30.5, 44: 42.5}
    assert series(tmp_path, "performance/total_samples") == {0: 2, 20: 42, 40: 82, 44: 90}
    numbers = series(tmp_path, "mine/number")
    assert max(numbers) == 44
    every = cadence.get("representations", 100)
    last = 44 // every * every
    assert numbers[44] == np.mean(range(last + 1, 45))


def test_a_run_that_has_logged_everything_writes_nothing_at_its_end(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=2)) as monitor:
        for _ in range(3):
            monitor.step(samples=2, losses=1.0)
    assert [line["step"] for line in lines(tmp_path)] == [0, 2]


def test_samples_between_the_last_log_and_a_checkpoint_count(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=10)) as monitor:
        for _ in range(16):
            monitor.step(samples=2, tokens=3, losses=1.0)
        saved = monitor.state_dict()
    settings = config(tmp_path, log_frequency=10)
    with TrainingMonitor(model, optimizer, settings, start_step=16, resume=True) as monitor:
        monitor.load_state_dict(saved)
        for _ in range(10):
            monitor.step(samples=2, tokens=3, losses=1.0)
    for tag, each in (("samples", 2), ("tokens", 3)):
        totals = series(tmp_path, f"performance/total_{tag}")
        assert totals == {step: (step + 1) * each for step in (0, 10, 15, 20, 25)}


def test_a_process_outside_the_group_does_nothing(tmp_path):
    model, optimizer = problem()
    outside = ProcessContext(0, 1, torch.device("cpu"), is_main=False, is_member=False)
    with TrainingMonitor(model, optimizer, config(tmp_path), context=outside) as monitor:
        train(monitor, model, optimizer, batches(3), features=torch.randn(20, DIM))
        monitor.end_epoch()
    assert monitor.step_number == 3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("sync", "clean"), [("inline", 2), ("background", 3)])
def test_a_stop_is_told_as_soon_as_all_ranks_know(tmp_path, sync, clean):
    model, optimizer = problem()
    settings = config(tmp_path, log_frequency=100, cadence={"scalars": 2}, sync=sync)
    told = []
    with TrainingMonitor(model, optimizer, {**settings, "alerts": {"stop_on": ["nonfinite"]}}) as monitor:
        for step in range(5):
            monitor.step(samples=1, losses=math.nan if step else 1.0)
            told.append(monitor.should_stop)
    assert told == [None] * clean + ["nonfinite"] * (5 - clean)


def test_a_logged_value_stops_at_once(tmp_path):
    model, optimizer = problem()
    settings = config(tmp_path, log_frequency=100, alerts={"stop_on": ["nonfinite"]})
    with TrainingMonitor(model, optimizer, settings) as monitor:
        monitor.step(samples=1, losses=1.0)
        monitor.log({"loss/nonfinite": 1.0})
        assert monitor.should_stop == "nonfinite"


def test_latest_numbers_are_a_snapshot(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, sync="inline")) as monitor:
        monitor.step(samples=1, losses=1.0)
        seen = monitor.latest
        monitor.step(samples=1, losses=2.0)
        assert (seen["loss/total"], monitor.latest["loss/total"]) == (1.0, 2.0)
        seen.clear()
        assert monitor.latest["loss/total"] == 2.0


class Failing(WeightedMean):
    def compute_from(self, states):
        raise ValueError("a formula that fails")


def test_a_run_whose_end_fails_is_no_success(tmp_path, monkeypatch):
    model, optimizer = problem()
    told = []
    monitor = TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=100))
    monkeypatch.setattr(monitor.run.sink, "write_status", told.append)
    monitor.step(samples=1, losses=1.0)
    monitor.flush()
    failing = Failing("mine/failing")
    monitor.add_metric("failing", failing)
    with pytest.raises(ValueError, match="a formula that fails"), monitor:
        failing.update(1.0)
    assert told == [False]


def test_a_pause_that_fails_is_a_pause(tmp_path, monkeypatch):
    model, optimizer = problem()
    now = [0.0]
    monkeypatch.setattr("hjepa_dist_metrics.monitor.observers.timing._clock", lambda: now[0])
    settings = config(tmp_path, sync="inline", tensorboard={"enabled": False})
    with TrainingMonitor(model, optimizer, settings) as monitor:
        monitor.step(samples=1)
        with contextlib.suppress(RuntimeError), monitor.pause():
            now[0] += 100.0
            raise RuntimeError("an evaluation that fails")
        now[0] += 1.0
        monitor.step(samples=1)
        assert monitor.latest["performance/step_time_ms"] == pytest.approx(1000.0)


def test_logs_that_lie_far_apart_take_no_more_memory(tmp_path):
    model, optimizer = problem()
    settings = config(tmp_path, log_frequency=10**12, tensorboard={"enabled": False})
    with TrainingMonitor(model, optimizer, settings) as monitor:
        monitor.step(samples=1, losses=0.5)
        states = monitor.run.collection["stability"].states
        assert sum(tensor.numel() for tensor in states["recent"].pack().values()) < 100_000
