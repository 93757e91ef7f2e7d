"""Mark every test of this folder `cuda`, and skip it with a reason where there is no GPU and no rehearsal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.device import REHEARSAL, has_gpu

FOLDER = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if FOLDER in item.path.parents]
    reason = f"needs a GPU: torch.cuda.is_available() is False (rehearsed on the host with {REHEARSAL}=1)"
    skip = None if has_gpu() else pytest.mark.skip(reason=reason)
    for item in here:
        item.add_marker("cuda")
        if skip is not None:
            item.add_marker(skip)
