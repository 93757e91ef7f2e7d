"""The inside of the model in a monitored run: on its cadence, at no cost off it, and judged."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, TrainingMonitor
from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.models import PatchViT, SelfMHA, encoder_layers

GROUPS = ("activation/", "activation_gradient/", "attention/", "experts/")
ON = {"activations": {"enabled": True}, "attention": {"enabled": True}}


def config(tmp_path, **logging):
    return {"experiment_name": "run", "log_dir": str(tmp_path), "log_frequency": 1, **logging}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = PatchViT([encoder_layers(2), SelfMHA()])
        self.router = nn.Linear(24, 4)

    def forward(self, images):
        features = self.encoder(images)
        return features.square().mean(), self.router(features.detach())


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def train(monitor, model, steps, seen=None, between=lambda: None):
    optimizer = monitor.run.built_in.losses.scope.optimizers[0]
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        if seen is not None:
            seen.append(hooks_of(model))
        loss, logits = model(torch.rand(2, 3, 32, 48, generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(samples=2, losses=loss, router_logits=[logits], experts_per_token=2)
        between()
    return [p.detach().clone() for p in model.parameters()]


def run(tmp_path, steps=7, seen=None, between=lambda monitor, model: None, **settings):
    model = Model()
    model.encoder.blocks[0].layers[0].dropout.p = 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with TrainingMonitor(model, optimizer, config(tmp_path, **settings)) as monitor:
        weights = train(monitor, model, steps, seen, lambda: between(monitor, model))
    return monitor, model, weights


def logged(tmp_path):
    lines = list(read_jsonl(tmp_path / "metrics" / "run.jsonl"))
    inside = {}
    for line in lines:
        tags = {tag: value for tag, value in line.items() if tag.startswith(GROUPS)}
        inside.setdefault(line["step"], {}).update(tags)
    return {step: tags for step, tags in inside.items() if tags}


def test_hooks_are_on_the_model_in_the_steps_that_log_alone(tmp_path):
    seen = []
    monitor, model, _ = run(tmp_path, 8, seen, cadence={"representations": 3, "figures": 0}, **ON)
    assert [count > 0 for count in seen] == [step % 3 == 0 for step in range(8)]
    assert hooks_of(model) == 0
    assert not monitor.failures
    steps = logged(tmp_path)
    with_activations = [step for step, tags in steps.items() if "activation/rms_median" in tags]
    assert with_activations == [step for step, tags in steps.items() if "attention/logit_max" in tags]
    assert with_activations == [0, 3, 6]
    assert all("experts/utilization" in tags for tags in steps.values())


def test_nothing_is_there_unless_it_is_asked_for(tmp_path):
    seen = []
    run(tmp_path, 3, seen)
    assert seen == [0, 0, 0]
    assert {tag.split("/")[0] for tags in logged(tmp_path).values() for tag in tags} == {"experts"}


def test_training_is_the_same_to_the_bit(tmp_path):
    off, on = (run(tmp_path / name, 5, **settings)[2] for name, settings in (("off", {}), ("on", ON)))
    assert all(torch.equal(a, b) for a, b in zip(off, on, strict=True))


def test_there_are_few_tags_by_default_and_more_on_request(tmp_path):
    gradients = {"activations": {"enabled": True, "gradients": True}, "attention": {"enabled": True}}
    run(tmp_path / "few", 1, cadence={"figures": 0}, **gradients)
    few = logged(tmp_path / "few")[0]
    assert sum(isinstance(value, float) for value in few.values()) < 45
    detail = {
        "activations": {"enabled": True, "per_block": True, "modules": [r"encoder\.blocks\.\d"]},
        "attention": {"enabled": True, "per_layer": True},
        "experts": {"per_layer": True},
    }
    run(tmp_path / "many", 1, **detail)
    many = logged(tmp_path / "many")[0]
    assert {
        "activation/encoder.blocks.0_rms",
        "activation/encoder.blocks.1_kurtosis",
        "attention/encoder.blocks.0.layers.1.self_attn_entropy",
        "attention/encoder.blocks.1.attn_sink",
        "experts/layer0_overload_factor",
    } <= set(many)


def test_evaluations_do_not_count(tmp_path):
    def evaluate(monitor, model):
        with torch.random.fork_rng():
            with monitor.pause():
                model(torch.zeros(1, 3, 32, 48))
            model.eval()
            with torch.no_grad():
                model(torch.zeros(1, 3, 32, 48))
            model.train()

    settings = {**ON, "cadence": {"representations": 1, "figures": 0}}
    run(tmp_path / "without", 4, **settings)
    run(tmp_path / "with", 4, between=evaluate, **settings)
    assert logged(tmp_path / "with") == logged(tmp_path / "without")


def test_modules_that_do_not_exist_are_told_when_the_monitor_is_made(tmp_path):
    settings = {"activations": {"enabled": True, "modules": ["encoder.block.1"]}}
    with pytest.raises(ConfigError, match=r"matches 'encoder.block.1'; nearest: encoder.blocks.1"):
        run(tmp_path, **settings)


def test_a_bad_pattern_is_told_with_its_key(tmp_path):
    with pytest.raises(ConfigError, match=r"activations.modules.*\("):
        run(tmp_path, activations={"enabled": True, "modules": ["("]})


def test_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, 2, cadence={"figures": 1}, **ON)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"), size_guidance={"images": 0}).Reload()
    images = set(events.Tags()["images"]) | set(events.Tags()["tensors"])
    assert {"activation/depth", "attention/heads", "experts/load"} <= images


def test_a_resumed_run_goes_on_at_its_cadence(tmp_path):
    model = Model()
    settings = config(tmp_path, cadence={"representations": 3, "figures": 0}, **ON)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with TrainingMonitor(model, optimizer, settings) as monitor:
        train(monitor, model, 2)
        state = monitor.state_dict()
    seen = []
    with TrainingMonitor(model, optimizer, settings, resume=True, start_step=2) as monitor:
        monitor.load_state_dict(state)
        train(monitor, model, 4, seen)
    assert [count > 0 for count in seen] == [False, True, False, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"router_logits": torch.zeros(3, 4, dtype=torch.int64)}, "router_logits of 'experts' must be"),
        ({"router_logits": [torch.zeros(3, 4), torch.zeros(3, 5)]}, r"in every layer, got \[4, 5\]"),
        (
            {
                "router_logits": torch.zeros(3, 4),
                "expert_choices": {"a": torch.zeros(3, 1, dtype=torch.int64)},
            },
            r"of the layers \['experts'\], got those of \['a'\]",
        ),
        ({"router_logits": torch.zeros(3, 4), "experts_per_token": 5}, "1 to 4 experts a token, got 5"),
    ],
)
def test_bad_routing_is_told(tmp_path, given, message):
    model = Model()
    with (
        pytest.raises(ConfigError, match=message),
        TrainingMonitor(model, torch.optim.SGD(model.parameters()), config(tmp_path)) as monitor,
    ):
        monitor.step(samples=1, **given)


class Rectified(nn.Module):
    """Blocks whose units can be killed, attention that can be sharpened, a router that can be fixed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(3)])
        self.attention = PatchViT([SelfMHA(), SelfMHA()])
        self.router = nn.Linear(24, 8)

    def forward(self, images):
        x = self.attention(images)
        for block in self.blocks:
            x = x + block(x)
        return x.square().mean(), self.router(x.detach())


def plant(model, what):
    with torch.no_grad():
        if what == "dead_units":
            model.blocks[1][0].bias[:16] = -1e6
        elif what in ("attention_collapse", "attention_logits_exploding"):
            for block in model.attention.blocks:
                block.attn.in_proj_weight[:48] *= 1e3
        elif what == "routing_collapse":
            model.router.bias[3] = 100.0


@pytest.mark.parametrize(
    "what", ["nothing", "dead_units", "attention_collapse", "attention_logits_exploding", "routing_collapse"]
)
def test_planted_failures_are_found_and_named(tmp_path, what):
    model = Rectified()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    blocks = {"enabled": True, "modules": [r"blocks\.\d"]}
    settings = config(
        tmp_path, activations=blocks, attention={"enabled": True}, cadence={"representations": 1}
    )
    found = set()
    with TrainingMonitor(model, optimizer, settings) as monitor:
        generator = torch.Generator().manual_seed(1)
        for step in range(24):
            if step == 10:
                plant(model, what)
            loss, logits = model(torch.randn(8, 3, 32, 48, generator=generator))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(samples=8, losses=loss, router_logits=logits)
            monitor.flush()
            found |= {finding for f in monitor.health().findings for finding in (f.name, *f.also)}
    internals = {"dead_units", "attention_collapse", "attention_logits_exploding", "routing_collapse"}
    expected = {what} & internals
    if what.startswith("attention"):
        expected = {"attention_collapse", "attention_logits_exploding"}
    assert found & internals == expected
