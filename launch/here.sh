# shellcheck shell=bash
# Sourced by launchers that work on this machine, with their arguments: `d2l` is the command, and `python` that of .venv;
# with --dry-run they print what they would do.
# Before: USAGE names the arguments, MOST counts them. After: the arguments without --dry-run.
source launch/cpu_env.sh
name=$(basename "$0")
d2l() { echo "+ d2l $*" >&2; .venv/bin/python -m d2l.cli "$@"; }
python() { echo "+ python $*" >&2; .venv/bin/python "$@"; }
if [[ "${1:-}" == --dry-run ]]; then
    d2l() { echo "d2l ${*@Q}"; }
    python() { echo ".venv/bin/python ${*@Q}"; }
    shift
elif [[ ! -x .venv/bin/python ]]; then
    echo "$name: there is no .venv yet: run \`make test\` or \`make demo\` once, either sets it up." >&2
    exit 2
fi
if (($# > MOST)) || [[ "${1:-}" == -* ]]; then
    echo "usage: launch/$name [--dry-run] $USAGE" >&2
    exit 2
fi
