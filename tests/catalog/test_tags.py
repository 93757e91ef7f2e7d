"""The catalog's two generated files hold what the metrics' modules say, and are read without torch."""

import dataclasses
import subprocess
import sys

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog.entry import Entry, Limits
from hjepa_dist_metrics.catalog.storage import from_json, to_json
from hjepa_dist_metrics.commands.tags import collect, files
from hjepa_dist_metrics.errors import ConfigError


def test_generated_files_are_up_to_date():
    stale = [path.name for path, text in files().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m hjepa_dist_metrics.commands.tags"


def test_the_catalog_holds_what_the_modules_say():
    assert catalog.entries() == collect()
    assert len(collect()) > 250


def test_groups_of_tags_stand_together():
    groups = [entry.pattern.partition("/")[0] for entry in collect()]
    changes = [new for old, new in zip(["", *groups], groups, strict=False) if new != old]
    assert len(changes) == len(set(changes))


def test_entries_survive_their_file():
    entry = Entry(
        "a/{i}", "title", "A naïve meaning.", unit="%", limits=catalog.effective_rank_limits, family="system"
    )
    bound = dataclasses.replace(entry, limits=None, bounds=Limits(1.0, float("inf"), low_is_bad=False))
    assert from_json(to_json([entry, bound])) == (entry, bound)


def test_limits_must_be_found_again():
    with pytest.raises(ConfigError, match=r"'a/b' must be a function of hjepa_dist_metrics\.catalog\.limits"):
        to_json([Entry("a/b", "title", "Meaning.", limits=lambda dim, count: Limits(0, 0, True))])


def test_a_tag_is_explained_without_torch():
    code = (
        "import sys; from hjepa_dist_metrics.cli import main; main(['explain', 'collapse/effective_rank']); "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "False False"
