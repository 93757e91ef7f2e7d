"""Dashboards: files that hold together, layouts that TensorBoard reads back, errors that name the place."""

import importlib.util
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from hjepa_dist_metrics import catalog, resources
from hjepa_dist_metrics.catalog.dashboards import load_dashboard, load_dashboards
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.resources import config_dir, config_path
from hjepa_dist_metrics.sinks.tensorboard import TensorBoardSink
from hjepa_dist_metrics.values import Scalar


@pytest.mark.parametrize("name", catalog.ALL_DASHBOARDS)
def test_each_dashboard_shows_scalars_of_the_catalog(name):
    dashboard = load_dashboard(name)
    for chart in dashboard.charts:
        for tag in chart.tags:
            entry = catalog.find_pattern(tag)
            assert entry is not None, tag
            assert entry.kind == "scalar", tag


def test_the_files_are_those_of_the_catalog():
    files = {path.stem for path in (config_dir() / "dashboards").iterdir()}
    assert files == set(catalog.ALL_DASHBOARDS)


def test_each_dashboard_that_an_entry_names_shows_entries_of_its_own():
    for name in catalog.ALL_DASHBOARDS:
        shown = {
            catalog.find_pattern(tag).dashboard for chart in load_dashboard(name).charts for tag in chart.tags
        }
        assert name in shown


def test_the_default_layout_is_in_order_and_narrow():
    layout = load_dashboards()
    assert list(layout) == [
        *("Health", "Loss", "EMA", "Masking", "Hierarchy", "Prediction"),
        *("Collapse", "Probes", "Gradient flow", "Learning rate", "Stability", "Performance"),
    ]
    for charts in layout.values():
        for kind, tags in charts.values():
            if kind == "Margin":
                assert len(tags) == 3
                assert all(catalog.find(tag) for tag in tags)
            for regex in tags if kind == "Multiline" else ():
                assert regex.startswith("^")
                assert regex.endswith("$")
                assert ".*" not in regex
                re.compile(regex)


def test_lines_match_all_levels_and_nothing_else():
    kind, (regex,) = load_dashboards(["loss"])["Loss"]["By level"]
    assert kind == "Multiline"
    assert [
        bool(re.match(regex, tag))
        for tag in ("loss/h0", "loss/h12", "loss/h0_x", "val/loss/h0", "loss/total")
    ] == [*(True, True, False, False, False)]


def test_lines_leave_out_what_has_an_entry_of_its_own():
    charts = load_dashboards(["multimodal_training"])["Training Progress"]
    _, (regex,) = charts["Training loss by term"]
    shown = ("loss/train/total", "loss/train/image_text", "loss/train/epoch_means")
    assert all(re.match(regex, tag) for tag in shown)
    hidden = ("loss/train/epoch_mean", "loss/train/epoch_std", "loss/val/total", "loss/train/a/b")
    assert not any(re.match(regex, tag) for tag in hidden)
    _, means = charts["Epoch mean and scatter"]
    assert [bool(re.match(regex, tag)) for regex, tag in zip(means, hidden, strict=False)] == [True, True]


@pytest.mark.parametrize("levels", [1, 4])
def test_bands_are_drawn_for_each_level(levels):
    charts = load_dashboards(["prediction"], num_levels=levels)["Prediction"]
    bands = {title: tags for title, (kind, tags) in charts.items() if kind == "Margin"}
    assert bands == {
        f"Cosine with its range, level {i}": [
            f"prediction/level{i}_cosine_sim_{part}" for part in ("mean", "min", "max")
        ]
        for i in range(levels)
    }


def test_names_choose_and_order():
    assert list(load_dashboards(["stability", "loss"])) == ["Stability", "Loss"]
    assert load_dashboards([]) == {}


def test_tensorboard_reads_the_layout_and_its_regexes_find_the_tags(tmp_path):
    sink = TensorBoardSink(tmp_path, layout=load_dashboards(num_levels=2))
    tags = [f"loss/h{i}" for i in range(2)] + ["loss/total", "collapse/level0_effective_rank"]
    sink.write(0, {tag: Scalar(1.0) for tag in tags})
    sink.close()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    (event,) = accumulator.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(load_dashboards())
    assert [category.closed for category in layout.category] == [False] + [True] * (len(layout.category) - 1)
    regexes = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    for tag in accumulator.Tags()["scalars"]:
        assert any(re.match(regex, tag) for regex in regexes), tag


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("title: [", ["is not YAML"]),
        ("- a", ["expected title (str) and charts (list)"]),
        ("title: A", ["expected title (str) and charts (list), got ['title']"]),
        ("title: A\ncharts: []", ["charts need titles"]),
        (
            "title: A\ncharts: [{title: x, lines: [loss/total]}, {title: x, lines: [loss/total]}]",
            ["charts need titles"],
        ),
        (
            "title: A\ncharts: [{title: x, lines: [loss/totl]}]",
            ["chart 1", "'loss/totl'", "near ones: loss/total"],
        ),
        ("title: A\ncharts: [{title: x, lines: [3]}]", ["chart 1", "no tag 3"]),
        ("title: A\ncharts: [{title: x, lines: [alerts/log]}]", ["kind text", "draws scalars"]),
        ("title: A\ncharts: [{title: x, lines: loss/total}]", ["chart 1", "lines (list)", "'loss/total'"]),
        ("title: A\ncharts: [{title: x, band: {value: loss/total}}]", ["chart 1, band", "lower (str)"]),
    ],
)
def test_a_wrong_file_is_named_with_the_place(tmp_path, content, parts):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_dashboards([str(path)])
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_an_own_file_is_loaded(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: Mine\ncharts: [{title: x, lines: [loss/total, 'val/loss']}]")
    assert load_dashboards([str(path)]) == {"Mine": {"x": ["Multiline", ["^loss/total$", "^val/loss$"]]}}


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"dashboards/los\.yaml.*there is dashboards/loss\.yaml"):
        load_dashboards(["los"])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_dashboards(["/nowhere/x.yaml"])


def test_config_path_finds_files():
    assert config_path("dashboards/loss.yaml").is_file()
    with pytest.raises(ConfigError, match=r"no configuration 'defualt\.yaml'.*there is"):
        config_path("defualt.yaml")


def load_copy_of_resources(folder):
    copy = folder / "resources.py"
    copy.write_text(Path(resources.__file__).read_text())
    spec = importlib.util.spec_from_file_location("copy_of_resources", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configurations_are_found_inside_a_wheel_first_and_beside_the_package_else(tmp_path):
    package = tmp_path / "hjepa_dist_metrics"
    package.mkdir()
    module = load_copy_of_resources(package)
    with pytest.raises(ConfigError, match="installation is incomplete"):
        module.config_dir()
    (tmp_path / "configs").mkdir()  # a stranger's, beside an installed package
    with pytest.raises(ConfigError, match="installation is incomplete"):
        module.config_dir()
    (tmp_path / "configs" / "dashboards").mkdir()
    assert module.config_dir() == tmp_path / "configs"
    (package / "configs" / "dashboards").mkdir(parents=True)
    assert module.config_dir() == package / "configs"
