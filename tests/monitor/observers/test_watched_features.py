"""Features of modules by name: kinds of outputs, masks, several forward passes, wrappers, cadence."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hjepa_dist_metrics import ConfigError, TrainingMonitor
from tests.monitor.test_monitor import config


class Giving(nn.Module):
    """Give what it is called with, in some form."""

    def __init__(self, form=lambda rows: rows):
        super().__init__()
        self.form = form

    def forward(self, rows):
        return self.form(rows)


class Model(nn.Module):
    def __init__(self, form=lambda rows: rows):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 4), Giving(form)), nn.Linear(4, 2)

    def forward(self, rows):
        return self.head(self.body(rows))


@pytest.fixture
def watching(tmp_path):
    """Return what makes a monitor of a model that watches modules, and its watched features."""
    monitors = []

    def make(model, watch, representations=1, **settings):
        cadence = {"representations": representations}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = TrainingMonitor(model, optimizer, config(tmp_path, cadence=cadence, **settings))
        monitors.append(monitor)
        monitor.watch_features(watch)
        return monitor, monitor.run.built_in.watched

    yield make
    for monitor in monitors:
        monitor.close()


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, None),
    "named": lambda x: {"logits": x * 0, "last_hidden_state": x},
    "mapping": lambda x: {"features": x},
}


@pytest.mark.parametrize("form", FORMS)
def test_kinds_of_outputs(watching, form):
    model = Model(FORMS[form])
    _, watched = watching(model, "body.1")
    x = rows(2, 3, 4).requires_grad_()
    with watched.capturing(x):
        model.body[1](x)
    taken = watched.take()
    assert torch.equal(taken["features"], x)
    assert not taken["features"].requires_grad
    assert taken["valid"] is None
    assert watched.take() == {}


def test_a_map_of_features_is_rows(watching):
    model = Model()
    _, watched = watching(model, {"maps": "body.1"})
    x = rows(2, 4, 3, 5)
    with watched.capturing(x):
        model.body[1](x)
    found = watched.take()["features"]["maps"]
    assert found.shape == (2, 15, 4)
    assert torch.equal(found[1, 7], x[1, :, 1, 2])


def test_micro_batches_of_uneven_length_are_padded_and_padding_is_left_out(watching):
    model = Model()
    _, watched = watching(model, ["body.1", "head"])
    first, second = rows(2, 3, 4), rows(1, 5, 4, seed=1)
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    for x, mask in zip((first, second), masks, strict=True):
        with watched.capturing({"attention_mask": mask}):
            model.head(model.body[1](x))
    taken = watched.take()
    kept = taken["features"]["body.1"][taken["valid"]["body.1"]]
    assert torch.equal(kept, torch.cat([first[masks[0].bool()], second[masks[1].bool()]]))
    assert set(taken["features"]) == set(taken["valid"]) == {"body.1", "head"}


def test_uneven_length_without_masks(watching):
    model = Model()
    _, watched = watching(model, "body.1")
    for x in (rows(2, 3, 4), rows(1, 5, 4)):
        with watched.capturing(x):
            model.body[1](x)
    taken = watched.take()
    assert taken["features"].shape == (3, 5, 4)
    assert taken["valid"].sum(dim=1).tolist() == [3, 3, 5]


def test_what_is_not_of_the_training_is_not_kept(watching):
    model = Model()
    monitor, watched = watching(model, "body.1")
    with monitor.pause():
        model(rows(2, 4))
    model.eval()
    with torch.no_grad():
        model(rows(2, 4))
    assert watched.take() == {}
    model(rows(2, 4))  # trained in evaluation mode
    model.train()
    model(rows(3, 4))
    assert len(watched.take()["features"]) == 5
    with watched.capturing(None):
        model(rows(2, 4))
    model(rows(2, 4))  # a loop that says which passes count
    assert len(watched.take()["features"]) == 2


def test_what_activation_checkpointing_repeats_counts_once(watching):
    model = Model()
    _, watched = watching(model, "body.1")
    for reentrant in (True, False):
        x = rows(2, 4).requires_grad_()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert len(watched.take()["features"]) == 4


def test_features_are_looked_at_on_steps_that_use_them(watching):
    model, seen = Model(), []
    monitor, watched = watching(model, {"body": "body.1"}, representations=4)
    for step in range(10):
        model(rows(6, 4))
        seen.append(bool(watched._outputs["body"]))
        monitor.step(samples=6)
        assert not watched._outputs["body"]
        assert seen[-1] == (step % 4 == 0)
    monitor.finish()
    assert "collapse/body_effective_rank" in monitor.latest


def test_off_cadence_a_hook_runs_no_operation(watching):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            type(self).calls += 1
            return func(*args, **(kwargs or {}))

    def calls(model):
        Counting.calls = 0
        with Counting():
            model(rows(6, 4))
        return Counting.calls

    model = Model()
    plain = calls(model)
    monitor, watched = watching(model, ["body.0", "body.1"], representations=1000)
    model(rows(6, 4))
    monitor.step(samples=6)  # the first step is one that logs
    assert calls(model) == plain
    assert watched.take() == {}
    monitor.close()
    assert not model.body[0]._forward_hooks


def test_a_compiled_model_is_watched_on_the_steps_that_use_it(watching):
    model, x = Model(), rows(6, 4)
    compiled = torch.compile(model, backend="eager")
    monitor, watched = watching(compiled, "body.0", representations=2)
    for step in range(4):
        compiled(x)
        taken = watched.take()
        assert bool(taken) == (step % 2 == 0)
        if taken:
            assert torch.equal(taken["features"], model.body[0](x))
            watched.take()
        monitor.step(samples=6)


def test_several_forward_passes_of_a_step_come_together(watching):
    """Gradient accumulation: labels are those of all micro-batches, in their order."""
    model = Model()
    monitor, _ = watching(model, "body.1")
    for step in range(8):
        parts = [rows(6, 4, seed=step), rows(3, 4, seed=100 + step)]
        for part in parts:
            model(part).sum().backward()
        monitor.step(samples=9, labels=torch.arange(9) % 2)
    monitor.flush()
    assert 0 <= monitor.latest["probe/features_knn_top1"] <= 1
    for part in parts:
        model(part)
    with pytest.raises(ConfigError, match=r"labels as whole numbers \[9\].*a torch.int64 \[6\]"):
        monitor.step(samples=9, labels=torch.zeros(6).long())


def test_features_from_both_sides_are_an_error(watching):
    model = Model()
    monitor, _ = watching(model, "body.1")
    model(rows(2, 4))
    with pytest.raises(ConfigError, match="watch_features and from the step itself"):
        monitor.step(samples=2, features=rows(2, 4))
    with pytest.raises(ConfigError, match="watched already"):
        monitor.watch_features("head")


def test_names_are_those_of_the_users_model(watching):
    model = Model()
    compiled = torch.compile(model, backend="eager")
    _, watched = watching(compiled, "body.0")
    model.body[0](rows(2, 4))
    assert watched.take()["features"].shape == (2, 4)


def test_wrong_names_and_outputs_say_what_is_wrong(watching):
    model = Model(lambda x: x[0, 0, 0, 0])
    with pytest.raises(ConfigError, match=r"'body\.2'.*near ones are 'body\.[01]'"):
        watching(model, "body.2")
    with pytest.raises(ConfigError, match=r"'zzz'.*it has 'body'"):
        watching(model, "zzz")
    watching(model, "body.1")
    with pytest.raises(ConfigError, match=r"body\.1.*got \[\]"):
        model.body[1](rows(1, 1, 1, 1))
    watching(model, None)
