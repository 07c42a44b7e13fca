#!/bin/sh
# Installs what shows dashboard tables with Grafana's own library in Node.js, for the tests that do. Without Node.js
# 20 or newer those tests are skipped, by name. A second call does nothing.
set -eu
cd "$(dirname "$0")/../tests/grafana"

say_why() {
    echo "!!! NOT INSTALLED: the packages of tests/grafana: $1" >&2
    echo "!!! The tests that need them are skipped, by name, at the end of the test run." >&2
    exit 0
}

command -v npm >/dev/null && command -v node >/dev/null || say_why "there is no Node.js here"
[ "$(node --version | tr -dc '0-9.' | cut -d. -f1)" -ge 20 ] || say_why "they need Node.js 20, here is $(node --version)"
stamp=node_modules/.installed
if [ ! -e "$stamp" ] || [ package-lock.json -nt "$stamp" ]; then
    echo "Installing for the tests: the packages of tests/grafana"
    npm ci --no-audit --no-fund --loglevel=error || say_why "npm ci failed"
    touch "$stamp"
fi
