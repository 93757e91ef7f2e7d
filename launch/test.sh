#!/usr/bin/env bash
# Lint, check types and run the whole test suite: bash launch/test.sh [pytest arguments]
# Every check runs even when an earlier one fails; the exit code is non-zero if any did.
#
# bash launch/test.sh --oldest [pytest arguments] runs the tests that need no further library on the oldest torch
# that pyproject.toml claims, in an environment that is thrown away. On Linux it takes 6 GB of disk meanwhile.
# Reads   PYTHON  its interpreter (default python3.10, which is the oldest claimed).
set -euo pipefail

test_oldest() {
    local root python torch
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    python="${PYTHON:-python3.10}"
    if ! command -v "$python" >/dev/null; then
        printf "[test] error: '%s' was not found; set PYTHON to the oldest Python to test\n" "$python" >&2
        exit 1
    fi
    torch="$(sed -n 's/^dependencies = \["torch>=\([0-9.]*\)".*/\1/p' "$root/pyproject.toml")"
    OLDEST="$(mktemp -d)"
    trap 'rm -rf "$OLDEST"' EXIT
    "$python" -m venv "$OLDEST/venv"
    # The tested versions, but for torch and what it pins itself.
    grep -vE '^(torch|sympy)==' "$root/launch/constraints.txt" >"$OLDEST/constraints.txt"
    printf '[test] installing torch %s for %s\n' "$torch" "$python" >&2
    "$OLDEST/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint "$OLDEST/constraints.txt" "torch==$torch" "$root[train,figures,parquet,system]" \
        hypothesis pandas pytest pytest-timeout pytest-xdist
    cd "$root"
    PYTHONPATH="$root" OMP_NUM_THREADS=1 "$OLDEST/venv/bin/python" -m pytest -n auto -p no:cacheprovider \
        tests/{logging,metrics,monitor,parallel,readers,settings,sinks,states,sync} \
        --ignore tests/metrics/test_peers.py "$@"
}

if [[ "${1:-}" == --oldest ]]; then
    shift
    test_oldest "$@"
    exit
fi

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
