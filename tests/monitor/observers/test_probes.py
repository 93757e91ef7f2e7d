"""Probes in the monitor's loop: streams, held-out batches, ranks, cadence, wrong input."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, DesyncError, LinearProbe, TrainingMonitor
from tests.monitor.test_monitor import config

datasets = pytest.importorskip("sklearn.datasets")
DIGITS, NUMBERS = (torch.tensor(part) for part in datasets.load_digits(return_X_y=True))
DIGITS = DIGITS.float()
TRAIN, BATCH = 1500, 100
HELD_OUT = DIGITS[TRAIN:], NUMBERS[TRAIN:]


def monitor_of(log_dir, model=None, **settings):
    model = model or nn.Linear(64, 64)
    settings = {"cadence": {"representations": 5}, "sync_timeout": 20.0, **settings}
    return TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config(log_dir, **settings))


def share(rank, world_size):
    return torch.arange(rank, TRAIN, world_size).split(BATCH // world_size)


def all_ranks(rank):
    return True


def even_ranks(rank):
    return rank % 2 == 0


def train(log_dir, rank=0, world_size=1, wrong=None, labelled=all_ranks, settings=None):
    """Show a monitor frozen features in as many steps at any number of ranks; return what it says."""
    with monitor_of(log_dir, **(settings or {})) as monitor:
        for own in share(rank, world_size):
            labels = NUMBERS[own].clone()
            if rank == wrong and monitor.step_number == 3:
                labels[1] = 12
            monitor.step(
                samples=len(own),
                features={"encoder": DIGITS[own]},
                labels=labels if labelled(rank) else None,
                ids=own,
            )
        monitor.flush()
        seen = {tag: value for tag, value in monitor.latest.items() if tag.startswith("probe/")}
        rows = [part[rank::world_size].split(50) for part in HELD_OUT]
        held_out = monitor.evaluate(({"encoder": x}, y) for x, y in zip(*rows, strict=True))
        assert {tag: monitor.latest[tag] for tag in held_out} == held_out
    return seen | held_out


def on_rank(log_dir, *args):
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return train(log_dir, rank, world_size, *args)
    except DesyncError as error:
        return str(error)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"))


def test_the_end_is_that_of_scikit_learn_on_frozen_features(alone):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(DIGITS[:TRAIN])
    linear = LogisticRegression(max_iter=2000).fit(scaler.transform(DIGITS[:TRAIN]), NUMBERS[:TRAIN])
    nearest = KNeighborsClassifier(20, metric="cosine", weights="distance").fit(
        DIGITS[:TRAIN], NUMBERS[:TRAIN]
    )
    expected = {
        "probe/val_encoder_linear_top1": linear.score(scaler.transform(HELD_OUT[0]), HELD_OUT[1]),
        "probe/val_encoder_knn_top1": nearest.score(*HELD_OUT),
    }
    for tag, value in expected.items():
        assert alone[tag] == pytest.approx(value, abs=0.015)
    assert alone["probe/encoder_linear_top1"] == pytest.approx(0.96, abs=0.025)
    assert alone["probe/val_encoder_linear_top5"] > 0.98
    assert 0 < alone["probe/val_encoder_linear_loss"] < 0.5


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_number_of_ranks_says_the_same(gloo, tmp_path, alone, world_size):
    for seen in gloo(world_size).run(on_rank, str(tmp_path)):
        assert seen == pytest.approx(alone, rel=1e-9)


def test_a_label_out_of_range_on_one_rank_is_the_same_line_on_all(gloo, tmp_path):
    first, second = gloo(2).run(on_rank, str(tmp_path), 1, all_ranks, {"probes": {"num_classes": 10}})
    assert first == second
    assert "rank 1" in first
    assert "'encoder' got the label 12, expected 0 to 9" in first


def test_labels_that_one_rank_lacks_are_those_of_the_others(gloo, tmp_path):
    """The probes learn from fewer rows, on every rank the same; an evaluation without them says so."""
    first, second = gloo(2).run(on_rank, str(tmp_path), None, even_ranks)
    assert first == second
    assert isinstance(first, str)
    assert "probes_encoder" in first


def test_streams_of_a_hierarchy_and_of_the_context(tmp_path):
    with monitor_of(tmp_path) as monitor:
        for step in range(3):
            tokens = torch.randn(40, 6, 64, generator=torch.Generator().manual_seed(step))
            valid = torch.ones(40, 6, dtype=torch.bool)
            monitor.step(
                samples=40,
                features=[tokens, tokens[:, :2]],
                valid=[valid, None],
                context_features=tokens[:, :3],
                context_valid=valid[:, :3],
                labels=torch.arange(40) % 3,
            )
        monitor.finish()
        found = {tag for tag in monitor.latest if tag.startswith("probe/")}
    assert {"probe/target_linear_top1", "probe/context_knn_top1"} <= found
    assert not any("level" in tag for tag in found)


def test_rows_are_taken_on_some_steps_of_a_long_cadence(tmp_path):
    taken = []
    with monitor_of(tmp_path, cadence={"representations": 320}) as monitor:
        for step in range(64):
            due = monitor.due("probes")
            taken += [step] if due else []
            labels, features = torch.arange(8) % 2, torch.randn(8, 4)
            monitor.step(samples=8, features=features, labels=labels, ids=torch.arange(8) + 8 * step)
        rows = monitor.run.collection["probes_features"].states["rows"]
        assert taken == list(range(0, 64, 10))
        assert len(rows.rows) == 8 * len(taken)


@pytest.mark.parametrize("off", [{"probes": {"enabled": False}}, {"cadence": {"representations": 0}}])
def test_probes_can_be_switched_off(tmp_path, off):
    with monitor_of(tmp_path, **off) as monitor:
        monitor.step(samples=8, features=torch.randn(8, 4), labels=torch.arange(8) % 2)
        assert not any(name.startswith("probes") for name in monitor.run.collection)
        with pytest.raises(ConfigError, match="no probe to evaluate with"):
            monitor.evaluate([])


def held_out_batches(model, watched):
    model.eval()
    for x, y in zip(*(part.split(60) for part in HELD_OUT), strict=True):
        with torch.no_grad():
            model(x)
        yield {"labels": y} if watched else ({"hidden": model[:3](x)}, y)
    model.train()


def test_watched_modules_are_probed_and_evaluated(tmp_path):
    """No loop hands features over: the module's own outputs are the stream, in training and evaluation."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    handed = {}
    for watch in (True, False):
        with monitor_of(tmp_path / str(watch), model) as monitor:
            if watch:
                monitor.watch_features({"hidden": "2"})
            for own in share(0, 1):
                model(DIGITS[own])
                features = None if watch else {"hidden": model[:3](DIGITS[own])}
                monitor.step(samples=len(own), features=features, labels=NUMBERS[own], ids=own)
            handed[watch] = monitor.evaluate(held_out_batches(model, watch), "test")
    assert handed[True] == pytest.approx(handed[False], rel=1e-9)
    assert set(handed[True]) >= {"probe/test_hidden_linear_top1", "probe/test_hidden_knn_top1"}


def test_a_probe_of_ones_own_is_evaluated_too(tmp_path):
    with monitor_of(tmp_path) as monitor:
        probe = LinearProbe(64, 10, "mine")
        monitor.add_metric("mine", probe, "representations")
        for own in share(0, 1):
            probe.update(DIGITS[own], NUMBERS[own], ids=own)
            monitor.step(samples=len(own))
        held_out = monitor.evaluate([({"mine": HELD_OUT[0]}, HELD_OUT[1])])
    assert held_out["probe/val_mine_linear_top1"] > 0.85


def test_a_resumed_run_keeps_its_rows(tmp_path):
    parts = share(0, 1)
    with monitor_of(tmp_path / "whole") as monitor:
        for number, own in enumerate(parts):
            if number == 8:
                saved = monitor.state_dict()
            monitor.step(samples=len(own), features=DIGITS[own], labels=NUMBERS[own], ids=own)
        whole = monitor.evaluate([HELD_OUT])
    with TrainingMonitor(
        nn.Linear(64, 64),
        torch.optim.SGD(nn.Linear(64, 64).parameters(), lr=0.1),
        config(tmp_path / "resumed", cadence={"representations": 5}),
        start_step=8,
    ) as monitor:
        monitor.load_state_dict(saved)
        for own in parts[8:]:
            monitor.step(samples=len(own), features=DIGITS[own], labels=NUMBERS[own], ids=own)
        assert monitor.evaluate([HELD_OUT]) == pytest.approx(whole, rel=1e-9)


def test_an_evaluation_says_what_it_was_not_given(tmp_path):
    with monitor_of(tmp_path) as monitor:
        for own in share(0, 1)[:2]:
            monitor.step(samples=len(own), features=DIGITS[own], labels=NUMBERS[own])
        for wrong in (DIGITS, {"features": DIGITS}, {"labels": NUMBERS}):
            with pytest.raises(ConfigError, match=r"batches \(features, labels\)"):
                monitor.evaluate([wrong])
        with pytest.raises(ConfigError, match=r"no probe of the features 'other', but of \['features'\]"):
            monitor.evaluate([({"other": DIGITS}, NUMBERS)])
        with pytest.raises(ConfigError, match=r"labels as whole numbers \[1797\]"):
            monitor.evaluate([(DIGITS, NUMBERS[:5])])
