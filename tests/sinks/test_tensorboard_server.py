"""A real TensorBoard server, asked over HTTP, and looked at with a real browser."""

import pytest

from tests.helpers.served import STEPS, TAGS, browse, missing_browser, serve, wait_for, write_everything


def whole(get, path, tag):
    """Return a tag's points once the server has read them all."""
    points = get(path, run="run", tag=tag)
    return points if len(points) == STEPS else None


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("logs")
    write_everything(log_dir)
    with serve(log_dir) as served:
        yield served


def test_the_run_and_the_plugins_are_there(board):
    assert board.get("/data/runs") == ["run"]
    plugins = wait_for(
        "all plugins",
        lambda: (
            {
                name: plugin["enabled"]
                for name, plugin in board.get("/data/plugins_listing").items()
                if plugin["enabled"]
            }.keys()
            >= {"scalars", "custom_scalars", "histograms", "images", "text", "hparams", "projector", "graphs"}
        ),
    )
    assert plugins
    assert board.get("/data/environment")["version"].startswith("2.")


def test_scalars_are_all_there_without_thinning(board):
    points = wait_for("all points", lambda: whole(board.get, "/data/plugin/scalars/scalars", "loss/total"))
    assert [point[1] for point in points] == list(range(STEPS))
    assert set(board.get("/data/plugin/scalars/tags")["run"]) == set(TAGS)


def test_every_chart_of_the_dashboards_matches_what_it_is_about(board):
    wait_for("all points", lambda: whole(board.get, "/data/plugin/scalars/scalars", "loss/h1"))
    categories = board.get("/data/plugin/custom_scalars/layout")["category"]
    assert [(c["title"], c["closed"]) for c in categories] == [
        ("Health", False),
        *((title, True) for title in ("Loss", "EMA", "Collapse", "Gradient flow", "Learning rate")),
        ("Performance", True),
    ]
    found = {}
    for chart in (chart for category in categories for chart in category["chart"]):
        for regex in chart["multiline"]["tag"]:
            answer = board.get("/data/plugin/custom_scalars/scalars", run="run", tag=regex)
            assert answer["regex_valid"]
            assert answer["tag_to_events"], f"{chart['title']} has no data for {regex}"
            found |= answer["tag_to_events"]
    assert {"loss/total", "loss/h0", "loss/h1", "loss/h2"} <= set(found)
    assert len(found["loss/h1"]) == STEPS


def test_histograms(board):
    tags = wait_for("the histograms", lambda: board.get("/data/plugin/histograms/tags").get("run"))
    assert list(tags) == ["weights/0"]
    points = board.get("/data/plugin/histograms/histograms", run="run", tag="weights/0")
    assert [point[1] for point in points] == [0, 20, 40]
    for _, _, buckets in points:
        assert sum(bucket[2] for bucket in buckets) == pytest.approx(500)


def test_images_and_videos_are_pngs(board):
    tags = wait_for("the images", lambda: board.get("/data/plugin/images/tags").get("run"))
    assert set(tags) == {"masking/coverage", "masking/video"}
    for tag, animated in (("masking/coverage", False), ("masking/video", True)):
        listed = board.get("/data/plugin/images/images", run="run", tag=tag, sample=0)
        picture = board.raw(f"/data/plugin/images/individualImage?{listed[-1]['query']}")
        assert picture[:4] == b"\x89PNG"
        assert (b"acTL" in picture) == animated


def test_text_is_rendered(board):
    tags = wait_for("the text", lambda: board.get("/data/plugin/text/tags").get("run"))
    assert tags == ["notes/run/text_summary"] or tags == ["notes/run"]
    (entry,) = board.get("/data/plugin/text/text", run="run", tag=tags[0])
    assert "<h1>A title</h1>" in entry["text"]
    assert "<strong>bold</strong>" in entry["text"]


def test_the_table_of_runs_has_settings_metric_and_end(board):
    experiment = wait_for(
        "the table",
        lambda: board.get("/data/plugin/hparams/experiment", body={"experimentName": ""}).get("hparamInfos"),
    )
    names = {info["name"] for info in experiment}
    assert {"lr", "model.depth"} <= names
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": {"group": "", "tag": "loss/total"}}],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = board.get("/data/plugin/hparams/session_groups", body=request)["sessionGroups"]
    (group,) = groups
    assert group["hparams"]["lr"] == 0.5
    (session,) = group["sessions"]
    assert session["status"] == "STATUS_SUCCESS"
    (metric,) = session["metricValues"]
    assert (metric["name"]["tag"], metric["trainingStep"]) == ("loss/total", STEPS - 1)


def test_the_projector_has_points_labels_and_sprites(board):
    runs = wait_for("the projector", lambda: board.get("/data/plugin/projector/runs"))
    info = board.get("/data/plugin/projector/info", run=runs[0])
    (embedding,) = info["embeddings"]
    name = embedding["tensorName"]
    assert name.startswith("embeddings/targets")
    labels = board.raw("/data/plugin/projector/metadata", run=runs[0], name=name).decode().split()
    assert labels == [str(index) for index in range(20)]
    assert len(board.raw("/data/plugin/projector/tensor", run=runs[0], name=name)) == 20 * 4 * 4
    assert board.raw("/data/plugin/projector/sprite_image", run=runs[0], name=name)[:4] == b"\x89PNG"


def test_the_graph_has_the_models_layers(board):
    graph = wait_for(
        "the graph", lambda: board.raw("/data/plugin/graphs/graph", run="run", conceptual="false")
    )
    assert b"Linear" in graph


# Count elements and drawn lines through shadow roots and frames of the page's own origin.
LOOK = """
const found = {cards: 0, curves: 0, canvases: 0, images: 0, text: ''};
const walk = (node) => {
  if (!node) return;
  const name = (node.localName || '');
  if (name === 'style' || name === 'script') return;
  if (name.startsWith('tf-custom-scalar-') && name.endsWith('-chart-card')) found.cards += 1;
  const drawn = name === 'path' && node.classList.contains('line') && node.getAttribute('d');
  if (drawn && drawn.length > 200) found.curves += 1;
  if (name === 'canvas') found.canvases += 1;
  if (name === 'img' && node.naturalWidth > 0) found.images += 1;
  if (node.shadowRoot) walk(node.shadowRoot);
  if (name === 'iframe') { try { walk(node.contentDocument.documentElement); } catch (error) {} }
  if (node.getAttribute && node.getAttribute('title')) found.text += node.getAttribute('title') + ' ';
  if (node.nodeType === 3) found.text += node.textContent + ' ';
  for (const child of (node.childNodes || [])) if (child.nodeType === 1 || child.nodeType === 3) walk(child);
};
walk(document.documentElement);
return found;
"""


@pytest.fixture(scope="module")
def browser():
    if missing_browser():
        pytest.skip(f"no headless browser to look with: {missing_browser()} not installed")
    with browse() as opened:
        yield opened


def test_the_browser_draws_the_first_dashboard(board, browser):
    browser.open(f"{board.url}/#custom_scalars")
    (first, *_) = board.get("/data/plugin/custom_scalars/layout")["category"]
    charts = len(first["chart"])
    seen = wait_for(
        "charts of the first dashboard",
        lambda: found if (found := browser.run(LOOK))["curves"] >= charts else None,
        seconds=120,
    )
    assert seen["cards"] == charts
    assert first["title"] in seen["text"]
    assert first["chart"][0]["title"] in seen["text"]
    assert [error for error in browser.errors() if "favicon" not in error] == []


@pytest.mark.parametrize(
    ("tab", "looks_right"),
    [
        (
            "timeseries",
            lambda found: found["canvases"] >= 1 and "loss5cards" in "".join(found["text"].split()),
        ),
        ("histograms", lambda found: "weights/0" in found["text"]),
        ("images", lambda found: found["images"] >= 1 and "masking" in found["text"]),
        ("text", lambda found: "A title" in found["text"]),
        ("hparams", lambda found: "model.depth" in found["text"]),
    ],
)
def test_the_browser_shows_the_other_tabs(board, browser, tab, looks_right):
    browser.open("about:blank")  # a change of the hash alone does not load the page anew
    browser.open(f"{board.url}/#{tab}")
    wait_for(f"the tab {tab}", lambda: looks_right(browser.run(LOOK)), seconds=60)
