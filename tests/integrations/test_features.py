"""Features of modules by name: kinds of outputs, masks, micro-batches of uneven length, wrappers."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.integrations.features import WatchedFeatures


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


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, None),
    "named": lambda x: {"logits": x * 0, "last_hidden_state": x},
    "mapping": lambda x: {"features": x},
}


@pytest.mark.parametrize("form", FORMS)
def test_kinds_of_outputs(form):
    model = Model(FORMS[form])
    watched = WatchedFeatures(model, "body.1")
    x = rows(2, 3, 4).requires_grad_()
    with watched.capturing(x):
        model.body[1](x)
    taken = watched.take()
    assert torch.equal(taken["features"], x)
    assert not taken["features"].requires_grad
    assert taken["valid"] is None
    assert watched.take() == {}


def test_a_map_of_features_is_rows():
    model = Model()
    watched = WatchedFeatures(model, {"maps": "body.1"})
    x = rows(2, 4, 3, 5)
    with watched.capturing(x):
        model.body[1](x)
    found = watched.take()["features"]["maps"]
    assert found.shape == (2, 15, 4)
    assert torch.equal(found[1, 7], x[1, :, 1, 2])


def test_micro_batches_of_uneven_length_are_padded_and_padding_is_left_out():
    model = Model()
    watched = WatchedFeatures(model, ["body.1", "head"])
    first, second = rows(2, 3, 4), rows(1, 5, 4, seed=1)
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    for x, mask in zip((first, second), masks, strict=True):
        with watched.capturing({"attention_mask": mask}):
            model.head(model.body[1](x))
    taken = watched.take()
    kept = taken["features"]["body.1"][taken["valid"]["body.1"]]
    assert torch.equal(kept, torch.cat([first[masks[0].bool()], second[masks[1].bool()]]))
    assert set(taken["features"]) == set(taken["valid"]) == {"body.1", "head"}


def test_uneven_length_without_masks():
    model = Model()
    watched = WatchedFeatures(model, "body.1")
    for x in (rows(2, 3, 4), rows(1, 5, 4)):
        with watched.capturing(x):
            model.body[1](x)
    taken = watched.take()
    assert taken["features"].shape == (3, 5, 4)
    assert taken["valid"].sum(dim=1).tolist() == [3, 3, 5]


def test_what_runs_outside_of_the_forward_pass_is_not_kept():
    model = Model()
    watched = WatchedFeatures(model, "body.1")
    with watched.capturing(None, wanted=False):
        model.body[1](rows(2, 4))
    model.body[1](rows(2, 4))
    assert watched.take() == {}
    watched.close()
    with watched.capturing(None):
        model.body[1](rows(2, 4))
    assert watched.take() == {}


def test_names_are_those_of_the_users_model():
    model = Model()
    compiled = torch.compile(model, backend="eager")
    watched = WatchedFeatures(compiled, "body.0")
    with watched.capturing(None):
        model.body[0](rows(2, 4))
    assert watched.take()["features"].shape == (2, 4)


def test_wrong_names_and_outputs_say_what_is_wrong():
    model = Model(lambda x: x[0, 0, 0, 0])
    with pytest.raises(ConfigError, match=r"'body\.2'.*'body\.1'"):
        WatchedFeatures(model, "body.2")
    watched = WatchedFeatures(model, "body.1")
    with watched.capturing(None), pytest.raises(ConfigError, match=r"body\.1.*got \[\]"):
        model.body[1](rows(1, 1, 1, 1))
    assert not WatchedFeatures(model, None)
