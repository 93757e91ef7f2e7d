"""Losses, gradients and parameters by head: numbers by hand, any set of heads."""

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, HeadGradients, HeadLosses, HeadParameters, MetricCollection
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def numbers(metric):
    return {tag: float(value) for tag, value in metric.compute().items()}


def test_losses_are_means_over_samples_weighted_and_compared():
    """3 samples at 0.2 and 1 at 0.6: 0.3; 3 at 0.8 and 1 at 0.4: 0.7; total 0.3 + 0.1 * 0.7 = 0.37."""
    metric = HeadLosses(["pixel", "clip"])
    weights = {"pixel": 1.0, "clip": 0.1}
    metric.update({"pixel": 0.2, "clip": 0.8}, weights, 3)
    metric.update({"pixel": torch.tensor(0.6), "clip": torch.tensor(0.4)}, weights, 1)
    assert numbers(metric) == pytest.approx(
        {
            "Train/Loss/pixel_loss": 0.3,
            "Train/Loss/clip_loss": 0.7,
            "Train/Loss/clip_loss_weighted": 0.07,
            "Train/Loss/total_loss": 0.37,
            "Train/Loss/pixel_to_clip_ratio": 3 / 7,
            "Train/clip_loss_active": 1.0,
        },
        rel=1e-6,
    )


def test_a_head_that_is_off_has_no_loss_and_no_ratio():
    metric = HeadLosses(["pixel", "clip"])
    metric.update({"pixel": 0.5, "clip": 0.0}, {"pixel": 1.0, "clip": 0.0}, 4)
    assert numbers(metric) == {
        "Train/Loss/pixel_loss": 0.5,
        "Train/Loss/clip_loss": 0.0,
        "Train/Loss/clip_loss_weighted": 0.0,
        "Train/Loss/total_loss": 0.5,
        "Train/clip_loss_active": 0.0,
    }


def test_a_batch_has_plain_losses_only_and_the_same_over_ranks():
    counts = [3, 0, 1]

    def body(context):
        metric = HeadLosses(["a", "b", "c"], "Train_Batch", breakdown=False)
        count = counts[context.rank]
        value = float(context.rank) if count else float("nan")
        metric.update({"a": value, "b": 1.0, "c": 2.0}, count=count)
        return MetricCollection({"m": metric}, context).compute()

    for values in run_ranks(3, body):
        assert {tag: float(value) for tag, value in values.items()} == {
            "Train_Batch/a_loss": 0.5,  # (3 * 0 + 1 * 2) / 4
            "Train_Batch/b_loss": 1.0,
            "Train_Batch/c_loss": 2.0,
            "Train_Batch/total_loss": 3.5,
        }


def model():
    torch.manual_seed(0)
    parts = {name: torch.nn.Linear(3, 2) for name in ("decoder", "rgb_head", "clip_head", "other")}
    return torch.nn.ModuleDict(parts)


def norm(part):
    return np.sqrt(sum((p.grad.double().numpy() ** 2).sum() for p in part.parameters() if p.grad is not None))


def test_gradient_norms_are_means_over_steps_of_each_part():
    net = model()
    parts = {name: net[name] for name in ("rgb_head", "clip_head", "decoder")}
    metric = HeadGradients(net, parts, [("rgb_head", "clip_head")])
    seen = []
    for step in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) * (1 + step)
        metric.update()
        parts_norms = {name: norm(part) for name, part in parts.items()}
        seen.append({**parts_norms, "total": np.sqrt(sum(norm(part) ** 2 for part in net.values()))})
    expected = {f"Train/Gradients/{n}_norm": np.mean([step[n] for step in seen]) for n in seen[0]}
    ratio = expected["Train/Gradients/rgb_head_norm"] / expected["Train/Gradients/clip_head_norm"]
    assert numbers(metric) == pytest.approx(
        {**expected, "Train/Gradients/rgb_to_clip_ratio": ratio}, rel=1e-6
    )


def test_a_part_without_gradient_has_norm_0_and_no_ratio():
    net = model()
    metric = HeadGradients(net, {"a": net["rgb_head"], "b": net["clip_head"]}, [("a", "b")])
    for parameter in net["rgb_head"].parameters():
        parameter.grad = torch.ones_like(parameter)
    metric.update()
    assert numbers(metric) == pytest.approx(
        {
            "Train/Gradients/a_norm": 8**0.5,
            "Train/Gradients/b_norm": 0.0,
            "Train/Gradients/total_norm": 8**0.5,
        }
    )


def test_parameters_of_a_part_have_numpys_mean_and_std():
    net = model()
    metric = HeadParameters(net, {"rgb_head": net["rgb_head"], "decoder": net["decoder"]})
    assert numbers(metric) == {}
    metric.update()
    expected = {}
    for name in ("rgb_head", "decoder"):
        flat = np.concatenate([p.detach().double().numpy().ravel() for p in net[name].parameters()])
        expected |= {f"Model/Params/{name}_mean": flat.mean(), f"Model/Params/{name}_std": flat.std()}
    assert numbers(metric) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadLosses([]), "heads with names of their own"),
        (lambda: HeadLosses(["a", "a"]), "heads with names of their own"),
        (lambda: HeadLosses(["a", "b"]).update({"a": 1.0}), r"losses of the heads \['a', 'b'\], got \['a'\]"),
        (lambda: HeadLosses(["a"]).update({"a": 1.0}, {}), r"weights of the heads \['a'\], got \[\]"),
        (lambda: HeadGradients(model(), {}), "named parts of the model"),
        (lambda: HeadGradients(model(), {"a": torch.nn.GELU()}), "part 'a' has no parameters"),
        (lambda: HeadGradients(model(), {"a": torch.nn.Linear(1, 1)}, [("a", "b")]), r"unknown: \['b'\]"),
        (lambda: HeadParameters(model(), {"a": torch.nn.Linear(1, 1)}), "'a' is not part of the model"),
        (lambda: HeadGradients(model(), {"a": torch.nn.Linear(1, 1)}), "'a' is not part of the model"),
    ],
)
def test_bad_input_says_what_is_wrong(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
