"""A rank dies once; the launcher starts the job again, and it ends as if nothing had happened."""

from pathlib import Path

from tests.helpers.jobs import ROOT, TORCHRUN, TRAIN, arguments, run

# launch/train.py, but for the process that is to die: at the second step after a checkpoint, once.
MORTAL = f"""
import os, runpy, signal, sys
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from hjepa_dist_metrics.reference.trainer import Trainer

step = Trainer._step

def mortal(self, monitor, *rest):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and monitor.step_number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, monitor, *rest)

Trainer._step = mortal
runpy.run_path({TRAIN!r}, run_name="__main__")
"""
# Three steps an epoch and a checkpoint after each: the rank dies in the second epoch.
SETTINGS = {
    "data.batch_size": 400,
    "training.epochs": 3,
    "training.max_steps": 9,
    "training.checkpoint_every_epochs": 1,
    "training.resume": "true",
}
# What compares the teacher's weights with those of the step before, of which a checkpoint has no copy.
COMPARISONS = {"ema/update_magnitude", "ema/target_weight_stability", "ema/weight_move"}


def test_a_killed_rank_is_replaced_and_the_run_goes_on_from_its_checkpoint(tmp_path: Path):
    script = tmp_path / "mortal.py"
    script.write_text(MORTAL)
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", "2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def settings(log_dir: Path) -> list[str]:
        places = {"logging.log_dir": log_dir, "training.checkpoint_dir": log_dir / "checkpoints"}
        return arguments({**SETTINGS, **places})

    uninterrupted = run([*launcher, TRAIN, *settings(whole)], whole)
    assert uninterrupted.returncode == 0, uninterrupted.stderr[-3000:]
    # Without this, torchrun gives the new processes the dead ones' addresses: pytorch/pytorch#135712.
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    mortal = [*launcher, "--max-restarts", "1", str(script), *settings(broken)]
    restarted = run(mortal, broken, **fresh)
    assert restarted.returncode == 0, restarted.stderr[-3000:]
    assert "exitcode: -9" in restarted.stderr
    assert restarted.stderr.count("training on 2 ranks") == 2
    assert "from step 3" in restarted.stderr
    assert sorted(restarted.untimed) == list(range(9))
    missing = {
        (step, tag)
        for step, values in uninterrupted.untimed.items()
        for tag in values.keys() - restarted.untimed[step].keys()
    }
    assert missing <= {(3, tag) for tag in COMPARISONS}
    expected = {
        step: {tag: value for tag, value in values.items() if (step, tag) not in missing}
        for step, values in uninterrupted.untimed.items()
    }
    assert restarted.untimed == expected
