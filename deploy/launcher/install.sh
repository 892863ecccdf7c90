#!/bin/sh
# Makes or refreshes .venv with exactly the packages of requirements.txt (make runs this when one of
# its inputs changed; a warm start does not come here).
set -eu
cd "$(dirname "$0")/../.."

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    cat >&2 <<EOF
Evergreen needs Python 3.11 or newer, and none is in PATH (python3 is $(python3 -V 2>&1 || echo missing)).
Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv; Fedora: dnf install python3.11),
or name it: make PYTHON=/path/to/python3.11 run
EOF
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    cat >&2 <<EOF
$python cannot make virtual environments: its module venv or ensurepip is missing.
Install it (Debian, Ubuntu: apt install python3-venv), then run make again.
EOF
    exit 1
fi

# An environment made for another Python, or moved here from elsewhere, does not start: make it anew.
if [ -d .venv ] && ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "The environment .venv does not work any more; making it anew."
    rm -rf .venv
fi
echo "Installing into .venv: $(grep -c '==' requirements.txt) packages, pinned by hash ($("$python" -V); a minute or so, only when they change) ..."
[ -d .venv ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check --no-input "$@"; }
# The file names everything: resolving again would refuse a newer release of what a package asks for
# with an extra ("pydantic[email]"), which has no hash here.
pip install --no-compile --no-deps --require-hashes -r requirements.txt || {
    echo "pip could not install the packages (see above). Is the package index reachable?" >&2
    exit 1
}
pip install --no-deps --no-build-isolation -e .
pip check
# pip would compile on one processor; some files are for other versions of Python.
.venv/bin/python -m compileall -qq -j 0 -x '/(moto|tests)/' .venv/lib || true
touch .venv/.installed
