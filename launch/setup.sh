#!/usr/bin/env bash
# Prepare the environment: bash launch/setup.sh [EXTRAS], or `source launch/setup.sh EXTRAS` from a launcher.
#
# Uses the active virtual environment, or makes .venv in the repository. Installs the tested versions of
# launch/constraints.txt and this package in editable mode with the named extras (default train,figures).
# A stamp in the environment makes the second call quick; it holds what the installation depended on.
#
# Reads   PYTHON  the interpreter that makes .venv (default python3); PIP_* variables apply as usual, for
#                 example PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for the small CPU build.
# Leaves  HJEPA_ROOT, HJEPA_PYTHON (the environment's interpreter) and OMP_NUM_THREADS to a sourcing script.
set -euo pipefail

HJEPA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

setup_say() { printf '[setup] %s\n' "$*" >&2; }

setup_die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# A path with a slash is taken from where the caller stands, a bare name from PATH.
setup_require_python() {
    local found version
    found="$(command -v "$1")" || setup_die "Python 3.10 or newer is needed, but '$1' was not found; set PYTHON to one"
    version="$("$found" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" || version=""
    [[ "$version" =~ ([0-9]+)\.([0-9]+)(\.[0-9]+)? ]] || setup_die "'$found' does not run; set PYTHON to Python 3.10 or newer"
    (( BASH_REMATCH[1] * 100 + BASH_REMATCH[2] >= 310 )) ||
        setup_die "Python 3.10 or newer is needed, got ${BASH_REMATCH[0]} from '$found'; set PYTHON to a newer one"
}

setup_run() { # what log command...: quiet unless it fails
    local what="$1" log="$2"
    shift 2
    "$@" >"$log" 2>&1 </dev/null && return
    printf '[setup] error: %s failed: %s\n' "$what" "$*" >&2
    tail -n 25 "$log" >&2
    rm -f "$log"
    exit 1
}

setup_make_venv() {
    local python="$1" log="$2"
    setup_say "making $HJEPA_ROOT/.venv with $python"
    if ! "$python" -m venv --clear "$HJEPA_ROOT/.venv" >"$log" 2>&1; then
        rm -rf "$HJEPA_ROOT/.venv"
        if grep -q ensurepip "$log"; then
            rm -f "$log"
            setup_die "'$python' cannot make virtual environments (ensurepip is missing); on Debian or Ubuntu: apt install python3-venv"
        fi
        tail -n 25 "$log" >&2
        rm -f "$log"
        setup_die "'$python -m venv' failed, see above"
    fi
}

setup_choose_python() { # sets HJEPA_PYTHON; an environment that is already there wins over PYTHON
    local log="$1"
    if [[ -n "${PYTHON:-}" ]]; then setup_require_python "$PYTHON"; fi
    if [[ -n "${VIRTUAL_ENV:-}" ]]; then
        HJEPA_PYTHON="$VIRTUAL_ENV/bin/python"
        [[ -x "$HJEPA_PYTHON" ]] || setup_die "VIRTUAL_ENV is $VIRTUAL_ENV, which holds no bin/python; unset it or activate another"
    else
        HJEPA_PYTHON="$HJEPA_ROOT/.venv/bin/python"
        if ! "$HJEPA_PYTHON" -c '' 2>/dev/null; then
            setup_require_python "${PYTHON:-python3}"
            setup_make_venv "${PYTHON:-python3}" "$log"
        fi
    fi
    setup_require_python "$HJEPA_PYTHON"
}

setup_key() { # what an installation depends on; the path, because the package is installed in place
    "$HJEPA_PYTHON" - "$HJEPA_ROOT" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [str(root), sys.version, *((root / p).read_text() for p in ("pyproject.toml", "launch/constraints.txt"))]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

setup_install() {
    local extras="$1" log="$2" torch
    local pip=("$HJEPA_PYTHON" -m pip install --quiet --disable-pip-version-check --no-input
               --constraint "$HJEPA_ROOT/launch/constraints.txt")
    torch="$(grep -E '^torch==' "$HJEPA_ROOT/launch/constraints.txt")"
    setup_run "looking for pip" "$log" "$HJEPA_PYTHON" -m pip --version
    setup_say "installing $torch (the large one)"
    setup_run "installing $torch" "$log" "${pip[@]}" "$torch"
    setup_say "installing the build backend"
    setup_run "installing the build backend" "$log" "${pip[@]}" hatchling editables
    setup_say "installing hjepa-dist-metrics[$extras]"
    setup_run "installing the package" "$log" "${pip[@]}" --no-build-isolation --editable "$HJEPA_ROOT[$extras]"
}

setup_main() {
    local extras="${1:-train,figures}" log stamp key kept=""
    # Two launchers that start together must not install into one environment at the same time.
    exec 9<"$HJEPA_ROOT"
    if command -v flock >/dev/null; then flock 9; fi
    log="$(mktemp)"
    setup_choose_python "$log"
    stamp="$(dirname "$(dirname "$HJEPA_PYTHON")")/.hjepa-setup"
    key="$(setup_key)"
    if ! grep -qsxF "$key $extras" "$stamp"; then
        kept="$(grep -sF "$key " "$stamp" || true)"
        rm -f "$stamp"
        setup_install "$extras" "$log"
        printf '%s\n' ${kept:+"$kept"} "$key $extras" >"$stamp"
        setup_say "ready: $HJEPA_PYTHON"
    fi
    rm -f "$log"
    exec 9<&-
}

setup_main "$@"
export HJEPA_ROOT HJEPA_PYTHON
# Every rank would start one thread a core otherwise, and ranks share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
