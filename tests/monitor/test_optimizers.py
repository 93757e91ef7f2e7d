"""A loop with several optimizers: their groups are told apart, and their steps are compared together."""

import math

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, TrainingMonitor
from tests.monitor.test_monitor import batches, config, problem, series


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.bias = nn.Parameter(torch.randn(4, generator=generator))
        self.head = nn.Parameter(torch.randn(4, 2, generator=generator))

    def forward(self, x):
        return (x @ self.body + self.bias) @ self.head


def optimizers_of(model):
    groups = [{"params": [model.body], "name": "matrices"}, {"params": [model.bias], "lr": 0.02}]
    return [torch.optim.SGD(groups, lr=0.1), torch.optim.AdamW([model.head], lr=0.3, weight_decay=0.0)]


def norm(tensors):
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def run(tmp_path, sits_out=()):
    """Train three steps; return the model, and of each step and group the gradient's and the move's norm."""
    model, x = Two(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    optimizers, seen = optimizers_of(model), []
    groups = {"matrices": [model.body], "group1": [model.bias], "group2": [model.head]}
    with TrainingMonitor(model, optimizers, config(tmp_path)) as monitor:
        for step in range(3):
            model.zero_grad()
            with monitor.backward():
                model(x).square().mean().backward()
            gradients = {name: norm(p.grad for p in part) for name, part in groups.items()}
            monitor.clip_grad_norm_(1.0)
            before = {name: [p.detach().clone() for p in part] for name, part in groups.items()}
            for index, optimizer in enumerate(optimizers):
                if (step, index) not in sits_out:
                    optimizer.step()
            moved = {
                name: norm(p.detach() - q for p, q in zip(part, before[name], strict=True))
                for name, part in groups.items()
            }
            seen.append((gradients, moved))
            monitor.step(samples=5)
    assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in optimizers)
    return seen


@pytest.mark.parametrize("sits_out", [(), ((1, 1),), ((1, 0), (2, 1))])
def test_groups_of_all_optimizers(tmp_path, sits_out):
    seen = run(tmp_path, sits_out)
    for name in ("matrices", "group1", "group2"):
        moves = series(tmp_path, f"update/{name}_norm")
        assert moves == pytest.approx({i: moved[name] for i, (_, moved) in enumerate(seen)}, rel=1e-5)
        before = series(tmp_path, f"gradient/{name}/global_norm_before_clip")
        assert before == pytest.approx({i: g[name] for i, (g, _) in enumerate(seen)}, rel=1e-5)
    assert series(tmp_path, "update/group2_exp_avg_norm")
    assert not series(tmp_path, "update/matrices_exp_avg_norm")
    rates = [series(tmp_path, f"learning_rate/param_group_{i}")[0] for i in range(3)]
    assert rates == [0.1, 0.02, 0.3]
    assert series(tmp_path, "learning_rate/base_lr")[0] == 0.1


def test_what_is_no_optimizer(tmp_path):
    with pytest.raises(ConfigError, match=r"expected an optimizer or a list of optimizers, got \['Two'\]"):
        TrainingMonitor(Two(), [Two()], config(tmp_path))
    with pytest.raises(ConfigError, match=r"got \[\]"):
        TrainingMonitor(Two(), [], config(tmp_path))


@pytest.mark.parametrize("given", ["not at all", "by name", "by place"])
def test_a_closure_is_called_before_the_gradients_are_read(tmp_path, given):
    model, optimizer = problem()
    norms = []
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        for x in batches(3):

            def closure(x=x):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                norms.append(sum(float(p.grad.double().norm()) for p in model.parameters()))
                return loss

            if given == "not at all":
                closure()
                optimizer.step()
            else:
                optimizer.step(**{"closure": closure}) if given == "by name" else optimizer.step(closure)
            monitor.step(samples=len(x))
    size = sum(parameter.numel() for parameter in model.parameters())
    expected = {i: optimizer.param_groups[0]["lr"] * norm / size**0.5 for i, norm in enumerate(norms)}
    assert series(tmp_path, "learning_rate/avg_param_update") == pytest.approx(expected, rel=1e-5)
