"""Patterns of the catalog match the tags that they stand for, and no others."""

import re

import pytest
from hypothesis import assume, given, settings, strategies as st

from hjepa_dist_metrics.catalog import entries, find
from hjepa_dist_metrics.catalog.entry import PLACEHOLDERS, Entry, to_regex
from hjepa_dist_metrics.catalog.registry import chart_regex, find_pattern, suggest

LITERALS = st.text(st.characters(exclude_characters="{}\n"), max_size=10)
VALUES = {name: st.from_regex(regex, fullmatch=True) for name, regex in PLACEHOLDERS.items()}


@settings(max_examples=100)
@given(LITERALS, LITERALS, st.sampled_from(sorted(PLACEHOLDERS)), st.data())
def test_a_pattern_matches_what_its_placeholder_stands_for(before, after, name, data):
    value = data.draw(VALUES[name])
    assume("\n" not in value)
    entry = Entry(f"{before}{{{name}}}{after}", "title of {" + name + "}", "meaning")
    tag = f"{before}{value}{after}"
    assert entry.matches(tag)
    assert re.fullmatch(to_regex(entry.pattern), tag)
    assert not entry.matches(f"{before}a/b{after}") or "/" in before + after
    assert set(entry.placeholder_values(tag)) == {name}
    filled = entry.pattern.replace(f"{{{name}}}", entry.placeholder_values(tag)[name])
    assert filled == tag


@given(st.text(max_size=20))
def test_any_text_is_looked_up_without_an_error(text):
    found = find(text)
    assert found is None or found.matches(text)
    find_pattern(text)
    assert suggest(text)


@given(st.text(st.characters(exclude_characters="{}"), max_size=20))
def test_a_pattern_without_placeholders_is_itself(text):
    assert re.fullmatch(to_regex(text), text) is not None or text.endswith("\n")


@given(
    st.text(st.characters(categories=["L", "N"]), min_size=1).filter(lambda name: name not in PLACEHOLDERS)
)
def test_unknown_placeholders_are_an_error(name):
    if re.fullmatch(r"\w+", name):
        with pytest.raises(ValueError, match="placeholders:"):
            to_regex(f"loss/{{{name}}}")


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.is_pattern], ids=lambda e: e.pattern)
def test_every_pattern_finds_itself_by_an_example(entry):
    tag = re.sub(r"\{(i|rank)\}", "7", entry.pattern)
    tag = re.sub(r"\{(\w+)\}", r"some-\1.x", tag)
    found = find(tag)
    assert found is not None
    assert found.matches(tag)
    assert entry.matches(tag)
    assert re.match(chart_regex(found.pattern), tag)
