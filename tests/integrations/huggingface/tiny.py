"""A tiny language model with random weights, sentences of uneven length, and what training on them gives.

As a script: `torchrun ... tiny.py DIRECTORY` trains it under DDP and under FSDP2, as a user would.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.helpers.spectrum import effective_rank

VOCABULARY, BATCH, ACCUMULATION, LEARNING_RATE, MAX_NORM = 31, 3, 2, 0.5, 0.5
SENTENCES = 23  # eight batches, the last of two
ROOT = Path(__file__).resolve().parents[3]
LAYER = "model.layers.1"


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads, **ids))


def sentences(count: int = SENTENCES, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    rows = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]
    return [{"input_ids": row, "labels": row} for row in rows]


def collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    def padded(name: str, fill: int) -> Tensor:
        rows = [item[name] for item in items]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    masks = [{"mask": torch.ones_like(item["input_ids"])} for item in items]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": nn.utils.rnn.pad_sequence([mask["mask"] for mask in masks], batch_first=True),
    }


def arguments(directory: Path | str, **changed: Any) -> TrainingArguments:
    given = {
        "output_dir": str(directory),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": MAX_NORM,
        "max_steps": 4,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "accelerator_config": {"even_batches": False},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**given, **changed})


def config(directory: Path | str, **changed: Any) -> dict[str, Any]:
    given = {"experiment_name": "run", "log_dir": str(directory), "cadence": {"representations": 1}}
    return {**given, **changed}


def direct(steps: int, ranks: int, start: nn.Module, data: list[dict[str, Tensor]]) -> dict[str, list[float]]:
    """Return loss, norms, learning rate and effective rank of each step, computed in one loop in float64."""
    reference = copy.deepcopy(start).double()
    batches = [data[i : i + BATCH] for i in range(0, len(data), BATCH)]
    seen: dict[str, list[float]] = {tag: [] for tag in ("loss", "before", "after", "lr", "rank")}
    each = ranks * ACCUMULATION
    for step in range(steps):
        first = step * each % len(batches)
        rows = [row["input_ids"] for batch in batches[first : first + each] for row in batch]
        losses, features = zip(*[_sentence(reference, row) for row in rows], strict=True)
        loss = torch.stack(losses).sum() / sum(len(row) - 1 for row in rows)
        reference.zero_grad()
        loss.backward()
        norm = float(torch.cat([p.grad.flatten() for p in reference.parameters()]).norm())
        rate = LEARNING_RATE * (1 - step / steps)
        scale = min(1.0, MAX_NORM / (norm + 1e-6))
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= rate * scale * parameter.grad
        found = (loss.item(), norm, norm * scale, rate, effective_rank(torch.cat(features).numpy()))
        for tag, value in zip(seen, found, strict=True):
            seen[tag].append(value)
    return seen


def _sentence(reference: nn.Module, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sentence's summed loss, and the watched layer's features."""
    kept: list[Any] = []
    hook = reference.get_submodule(LAYER).register_forward_hook(lambda m, i, o: kept.append(o))
    logits = reference(input_ids=row[None]).logits[0]
    hook.remove()
    features = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return nn.functional.cross_entropy(logits[:-1], row[1:], reduction="sum"), features.detach()[0]


def train(directory: Path, network: nn.Module) -> Trainer:
    from hjepa_dist_metrics.integrations.huggingface import MetricsCallback

    metrics = MetricsCallback(config(directory), watch_features=LAYER)
    trainer = Trainer(
        network, arguments(directory), train_dataset=sentences(), data_collator=collate, callbacks=[metrics]
    )
    trainer.train()
    return trainer


def main(directory: Path) -> None:
    import torch.distributed as dist
    from transformers.distributed import DistributedConfig

    replicated = train(directory / "ddp", model())
    assert replicated.accelerator.num_processes == 2
    if dist.get_rank() == 0:
        model().save_pretrained(directory / "weights")
    dist.barrier()
    layout = DistributedConfig(fsdp_size=2)
    network = LlamaForCausalLM.from_pretrained(directory / "weights", distributed_config=layout)
    sharded = train(directory / "fsdp2", network)
    kinds = {type(parameter).__name__ for parameter in sharded.model.parameters()}
    assert kinds == {"DTensor"}, kinds
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
