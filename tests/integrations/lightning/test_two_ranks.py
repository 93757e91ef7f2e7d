"""Lightning on two ranks with batches of uneven size: what is written is what one loop computes."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.jobs import ROOT, TORCHRUN, run, told
from tests.helpers.spectrum import effective_rank
from tests.integrations.lightning import job, modules


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lightning")
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "tests.integrations.lightning.job", str(directory)]
    finished = run(command, directory / "logs", PYTHONPATH=str(ROOT))
    assert finished.returncode == 0, told([finished])
    return directory


def series(directory, tag, run_name="run"):
    return [line[tag] for line in read_jsonl(directory / f"metrics/{run_name}.jsonl") if tag in line]


def tensors(rows):
    return torch.stack([x for x, _ in rows]).double(), torch.tensor([y for _, y in rows])


def direct():
    """Train as DDP does: the gradient is the mean of the ranks' means, whatever their sizes."""
    module = modules.Classifier().double()
    batches = job.rows(job.SIZES, 1)
    seen = {"loss": [], "norm": [], "rank": []}
    for step in range(3):
        parts = [tensors(batches[rank][step]) for rank in (0, 1)]
        losses = [module.loss(part) for part in parts]
        sizes = [len(labels) for _, labels in parts]
        seen["loss"].append(sum(n * loss.item() for n, loss in zip(sizes, losses, strict=True)) / sum(sizes))
        module.zero_grad()
        (sum(losses) / 2).backward()
        seen["norm"].append(float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm()))
        with torch.no_grad():
            seen["rank"].append(effective_rank(module.body(torch.cat([x for x, _ in parts])).numpy()))
            for parameter in module.parameters():
                parameter -= module.lr / (1 + step) * parameter.grad
    return module, seen


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_every_number_is_that_of_the_whole_job(trained, kind):
    trained = trained / kind
    module, expected = direct()
    assert series(trained, "loss/total") == pytest.approx(expected["loss"], rel=1e-4)
    assert series(trained, "error") == pytest.approx(expected["loss"], rel=1e-4)
    for tag in ("gradients/global_norm", "gradient/global_norm_before_clip"):
        assert series(trained, tag) == pytest.approx(expected["norm"], rel=1e-4)
    assert series(trained, "collapse/effective_rank") == pytest.approx(expected["rank"], rel=1e-4)
    assert series(trained, "performance/total_samples") == [4, 7, 12]
    batches = [batch for own in job.rows(job.VALIDATION, 2).values() for batch in own]
    inputs, labels = tensors([row for batch in batches for row in batch])
    logits = module.head(module.body(inputs).tanh())
    validation = nn.functional.cross_entropy(logits, labels).item()
    assert series(trained, "val/loss") == pytest.approx([validation], rel=1e-4)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_logger_writes_once(trained, kind):
    trained = trained / kind
    assert len(series(trained, "error", "logged")) == 3
    assert len(series(trained, "val_loss", "logged")) == 1
    assert sorted(path.name for path in (trained / "metrics").iterdir()) == ["logged.jsonl", "run.jsonl"]
