"""A run's figures: the first of each beside the last."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.commands.report.markup import attribute, text
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.readers.run_log import Picture

_SMALL = 300


def pictures(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the figures: of one run before the training and after, of several the last ones."""
    tags = sorted({tag for run in runs for tag in run.log.pictures})
    if not tags:
        return
    yield '<p class="note hint">Click a figure to see it at its full size.</p>'
    yield f'<div class="figures">{"".join(_card(tag, runs) for tag in tags)}</div>'


def _card(tag: str, runs: Sequence[Run]) -> str:
    entry = catalog.find(tag)
    title = entry.titled(tag) if entry else tag
    if len(runs) == 1:
        (run,) = runs
        shown = run.log.pictures[tag]
        names = ["before"] if len(shown) > 1 else ["drawn once"]
        images = [_image(title, *one) for one in zip([*names, "after"], shown, strict=False)]
    else:
        images = [
            _image(title, run.name, run.log.pictures[tag][-1]) for run in runs if tag in run.log.pictures
        ]
    heading = f'<h3>{text(title[:1].upper() + title[1:])}<br><code class="tag">{text(tag)}</code></h3>'
    return f'<div class="card">{heading}<div class="pair">{"".join(images)}</div></div>'


def _image(title: str, name: str, picture: Picture) -> str:
    step, png = picture
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    small = ' class="small"' if _width(png) < _SMALL else ""
    words = attribute(f"{title}, {name}, step {step}")
    return (
        f'<figure><button type="button" class="zoom"><img{small} alt="{words}" '
        f'src="{source}"></button><figcaption>{text(name)}, step {step}</figcaption></figure>'
    )


def _width(png: bytes) -> int:
    """Return the width in the header of a PNG file."""
    return int(struct.unpack(">I", png[16:20])[0]) if png[:8] == b"\x89PNG\r\n\x1a\n" else _SMALL
