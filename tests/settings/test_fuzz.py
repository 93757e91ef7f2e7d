"""Whatever a configuration holds, it is a LoggingConfig or a ConfigError that names the key."""

from pathlib import PurePath

from hypothesis import given, settings, strategies as st

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.run_name import check_run_name
from hjepa_dist_metrics.settings.schema import LoggingConfig, from_mapping, to_dict
from hjepa_dist_metrics.sinks import jsonl_path, tensorboard_dir

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2)
)


def keys(section, above=()):
    for name, value in section.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from keys(value, (*above, name))


KEYS = sorted(keys(to_dict(LoggingConfig())))


def nested(path, value):
    return {path[0]: nested(path[1:], value)} if path else value


def build(source):
    """Return the configuration, or the text of its ConfigError."""
    try:
        return from_mapping(source)
    except ConfigError as error:
        return str(error)


@settings(max_examples=150)
@given(st.sampled_from(KEYS), ANYTHING)
def test_any_value_of_a_key_is_taken_or_an_error_that_names_it(path, value):
    built = build(nested(path, value))
    if isinstance(built, str):
        assert f"logging.{'.'.join(path)}" in built
        assert "\n" not in built or "\n" in repr(value)
    else:
        assert from_mapping(to_dict(built)) == built


@given(ANYTHING)
def test_any_source_is_a_configuration_or_a_clear_error(source):
    built = build(source)
    assert isinstance(built, LoggingConfig) or "logging" in built


@given(st.dictionaries(st.text(max_size=10), ANYTHING, min_size=1, max_size=2))
def test_unknown_keys_are_named(section):
    built = build({"logging": section})
    assert isinstance(built, LoggingConfig) or any(
        f"logging.{shown}: " in built for key in section for shown in (key, repr(key))
    )


@settings(max_examples=150)
@given(st.text(max_size=300) | st.text("./a\\ ", max_size=8))
def test_any_name_of_a_run_is_refused_or_stays_in_the_log_directory(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "names"
    try:
        check_run_name(name)
    except ConfigError as error:
        assert str(error).startswith("experiment_name is ")  # noqa: PT017 - the other half of the promise
        return
    for path in (tensorboard_dir(root, name), jsonl_path(root, name)):
        assert ".." not in PurePath(path).parts
        assert path.resolve().is_relative_to(root.resolve())
        path.mkdir(parents=True, exist_ok=True)  # a file system takes it
