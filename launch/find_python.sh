#!/usr/bin/env bash
# Prints a Python >= 3.12: from PATH, then from pyenv's versions. A shim that refuses to run is passed over.
set -u
for python in python3.12 python3.13 python3.14 python3 python \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[3-9]*/bin/python; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
        "$python" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done
echo "d2l needs Python 3.12 or newer, and none is on PATH or among pyenv's versions: install one, for example with" \
    "\`pyenv install 3.12\`." >&2
exit 1
