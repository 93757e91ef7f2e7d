"""The README tells the truth: its code runs, its links lead to files."""

import math
import re
from pathlib import Path

import torch
from torch import nn

from hjepa_dist_metrics.sinks import read_jsonl

README = Path(__file__).resolve().parent.parent / "README.md"


def snippets():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert {"configs/README.md", "hjepa_dist_metrics/catalog/TAGS.md"} <= set(links)
    assert [link for link in links if not (README.parent / link).exists()] == []


class Model(nn.Module):
    """What the README's loop calls `model`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        features = self.layer(x)
        return features.square().mean(), features


def test_the_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model()
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [torch.randn(16, 4) for _ in range(3)],
    }
    loop, metric, observer, logger = snippets()
    exec(loop, names)
    first, last = read_jsonl(tmp_path / "results/logs/metrics/mine.jsonl")
    assert {"loss/total", "gradient/clipping_percentage", "collapse/effective_rank"} <= set(first)
    assert (first["step"], last["step"]) == (0, 2)
    assert len(loop.strip().splitlines()) <= 13

    with names["TrainingMonitor"](
        model, names["optimizer"], {"experiment_name": "own", "log_frequency": 1}
    ) as names["monitor"]:
        exec(metric, names)
        names["length"].update(torch.tensor([3.0, 5.0]))
        exec(observer, names)
    (logged,) = read_jsonl(tmp_path / "results/logs/metrics/own.jsonl")
    assert logged["text/length_mean"] == 4.0
    assert math.isclose(logged["text/entropy"], math.log(100), rel_tol=1e-6)

    exec(logger, names)
    rows = read_jsonl(tmp_path / "results/logs/metrics/my_run.jsonl")
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [0.5] * 3
    assert [row["val/accuracy"] for row in rows if "val/accuracy" in row] == [0.9]
