"""Lightning warns of its own use of torch, of the machine, and of what small runs leave out."""

import pytest

WARNINGS = (
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*`training_step` returned `None`.*:UserWarning",
    "ignore:Using ModelCheckpoint with manual optimization.*:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty.*:UserWarning",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "integrations/lightning" in str(item.path):
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
