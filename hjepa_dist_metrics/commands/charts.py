"""Line charts as SVG text: small enough to live inside a page, sharp at any size, no package needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

Points = Sequence[tuple[int, float]]

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 28
_MOST_POINTS = 400
# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def line_chart(title: str, lines: Mapping[str, Points]) -> str:
    """Return a figure with one line for each name; nonfinite points leave gaps, long lines are thinned."""
    shown = {name: _thin(points) for name, points in lines.items()}
    finite = [(x, y) for points in shown.values() for x, y in points if math.isfinite(y)]
    caption = f"<figcaption>{escape(title)}</figcaption>"
    if not finite:
        return f"<figure>{caption}<p>no finite value</p></figure>"
    low_x, high_x = min(x for x, _ in finite), max(x for x, _ in finite)
    low_y, high_y = _padded(min(y for _, y in finite), max(y for _, y in finite))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1)
        up = (y - low_y) / (high_y - low_y)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in _ticks(low_y, high_y):
        _, y = place(low_x, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in sorted({low_x, high_x}):
        x, _ = place(tick, low_y)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{tick}</text>')
    for index, points in enumerate(shown.values()):
        for stretch in _stretches(points):
            parts.append(_line([place(x, y) for x, y in stretch], _COLOURS[index % len(_COLOURS)]))
    return f"<figure>{caption}{''.join(parts)}</svg>{_legend(list(shown))}</figure>"


def _line(places: Sequence[tuple[float, float]], colour: str) -> str:
    if len(places) == 1:
        return f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{colour}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _legend(names: Sequence[str]) -> str:
    entries = (
        f'<span><i style="background:{_COLOURS[index % len(_COLOURS)]}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def _thin(points: Points) -> Points:
    """Return at most 400 points, each stretch's last one."""
    if len(points) <= _MOST_POINTS:
        return points
    stride = len(points) / _MOST_POINTS
    return [points[min(int((index + 1) * stride), len(points)) - 1] for index in range(_MOST_POINTS)]


def _stretches(points: Points) -> Iterator[list[tuple[int, float]]]:
    stretch: list[tuple[int, float]] = []
    for x, y in points:
        if math.isfinite(y):
            stretch.append((x, y))
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def _ticks(low: float, high: float) -> Iterator[float]:
    """Yield three to six round numbers within the range."""
    raw = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * scale for nice in (1, 2, 5, 10) if nice * scale >= raw)
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield index * step
