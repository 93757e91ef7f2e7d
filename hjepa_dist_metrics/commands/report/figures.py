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
    """Yield each run's figures, inside the page: before the training and after, where there are both."""
    for run in runs:
        for tag, shown in sorted(run.log.pictures.items()):
            entry = catalog.find(tag)
            title = entry.titled(tag) if entry else tag
            name = f"{run.name}: " if len(runs) > 1 else ""
            yield f"<h3>{text(name + title)} <code>{text(tag)}</code></h3>"
            yield f'<div class="pairs">{"".join(_picture(title, one, shown) for one in shown)}</div>'
            if len(shown) == 1:
                yield f'<p class="note">Drawn once, at step {shown[0][0]} of {run.last_step}.</p>'


def _picture(title: str, picture: Picture, shown: Sequence[Picture]) -> str:
    step, png = picture
    when = "" if len(shown) == 1 else ("before, " if picture is shown[0] else "after, ")
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    small = ' class="small"' if _width(png) < _SMALL else ""
    return (
        f'<figure><img{small} alt="{attribute(f"{title}, {when}step {step}")}" src="{source}">'
        f"<figcaption>{when}step {step}</figcaption></figure>"
    )


def _width(png: bytes) -> int:
    """Return the width in the header of a PNG file."""
    return int(struct.unpack(">I", png[16:20])[0]) if png[:8] == b"\x89PNG\r\n\x1a\n" else _SMALL
