"""The dual-head job under torchrun: the same numbers on 1, 2 and 4 ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hjepa_dist_metrics.sinks import read_jsonl
from tests.reference.dual_head_tags import SCALARS

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = [
    *("--config", "configs/dual_head.yaml", "--model.width", "8", "--model.hidden", "32"),
    *("--model.semantic.warmup_epochs", "1", "--data.frames_per_video", "10", "--data.frame_size", "[16,32]"),
    # 30 patches a step: shares of 8, 8, 7 and 7 on four ranks
    *("--data.batch_size", "30", "--training.epochs", "2", "--training.probe_every_epochs", "1"),
    *("--logging.log_frequency", "1"),
]


def launch(ranks, log_dir):
    """Run the training command, under torchrun where there are several ranks; return its lines by step."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    launcher = [] if ranks == 1 else [*torchrun, "--nproc-per-node", str(ranks)]
    name = f"ranks{ranks}"
    command = [sys.executable, *launcher, "launch/train.py", *ARGUMENTS, "--logging.log_dir", str(log_dir)]
    done = subprocess.run(
        [*command, "--logging.experiment_name", name],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    merged = {}
    for line in read_jsonl(log_dir / "metrics" / f"{name}.jsonl"):
        merged.setdefault(line["step"], {}).update(line)
    return merged


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_write_what_one_process_writes(alone, tmp_path, ranks):
    together = launch(ranks, tmp_path)
    assert sorted(together) == sorted(alone) == list(range(8))
    assert set(SCALARS) <= {tag for line in together.values() for tag in line}
    compared = 0
    for step, line in alone.items():
        for tag in set(SCALARS) & set(line):
            # float32 sums in another order, grown over 8 steps of Adam
            assert together[step][tag] == pytest.approx(line[tag], rel=2e-3, abs=2e-4), (step, tag)
            compared += 1
    assert compared > 2 * len(SCALARS)
    for tag in (tag for tag in SCALARS if tag.startswith("Eval/")):
        # before the first step the models are the same: so are all frames of all ranks
        assert together[0][tag] == pytest.approx(alone[0][tag], rel=1e-5, abs=1e-6), tag
    assert [together[0][f"Eval/Info/num_val_{what}"] for what in ("frames", "patches")] == [4, 32]
