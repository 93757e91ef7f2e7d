"""The report in a real browser: curves, hover, zoom, toggles, dark mode, a narrow window, print."""

import contextlib
import functools
import http.server
import threading

import numpy as np
import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.commands.report import render_report
from hjepa_dist_metrics.commands.runs import load_runs
from tests.helpers.served import browse, missing_browser, wait_for

pytestmark = pytest.mark.skipif(
    bool(missing_browser()),
    reason=f"no {missing_browser()} (apt-get install chromium chromium-driver)",
)

FIGURE = (
    "const figure = document.querySelectorAll('figure[data-chart]')[arguments[0]]; const u = figure.uplot;"
)


def write(log_dir):
    with MetricsLogger("run", log_dir) as logger:
        logger.log_hparams({"a_setting_with_a_long_name": "x" * 200})
        for step in range(0, 400, 2):
            numbers = {"loss/total": np.exp(-step / 100), "collapse/effective_rank": 5 + step / 10}
            numbers |= {"collapse/num_samples": 1000, "collapse/num_features": 64}
            if step % 50 == 0:
                numbers["val/loss"] = np.exp(-step / 100) + 0.1
            logger.log_metrics(numbers | {f"own/number_{i}": i for i in range(30)}, step)
        logger.log_image("masking/coverage", np.zeros((300, 1200)), 0)


@contextlib.contextmanager
def serving(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write(folder / "logs")
    (folder / "report.html").write_text(render_report(load_runs(folder / "logs")))
    with browse() as opened:
        opened.page = (folder / "report.html").as_uri()
        yield opened


@pytest.fixture
def page(browser):
    browser.open(browser.page)
    browser.run("chooseTheme('light')")
    yield browser
    assert browser.errors() == []
    browser.run("localStorage.clear(); document.querySelectorAll('details').forEach(d => { d.open = false })")


def test_every_chart_is_drawn_with_its_description(page):
    drawn = page.run(
        "return [...document.querySelectorAll('figure[data-chart]')].map(f => "
        "[f.querySelector('canvas').getAttribute('aria-label'), f.uplot.data[0].length])"
    )
    assert [alt.split(":")[0] for alt, _ in drawn] == ["Loss", "Effective rank of the features"]
    assert [count for _, count in drawn] == [200, 200]


def test_curves_are_where_their_numbers_are(page):
    """A pixel on the curve has the colour of its line: asked of the canvas at a step's own place."""
    blue = page.run(
        f"{FIGURE} const x = u.valToPos(u.data[0][100], 'x', true);"
        "const y = u.valToPos(u.data[1][100], 'y', true);"
        "const seen = [...u.ctx.getImageData(Math.round(x), Math.round(y), 1, 1).data]; return seen",
        0,
    )
    assert blue[2] > 120 > blue[0]


def test_hovering_shows_values_at_the_nearest_logged_step(page):
    shown = page.run(
        f"{FIGURE} const over = figure.querySelector('.u-over'), box = over.getBoundingClientRect();"
        "const x = box.left + u.valToPos(206, 'x'), y = box.top + 50;"
        "over.dispatchEvent(new MouseEvent('mouseenter', {clientX: x, clientY: y, bubbles: true}));"
        "over.dispatchEvent(new MouseEvent('mousemove', {clientX: x, clientY: y, bubbles: true}));"
        "return new Promise(done => setTimeout(() => done("
        "[...figure.querySelectorAll('.u-legend .u-value')].map(v => v.textContent)), 300))",
        0,
    )
    step, total, validation = map(float, shown)
    assert step == 206
    assert total == pytest.approx(np.exp(-2.06), rel=1e-3)
    assert validation == pytest.approx(np.exp(-2.0) + 0.1, rel=1e-3)  # logged at step 200


def test_dragging_zooms_and_a_double_click_shows_all(page):
    place = (
        f"{FIGURE} const box = figure.querySelector('.u-over').getBoundingClientRect();"
        "return [box.left + u.valToPos(arguments[1], 'x'), box.top + 40]"
    )
    limits = f"{FIGURE} return [u.scales.x.min, u.scales.x.max]"
    (left, top), (right, _) = page.run(place, 0, 100), page.run(place, 0, 200)
    assert page.run(limits, 0) == [0, 398]
    page.mouse("mouseMoved", left, top)
    page.mouse("mousePressed", left, top)
    page.mouse("mouseMoved", right, top)
    page.mouse("mouseReleased", right, top)
    zoomed = page.run_until(f"{FIGURE} return u.scales.x.max < 398 && [u.scales.x.min, u.scales.x.max]", 0)
    assert zoomed == pytest.approx([100, 200], abs=4)
    for count in (1, 2):
        page.mouse("mousePressed", left, top, clicks=count)
        page.mouse("mouseReleased", left, top, clicks=count)
    assert page.run_until(
        f"{FIGURE} return u.scales.x.max === 398 && [u.scales.x.min, u.scales.x.max]", 0
    ) == [0, 398]


def test_a_click_and_the_enter_key_on_a_name_hide_its_line(page):
    states = page.run(
        f"{FIGURE} const name = figure.querySelectorAll('.u-legend th')[1], shown = [u.series[1].show];"
        "name.click(); shown.push(u.series[1].show);"
        "name.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));"
        "shown.push(u.series[1].show); return [...shown, name.tabIndex, name.getAttribute('role')]",
        0,
    )
    assert states == [True, False, True, 0, "button"]


def test_dark_and_light_follow_the_button(page):
    look = (
        "const u = document.querySelector('figure[data-chart]').uplot;"
        "const style = getComputedStyle(document.body);"
        "return [style.backgroundColor, style.color, u.series[1].stroke(u, 1)]"
    )
    first = page.run(look)
    page.run("document.getElementById('theme').click()")
    second = page.run(look)
    assert all(one != other for one, other in zip(first, second, strict=True))

    def luminance(colour):
        return sum(map(int, colour.strip("rgb()").split(",")))

    for background, text, _ in (first, second):
        assert abs(luminance(background) - luminance(text)) > 400
    wait_for("the theme of last time", lambda: page.open(page.page) or page.run(look) == second)


@pytest.mark.parametrize("width", [700, 380])
def test_nothing_overflows_a_narrow_window(page, width):
    page.resize(width, 900)
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    inner, scrolls, wide = page.run(
        "return new Promise(done => setTimeout(() => done([innerWidth, document.documentElement.scrollWidth,"
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))]), 500))"
    )
    page.resize(1600, 1200)
    assert inner == width
    assert wide == []
    assert scrolls <= width


def test_groups_draw_their_curves_when_opened_and_the_filter_finds_tags(page):
    count = "return document.querySelectorAll('td.spark canvas').length"
    assert page.run(count) == 0
    page.run("document.getElementById('group-0-own').open = true")
    assert page.run("return new Promise(d => setTimeout(() => d(1), 300))") == 1
    assert page.run(count) == 30
    shown = page.run(
        "const f = document.getElementById('filter'); f.value = 'number_7';"
        "f.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('tr[data-tag]')].filter(r => r.offsetParent)"
        ".map(r => r.dataset.tag)"
    )
    assert shown == ["own/number_7"]


def test_a_click_shows_a_figure_at_its_full_size_and_escape_closes_it(page):
    width = "return document.querySelector('button.zoom img').getBoundingClientRect().width"
    small = page.run(width)
    page.run("document.querySelector('button.zoom').click()")
    assert page.run(width) > 1.5 * small
    page.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert page.run(width) == small


def test_paper_is_white_and_has_no_buttons(page):
    page.run("chooseTheme('dark')")
    assert page.run("dispatchEvent(new Event('beforeprint')); return theme()") == "light"
    assert page.run("dispatchEvent(new Event('afterprint')); return theme()") == "dark"
    rules = page.run(
        "return [...document.styleSheets].flatMap(s => [...s.cssRules])"
        ".filter(r => r.media?.mediaText === 'print').map(r => r.cssText).join(' ')"
    )
    assert "#all" in rules
    assert "--page: #fff" in rules


def test_the_page_asks_for_nothing_outside_itself(page):
    loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_a_live_page_loads_itself_again_and_keeps_what_is_open(browser, tmp_path):
    write(tmp_path / "logs")
    (tmp_path / "live.html").write_text(render_report(load_runs(tmp_path / "logs"), refresh=1.0))
    with serving(tmp_path) as address:
        browser.open(f"{address}/live.html")
        browser.run("document.getElementById('group-0-own').open = true; window.mark = 1")
        again = browser.run_until("return !window.mark && document.readyState === 'complete'")
        assert again
        assert browser.run("return document.getElementById('group-0-own').open")
        browser.open("about:blank")
