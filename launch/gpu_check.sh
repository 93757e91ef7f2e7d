#!/usr/bin/env bash
# Check the package on this machine's GPU: bash launch/gpu_check.sh [--minutes 6] [--cpu] [--out FOLDER]
#
# Needs a Python that has torch with CUDA, and pytest; installs nothing and fetches nothing. Prints one table and
# writes gpu_check.json. With --cpu it rehearses every line on the host.
# Reads   PYTHON  the interpreter (default: the active environment's, or python3).
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
if ! "$python" -c 'import torch' 2>/dev/null; then
    printf "gpu_check: error: '%s' has no torch; set PYTHON to an interpreter that has it\n" "$python" >&2
    exit 2
fi
export PYTHONPATH="$root:$root/launch${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m gpu_check "$@"
