"""Train a reference workload: alone, or on every process that a launcher starts.

python launch/train.py --config configs/default.yaml
torchrun --nproc-per-node 2 launch/train.py --config configs/default.yaml
accelerate launch --config_file configs/accelerate/cpu.yaml launch/train.py --config configs/default.yaml
"""

import sys

from hjepa_dist_metrics.reference.main import main

if __name__ == "__main__":
    sys.exit(main())
