"""The table of settings in configs/README.md is that of the configuration, and so is what help() shows."""

import dataclasses
import pydoc
from pathlib import Path

import pytest

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.settings.table import with_settings

PAGE = Path(__file__).resolve().parents[2] / "configs/README.md"


def test_settings_are_those_of_the_configuration():
    text = PAGE.read_text()
    assert with_settings(text) == text, "run: python -m hjepa_dist_metrics.settings.table"
    assert "| `cadence.representations` | `null` |" in text
    assert "| `alerts.patience` | `2` |" in text
    assert "| `tensorboard.enabled` | `true` |" in text
    with pytest.raises(ConfigError, match="once each"):
        with_settings("no markers here")


def test_every_configuration_is_named():
    text = PAGE.read_text()
    names = [path.name for path in PAGE.parent.glob("*.yaml")]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_help_explains_every_setting():
    shown = pydoc.render_doc(LoggingConfig)
    for field in dataclasses.fields(LoggingConfig):
        assert f"{field.name}: " in shown
    assert "Steps between two logs of scalars; the other cadences follow it." in shown
    assert "10 * `log_frequency`" in (type(LoggingConfig().cadence).__doc__ or "")
