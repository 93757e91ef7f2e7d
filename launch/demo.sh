#!/usr/bin/env bash
# Train the reference H-JEPA on two CPU or GPU ranks: bash launch/demo.sh [--training.epochs 3 ...]
# Arguments are passed on to launch/train.py and win over the defaults below.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" train,figures

# --standalone takes a free port, so that two demos can run at the same time; the loopback address keeps
# the start independent of whether this machine's name resolves.
exec "$HJEPA_PYTHON" "$HJEPA_ROOT/launch/torchrun.py" --standalone --local-addr 127.0.0.1 --nproc-per-node 2 \
    "$HJEPA_ROOT/launch/train.py" --config "$HJEPA_ROOT/configs/default.yaml" \
    --logging.log_dir "$HJEPA_ROOT/results/logs" "$@"
