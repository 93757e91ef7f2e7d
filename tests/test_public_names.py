"""The top level: every public name is there, typed and lazy, and importing it is nearly free."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hjepa_dist_metrics
import hjepa_dist_metrics.figures


def typed_names(package=hjepa_dist_metrics):
    """Names that the type checkers see, by the module that they come from."""
    source = Path(package.__file__).read_text()
    (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    return {
        (statement.module.removeprefix(f"{package.__name__}."), alias.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_type_checkers_and_the_interpreter_see_the_same_names():
    homes = hjepa_dist_metrics._HOMES
    assert typed_names() == {(home, name) for home, names in homes.items() for name in names}


def test_the_figures_names_are_all_there_too():
    homes = hjepa_dist_metrics.figures._HOMES
    assert typed_names(hjepa_dist_metrics.figures) == {
        (home, n) for home, names in homes.items() for n in names
    }
    for name in (name for names in homes.values() for name in names):
        assert callable(getattr(hjepa_dist_metrics.figures, name))


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
