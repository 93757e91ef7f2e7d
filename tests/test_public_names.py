"""The top level: every public name is there, typed and lazy, and importing it is nearly free."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hjepa_dist_metrics

SOURCE = Path(hjepa_dist_metrics.__file__)


def typed_names():
    """Names that the type checkers see, by the module that they come from."""
    (block,) = (node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    return {
        (statement.module.removeprefix("hjepa_dist_metrics."), alias.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_type_checkers_and_the_interpreter_see_the_same_names():
    homes = hjepa_dist_metrics._HOMES
    assert typed_names() == {(home, name) for home, names in homes.items() for name in names}


@pytest.mark.parametrize(
    "name", sorted(name for names in hjepa_dist_metrics._HOMES.values() for name in names)
)
def test_every_name_is_there(name):
    assert getattr(hjepa_dist_metrics, name) is not None
    assert name in dir(hjepa_dist_metrics)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Colapse'"):
        _ = hjepa_dist_metrics.Colapse


def test_importing_the_package_loads_nothing_else():
    code = (
        "import sys, torch; before = set(sys.modules); import hjepa_dist_metrics; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hjepa_dist_metrics", "hjepa_dist_metrics.version"]
