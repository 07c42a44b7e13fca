#!/bin/sh
# Installs the system packages that the tests need beside Python: as root, or with sudo that asks for no password.
# Nothing that is installed here is started. What is missing in the end is named; the tests that need it are then
# skipped by name. A second call does nothing.
set -eu

packages="prometheus redis-server chromium fonts-dejavu-core \
slurmctld slurmd slurm-client slurmrestd slurmdbd slurm-wlm-jwt-plugin munge mariadb-server lua-socket curl"

missing() {
    for package in $packages; do
        case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
            installed) ;;
            *) printf '%s ' "$package" ;;
        esac
    done
}

give_up() {
    echo "!!! NOT INSTALLED: $(missing)" >&2
    echo "!!! $1. The tests that need them are skipped, by name, at the end of the test run." >&2
    exit 0
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "!!! NOT INSTALLED: no apt here, so nothing of: $packages" >&2
    echo "!!! Tests of what you did not install by other means are skipped, by name, at the end of the test run." >&2
    exit 0
fi
[ -n "$(missing)" ] || exit 0
if [ "$(id -u)" -eq 0 ]; then
    root=
elif sudo -n true 2>/dev/null; then
    root=sudo
else
    give_up "This needs root, or sudo without a password"
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    # Debian starts a service as soon as it is installed, unless this says no.
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
    trap '$root rm -f "$policy"' EXIT
fi

install() {
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

echo "Installing for the tests: $(missing)"
$root apt-get update -qq || true
# shellcheck disable=SC2046  # package names have no spaces
if ! install $(missing); then
    echo "Not all at once; one by one"
    for package in $(missing); do
        install "$package" || true
    done
fi
[ -z "$(missing)" ] || give_up "apt-get could not install them"
