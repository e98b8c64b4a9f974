#!/bin/sh
# Installs missing packages with apt, as root or where sudo asks for no password; otherwise prints the command to run.
# "install-prerequisites.sh test" and "... faults" also look for what those tests need. PYTHON names the interpreter.
set -u
PYTHON=${PYTHON:-python3}
level=${1:-}

need() {
    packages="${packages:+$packages }$*"
}

problem() {
    problems="${problems:+$problems
}$1"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

look_for_python() {
    if ! has "$PYTHON"; then
        case $PYTHON in
            python3 | /usr/bin/python3) need python3 python3-venv ;;
            *) problem "PYTHON=$PYTHON does not exist: name a Python of 3.11 or newer" ;;
        esac
    elif ! "$PYTHON" -c '' >/dev/null 2>&1; then
        problem "PYTHON=$PYTHON does not run: $("$PYTHON" -V 2>&1 | head -n 1)"
    elif ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        problem "$PYTHON is $("$PYTHON" -V 2>&1), 3.11 or newer is needed: make PYTHON=python3.11 ..., or another"
    elif ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        case $(command -v "$PYTHON") in
            /usr/bin/python3 | /bin/python3) need python3-venv ;;
            /usr/bin/python3.* | /bin/python3.*) need "$(basename "$PYTHON")-venv" ;;
            *) problem "$PYTHON cannot make virtual environments (it lacks the module venv or ensurepip): name another PYTHON" ;;
        esac
    fi
}

look_for_java() {
    if ! has java; then
        need default-jre-headless
        return
    fi
    # The first line reads: openjdk version "17.0.15" 2025-04-15 (Java 8 says "1.8.0").
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    if [ "${version:-0}" -lt 17 ]; then
        problem "java is version ${version:-unknown}, 17 or newer is needed: put one first in PATH (sudo apt install default-jre-headless)"
    fi
}

look_for_chromium() {
    has chromium && return
    if grep -qs '^ID=ubuntu' "${OS_RELEASE:-/etc/os-release}"; then
        problem "chromium is missing, which Ubuntu has as a snap only: sudo snap install chromium"
    else
        need chromium
    fi
}

# Sets $packages, the Debian packages that are missing, and $problems, a line for each problem that no package solves.
look() {
    packages='' problems=''
    look_for_python
    look_for_java
    has mvn || need maven
    has npm || need npm
    if [ "$level" = test ] || [ "$level" = faults ]; then
        look_for_chromium
        # For TLS, which the server of the Python package is built without.
        has valkey-server || has redis-server || need redis-server
        has promtool || need prometheus
    fi
    # The upgrade takes the code of an older commit; clocks are set wrong by libfaketime.
    if [ "$level" = faults ]; then
        has git || need git
        has faketime || need faketime
    fi
    # The tests on a fresh machine and of the image need root; without it they are skipped.
    if [ "$level" = faults ] && [ "$(id -u)" = 0 ]; then
        has debootstrap || need debootstrap
        has buildah || need buildah
    fi
}

# Installs $packages; apt's output is shown only if it fails.
install() {
    log=$(mktemp) || return 1
    # Wait for another apt, such as the automatic update of a new machine.
    # In run level 1 the scripts of a package do not start its service.
    if { $as_root apt-get -o DPkg::Lock::Timeout=300 update -qq &&
        $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $packages; } >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    # systemd starts the services despite the run level, and again at each boot; the tests start their own.
    if [ -d /run/systemd/system ]; then
        for service in redis-server prometheus; do
            case " $packages " in *" $service "*) $as_root systemctl disable --now --quiet "$service" ;; esac
        done
    fi
}

look
if [ -n "$packages" ] && [ -z "$problems" ] && has apt-get; then
    if [ "$(id -u)" = 0 ]; then
        as_root=''
    elif sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    else
        as_root=none
    fi
    if [ "$as_root" != none ]; then
        echo "setup: installing with apt: $packages" >&2
        if ! install; then
            echo "setup: apt could not install $packages: see above" >&2
            exit 1
        fi
        look
    fi
fi
[ -z "$problems" ] || echo "$problems" >&2
[ -z "$packages" ] || echo "missing here: sudo apt install --no-install-recommends $packages" >&2
[ -z "$problems$packages" ]
