"""The recipes of integrations/README.md run as they stand, and write what they promise."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from hjepa_dist_metrics.sinks import read_jsonl

README = Path(__file__).resolve().parents[2] / "hjepa_dist_metrics/integrations/README.md"
DIM, CLASSES = 6, 3


def recipes():
    parts = re.split(r"^## (.*)$", README.read_text(), flags=re.M)[1:]
    found = {
        title: re.search(r"```python\n(.*?)```", text, flags=re.S)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return {title: match.group(1) for title, match in found.items() if match}


def batches(count=3, size=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, DIM, generator=generator), torch.arange(size) % CLASSES) for _ in range(count)]


def names(log_dir, loader=None):
    """Return what the recipes take as given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, CLASSES))
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": loader or batches(),
        "config": {
            "experiment_name": "run",
            "log_dir": str(log_dir),
            "log_frequency": 1,
            "cadence": {"representations": 1},
        },
        "log_dir": str(log_dir),
    }


def written(log_dir):
    found = {}
    for line in read_jsonl(Path(log_dir) / "metrics/run.jsonl"):
        found.setdefault(line["step"], {}).update(line)
    return found


def run(title, given):
    exec(recipes()[title], given)
    return written(given["log_dir"])


def test_every_way_in_has_a_recipe():
    assert list(recipes()) == [
        *("Plain", "DDP with uneven data", "FSDP2", "Accelerate", "Hugging Face Trainer", "Lightning"),
        *("Teacher and student", "A dict of losses", "Evaluation", "A scheduler"),
    ]


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert [link for link in links if not (README.parent / link).exists()] == []


EXPECTED = {
    "Plain": {
        "loss/total",
        "gradients/global_norm",
        "gradient/global_norm_after_clip",
        "learning_rate/base_lr",
    },
    "A dict of losses": {"loss/total", "loss/class", "loss/norm", "gradients/global_norm"},
    "A scheduler": {"learning_rate/base_lr"},
}


@pytest.mark.parametrize("title", EXPECTED)
def test_a_loop_of_ones_own(title, tmp_path):
    values = run(title, names(tmp_path))
    assert set(values) == {0, 1, 2}
    assert all(EXPECTED[title] <= set(at) for at in values.values())
    if title == "A scheduler":
        rates = [0.1 * (1 + torch.cos(torch.tensor(torch.pi * i / 10)).item()) / 2 for i in range(3)]
        assert [at["learning_rate/base_lr"] for at in values.values()] == pytest.approx(rates)


def test_an_evaluation(tmp_path):
    given = {**names(tmp_path), "validation": batches(2, 5, seed=2)}
    values = run("Evaluation", given)
    with torch.no_grad():
        images, labels = (torch.cat(parts) for parts in zip(*given["validation"], strict=True))
        loss = nn.functional.cross_entropy(given["model"](images), labels).item()
    assert values[2]["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert 0 <= values[2]["val/accuracy"] <= 1


def test_a_teacher_and_a_student(tmp_path):
    given = names(tmp_path)
    teacher = copy.deepcopy(given["model"]).requires_grad_(False)
    values = run("Teacher and student", {**given, "student": given["model"], "teacher": teacher})
    assert values[2]["ema/momentum_current"] == 0.99
    assert values[2]["collapse/num_features"] == CLASSES


def uneven(log_dir, title):
    rank = torch.distributed.get_rank()
    own = (
        batches(3 - rank, 4 - rank, seed=rank) if title.startswith("DDP") else batches(3, 4 - rank, seed=rank)
    )
    given = names(log_dir, own)
    exec(recipes()[title], given)


@pytest.mark.parametrize("title", ["DDP with uneven data", "FSDP2"])
def test_on_two_ranks(gloo, tmp_path, title):
    gloo(2).run(uneven, str(tmp_path), title)
    values = written(tmp_path)
    assert set(values) == {0, 1, 2}
    totals = [at["performance/total_samples"] for at in values.values()]
    assert totals == ([7, 14, 18] if title.startswith("DDP") else [7, 14, 21])
    assert all(at["gradients/global_norm"] > 0 for step, at in values.items() if step < 2)


def test_accelerate(tmp_path):
    try:
        values = run("Accelerate", names(tmp_path, torch.utils.data.DataLoader(_Rows(), batch_size=2)))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert [at["performance/total_samples"] for at in values.values()] == [4, 8]
    assert all("gradient/global_norm_before_clip" in at for at in values.values())


class _Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((DIM,), float(index)), index % CLASSES


@pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers 5 takes Python 3.11 or newer")
def test_the_hugging_face_trainer(tmp_path):
    from tests.integrations.huggingface import tiny

    given = {"model": tiny.model(), "arguments": tiny.arguments(tmp_path), "data": tiny.sentences()}
    values = run("Hugging Face Trainer", {**names(tmp_path), **given, "collate": tiny.collate})
    assert set(values) == {0, 1, 2, 3}
    assert {"loss/total", "collapse/effective_rank"} <= set(values[3])
    code = recipes()["Hugging Face Trainer"]
    assert code.count("MetricsCallback") + code.count("[metrics]") == 3  # an import, two lines


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore::UserWarning")
def test_lightning(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [
        (torch.randn(5, DIM, generator=generator), torch.randperm(5, generator=generator) < 2)
        for _ in range(6)
    ]
    context, predictor = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
    given = {
        "context_encoder": context,
        "predictor": predictor,
        "target_encoder": copy.deepcopy(context).requires_grad_(False),
        "options": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
        },
    }
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    values = run("Lightning", {**names(tmp_path, loader), **given})
    tags = {"loss/total", "masking/mask_ratio", "ema/momentum_current", "collapse/effective_rank"}
    assert tags <= set(values[2])
    logged = read_jsonl(tmp_path / "metrics/jepa_logged.jsonl")
    assert len([line for line in logged if "train_error" in line]) == 3
