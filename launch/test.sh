#!/usr/bin/env bash
# Lint, check types and run the whole test suite: bash launch/test.sh [pytest arguments]
# Every check runs even when an earlier one fails; the exit code is non-zero if any did.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" train,figures,wandb,mlflow,trackio,parquet,system,huggingface,lightning,dev

cd "$HJEPA_ROOT"
unset PYTHONDONTWRITEBYTECODE  # else every process of every launched job compiles the package anew
status=0

check() {
    printf '[test] %s\n' "$*" >&2
    "$HJEPA_PYTHON" -m "$@" && return
    printf '[test] %s FAILED\n' "$*" >&2
    status=1
}

check ruff check
check ruff format --check
check mypy
# Last and without a line of our own after it: the output ends with pytest's summary.
"$HJEPA_PYTHON" -m pytest -n auto "$@" || status=1
exit "$status"
