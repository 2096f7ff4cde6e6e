#!/bin/sh
# Print the path of a Python 3.12 or 3.13 that can make virtual environments, or the word "uv"
# if only uv can get one. With arguments: try these only.
#
# Every candidate is run, because being on PATH proves nothing: a pyenv shim exists for each
# version installed and fails for those not selected, and Debian ships Python without venv.
set -u

usable() {
    [ -x "$1" ] && "$1" -c '
import sys, venv, ensurepip
assert (3, 12) <= sys.version_info[:2] < (3, 14)
' </dev/null >/dev/null 2>&1
}

try() {
    if usable "$1"; then
        printf '%s\n' "$1"
        exit 0
    fi
}

if [ $# -gt 0 ]; then
    for candidate in "$@"; do try "$candidate"; done
    exit 1
fi

if [ -n "${PYTHON:-}" ]; then
    try "$(command -v "$PYTHON" || printf '%s' "$PYTHON")"
    echo "PYTHON=$PYTHON is no Python 3.12 or 3.13 with venv; looking for another." >&2
fi

for name in python3.12 python3.13 python3; do
    # All of PATH, not just the first hit: behind a shim that fails there may be the real one.
    rest=${PATH:-}:
    while [ -n "$rest" ]; do
        folder=${rest%%:*}
        rest=${rest#*:}
        try "${folder:-.}/$name"
    done
done

pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}
for candidate in "$pyenv"/versions/3.12*/bin/python "$pyenv"/versions/3.13*/bin/python; do
    try "$candidate"
done

if uv --version </dev/null >/dev/null 2>&1; then
    echo uv
    exit 0
fi

cat >&2 <<'MESSAGE'
No Python 3.12 or 3.13 with the venv module was found: not on PATH, not among pyenv's versions, and there is no uv to fetch one.
Install one (apt install python3.12-venv, brew install python@3.12, pyenv install 3.12, or uv) or name one: make setup PYTHON=/path/to/python3.12
MESSAGE
exit 1
