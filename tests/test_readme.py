"""The README tells the truth: its table is the catalog's, its code runs."""

import dataclasses
import pydoc
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hjepa_dist_metrics.catalog.__main__ import with_table
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.settings.table import with_settings
from hjepa_dist_metrics.sinks import read_jsonl

README = Path(__file__).resolve().parent.parent / "README.md"


def snippets():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_table_is_the_catalogs():
    text = README.read_text()
    assert with_table(text) == text, "run: python -m hjepa_dist_metrics.catalog README.md"


def test_table_needs_its_markers():
    with pytest.raises(ConfigError, match="once each"):
        with_table("no markers here")


def test_settings_are_those_of_the_configuration():
    text = README.read_text()
    assert with_settings(text) == text, "run: python -m hjepa_dist_metrics.settings.table README.md"
    assert "| `cadence.representations` | `null` |" in text
    assert "| `alerts.patience` | `3` |" in text
    assert "| `tensorboard.enabled` | `true` |" in text
    with pytest.raises(ConfigError, match="once each"):
        with_settings("no markers here")


def test_help_explains_every_setting():
    shown = pydoc.render_doc(LoggingConfig)
    for field in dataclasses.fields(LoggingConfig):
        assert f"{field.name}: " in shown
    assert "Steps between two logs of scalars; the other cadences follow it." in shown
    assert "10 * `log_frequency`" in (type(LoggingConfig().cadence).__doc__ or "")


def test_quick_start_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            features = self.layer(x)
            return features.square().mean(), features

    model = Model()
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [torch.randn(16, 4) for _ in range(3)],
    }
    loop, metric = snippets()[:2]
    exec(loop, names)
    first, last = read_jsonl(tmp_path / "results/logs/metrics/mine.jsonl")
    assert {"loss/total", "gradient/clipping_percentage", "collapse/effective_rank"} <= set(first)
    assert (first["step"], last["step"]) == (0, 2)
    assert len(loop.strip().splitlines()) <= 13
    exec(metric.split("length = TokenLength()")[0], names)
    lengths = names["TokenLength"]()
    lengths.update(torch.tensor([3.0, 5.0]))
    assert float(lengths.compute()["text/length_mean"]) == 4.0
