"""Activations against direct computation; planted outliers and dead units are found where they are."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

from hjepa_dist_metrics import ActivationStatistics, ConfigError
from tests.helpers.layouts import Block, Net, data, loss_of
from tests.helpers.models import PatchViT, SelfMHA

BLOCKS = ["blocks.0", "blocks.1"]


class Checkpointed(Net):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        x = self.frozen(self.embed(x))
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def outputs_of(model, x, names=BLOCKS):
    """Return what modules return and the gradients of it, by hooks of the test's own."""
    seen, gradients = {name: [] for name in names}, {name: [] for name in names}
    handles = []
    for name in names:

        def keep(_, args, output, name=name):
            seen[name].append(output.detach().double())
            output.register_hook(lambda grad: gradients[name].append(grad.double()))

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    loss_of(model(x)).backward()
    for handle in handles:
        handle.remove()
    return ({name: torch.cat(parts).numpy() for name, parts in found.items()} for found in (seen, gradients))


def expected(values):
    rows = values.reshape(-1, values.shape[-1])
    sizes = np.sqrt((rows**2).mean(0))
    return {
        "rms": np.sqrt((values**2).mean()),
        "absmax": np.abs(values).max(),
        "kurtosis": stats.kurtosis(values.ravel(), fisher=False),
        "zero_fraction": (values == 0).mean(),
        "dead_fraction": (rows.min(0) == rows.max(0)).mean(),
        "outlier_ratio": sizes.max() / np.median(sizes),
    }


def scalars(metric):
    return {tag: value for tag, value in metric.compute().items() if isinstance(value, float)}


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def assert_right(found, values, gradients=None):
    for name in BLOCKS:
        for key, number in expected(values[name]).items():
            assert found[f"activation/{name}_{key}"] == pytest.approx(number, rel=1e-5), (name, key)
        if gradients is not None:
            rms = np.sqrt((gradients[name] ** 2).mean())
            assert found[f"activation_gradient/{name}_rms"] == pytest.approx(rms, rel=1e-5)
            largest = np.abs(gradients[name]).max()
            assert found[f"activation_gradient/{name}_absmax"] == pytest.approx(largest, rel=1e-5)


def test_numbers_are_those_of_the_outputs_and_their_gradients():
    model, x = Net(), data()
    metric = ActivationStatistics(model, gradients=True, per_block=True)
    with metric.watching():
        loss_of(model(x)).backward()
    assert hooks_of(model) == 0
    values, gradients = outputs_of(model, x)
    found = scalars(metric)
    assert_right(found, values, gradients)
    sizes = [expected(values[name])["rms"] for name in BLOCKS]
    assert found["activation/rms_min"] == pytest.approx(min(sizes))
    assert found["activation/rms_median"] == pytest.approx(np.median(sizes))
    assert found["activation/rms_max"] == pytest.approx(max(sizes))


def test_all_passes_of_a_step_count():
    model, x = Net(), data()
    metric = ActivationStatistics(model, gradients=True, per_block=True)
    with metric.watching():
        for part in x.chunk(4):
            (loss_of(model(part)) / 4).backward()
    assert_right(scalars(metric), *outputs_of(model, x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_second_forward_of_activation_checkpointing_does_not_count(reentrant):
    x = data().requires_grad_()
    model = Checkpointed(reentrant)
    metric = ActivationStatistics(model, gradients=True, per_block=True)
    with metric.watching():
        loss_of(model(x)).backward()
    count = metric.activation_units.items()
    assert [set(state.count) for _, state in count] == [{32.0}, {32.0}]
    assert [set(state.count) for _, state in metric.gradient_units.items()] == [{32.0}, {32.0}]
    assert_right(scalars(metric), *outputs_of(Net(), data()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("first", [True, False])
def test_a_compiled_model_is_looked_at_and_stays_compiled(first):
    model, x = Net(), data()
    runs = []

    def backend(graph, inputs):
        runs.append("compiled")
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    metric = ActivationStatistics(compiled, gradients=True, per_block=True)
    if first:
        loss_of(compiled(x)).backward()
        assert runs
    with metric.watching():
        loss_of(compiled(x)).backward()
    before = len(runs)
    assert bool(before) == first  # nothing is compiled with the hooks in it
    assert_right(scalars(metric), *outputs_of(Net(), x))
    found = scalars(metric)
    loss_of(compiled(x)).backward()
    loss_of(compiled(x)).backward()
    assert len(runs) == (before if first else 1)  # compiled once, and not anew for hooks
    assert scalars(metric) == found
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # dynamo turns warnings that are errors into errors of its own
def test_compiled_blocks_are_looked_at():
    model, x = Net(), data()
    for block in model.blocks:
        block.compile(backend="eager")
    model(x)
    metric = ActivationStatistics(model, per_block=True)
    with metric.watching():
        model(x)
    values, _ = outputs_of(Net(), x)
    assert_right(scalars(metric), values)
    torch.compiler.reset()


def test_autocast_is_off_in_the_numbers():
    model, x = Net(), data()
    metric = ActivationStatistics(model, per_block=True)
    seen = []
    handles = [m.register_forward_hook(lambda m, a, o: seen.append(o.detach())) for m in model.blocks]
    with metric.watching(), torch.autocast("cpu", torch.bfloat16):
        model(x)
    for handle in handles:
        handle.remove()
    assert {output.dtype for output in seen} == {torch.bfloat16}
    values = {name: output.double().numpy() for name, output in zip(BLOCKS, seen, strict=True)}
    assert_right(scalars(metric), values)


class Planted(nn.Module):
    """A block with one large unit and some that say nothing."""

    def __init__(self, outlier=None, dead=()):
        super().__init__()
        self.body = nn.Linear(16, 16)
        self.outlier, self.dead = outlier, list(dead)

    def forward(self, x):
        out = torch.relu(self.body(x) + 2.0).clone()
        if self.outlier is not None:
            out[..., self.outlier] *= 100.0
        out[..., self.dead] = 0.0
        return out


def test_planted_outliers_and_dead_units_are_found_where_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(Planted(dead=[2, 5, 7, 8]), Planted(), Planted(outlier=11))
    metric = ActivationStatistics(model)
    for _ in range(3):
        with metric.watching():
            model(torch.randn(64, 16))
    found = metric.compute()
    assert found["activation/outlier"].markdown.startswith("`2`, unit 11: ")
    assert found["activation/largest"].markdown.startswith("`2`, unit 11: ")
    assert found["activation/outlier_ratio_max"] > 50
    assert found["activation/dead"].markdown == "`0`: 4 of 16"
    assert found["activation/dead_units"] == 4
    assert found["activation/dead_fraction_max"] == 0.25
    assert found["activation/kurtosis_max"] > 2 * found["activation/kurtosis_median"]


def test_a_unit_that_speaks_once_in_the_window_is_not_dead():
    metric = ActivationStatistics(nn.Sequential(Planted(), Planted()))
    metric.update({"0": torch.zeros(8, 4)})
    spoken = torch.zeros(8, 4)
    spoken[3, 2] = 1e-20
    metric.update({"0": spoken})
    assert metric.compute()["activation/dead_units"] == 3


def test_nonfinite_outputs_are_counted_and_the_first_is_named():
    metric = ActivationStatistics(Net())
    bad = torch.ones(4, 3)
    bad[1, 2], bad[2, 0] = float("nan"), float("inf")
    metric.update({"blocks.0": torch.rand(4, 3), "blocks.1": bad, "blocks.10": bad})
    found = metric.compute()
    assert found["activation/nonfinite"] == 4
    assert found["activation/first_nonfinite"].markdown == "blocks.1"
    assert np.isnan(found["activation/rms_max"])


def test_units_of_convolutions_are_their_channels():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    metric = ActivationStatistics(model, ["0", "1"])
    with metric.watching():
        model(torch.randn(2, 3, 8, 8))
    assert {name: state.size for name, state in metric.activation_units.items()} == {"0": 5, "1": 5}
    tokens = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Linear(8, 6))
    metric = ActivationStatistics(tokens, ["0", "1"])
    with metric.watching():
        tokens(torch.randn(2, 3, 8))
    assert {name: state.size for name, state in metric.activation_units.items()} == {"0": 4, "1": 6}


def test_blocks_are_found_and_patterns_choose():
    net = PatchViT([SelfMHA() for _ in range(11)])

    def seen(model, modules=None):
        metric = ActivationStatistics(model, modules)
        with metric.watching():
            model(torch.rand(1, 3, 32, 48))
        return [name for name, _ in metric.activation_units.items()]

    assert seen(net) == [f"blocks.{i}" for i in range(11)]
    assert seen(net, [r"blocks\.\d", "blocks.10.attn"]) == [
        *(f"blocks.{i}" for i in range(10)),
        "blocks.10.attn",
    ]
    wrapped = torch.nn.DataParallel(net)
    assert ActivationStatistics(wrapped, ["proj"]).modules == ["proj"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["block.1"], r"no module of Net matches 'block.1'; nearest: blocks.1"),
        (["blocks.0.upp"], r"nearest: blocks.0.up"),
        (["encoder.norm"], r"nearest: blocks.\d.norm, blocks.\d.norm"),
        (["blocks.("], r"regular expression, got 'blocks.\('"),
        (["zzz"], r"its modules are embed, blocks, "),
    ],
)
def test_modules_that_do_not_exist_are_told_with_the_nearest(modules, message):
    with pytest.raises(ConfigError, match=message):
        ActivationStatistics(Net(), modules)


def test_bad_input_is_told():
    metric = ActivationStatistics(Net())
    with pytest.raises(
        ConfigError, match=r"activation 'a' must be a tensor of floats, got a torch.int64 \[3\]"
    ):
        metric.update({"a": torch.arange(3)})
    with pytest.raises(ConfigError, match="give gradients=True"):
        metric.update({}, {"a": torch.ones(3)})
    metric.reset()
    metric.update({"a": torch.ones(0, 4), "b": torch.tensor(2.0)})
    assert metric.compute()["activation/rms_max"] == 2.0
    assert ActivationStatistics(Net()).compute() == {}


def test_hooks_go_where_the_body_raises():
    model = Net()
    metric = ActivationStatistics(model)
    with pytest.raises(RuntimeError), metric.watching():
        model(torch.ones(2, 3))
    assert hooks_of(model) == 0


def test_a_block_that_is_used_twice_counts_twice():
    block = Block()
    model = nn.Sequential(block, block, Block())
    metric = ActivationStatistics(model, ["0"])
    with metric.watching():
        model(torch.randn(4, 16))
    assert [set(state.count) for _, state in metric.activation_units.items()] == [{8.0}]
