#!/usr/bin/env bash
# Show the newest logs in TensorBoard: bash launch/tensorboard.sh [LOGDIR] [--port 6007] [--host 0.0.0.0]
# Without LOGDIR it looks below results/, logs/, runs/ and the current directory. It says the URL, and takes
# the first free port from 6006 on. --print says the command and starts nothing.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" train,figures

exec "$HJEPA_PYTHON" -m hjepa_dist_metrics.cli tensorboard "$@"
