#!/bin/sh
# What must be on the machine before anything can be installed. Each missing thing is one line on stderr.
set -u
PYTHON=${PYTHON:-python3}
missing=0

say() {
    echo "$1" >&2
    missing=1
}

if ! command -v "$PYTHON" >/dev/null 2>&1; then
    say "$PYTHON is missing (Python 3.11 or newer): sudo apt install python3 python3-venv"
elif ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "$PYTHON is $("$PYTHON" -V 2>&1), 3.11 or newer is needed: sudo apt install python3.11 python3.11-venv, then PYTHON=python3.11 make ..."
elif ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    say "$PYTHON cannot make virtual environments: sudo apt install python3-venv"
fi

if ! command -v java >/dev/null 2>&1; then
    say "java is missing (Java 17 or newer): sudo apt install openjdk-17-jre-headless (or openjdk-21-jre-headless)"
else
    # The first line reads: openjdk version "17.0.15" 2025-04-15 (Java 8 says "1.8.0").
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    if [ "${version:-0}" -lt 17 ]; then
        say "java is version ${version:-unknown}, 17 or newer is needed: sudo apt install openjdk-17-jre-headless (or openjdk-21-jre-headless)"
    fi
fi

if ! command -v mvn >/dev/null 2>&1; then
    say "mvn is missing (Maven 3.6.3 or newer): sudo apt install maven"
fi

if ! command -v npm >/dev/null 2>&1; then
    say "npm is missing (for the inspector's browser libraries): sudo apt install npm"
fi

# Only the tests need a browser: check-prerequisites.sh test
if [ "${1:-}" = test ] && ! command -v chromium >/dev/null 2>&1; then
    say "chromium is missing (for the browser tests): sudo apt install chromium"
fi

# The server of the Python package has no TLS.
if [ "${1:-}" = test ] && ! command -v valkey-server >/dev/null 2>&1 && ! command -v redis-server >/dev/null 2>&1; then
    say "redis-server is missing (for the tests of TLS; 7 or newer, or valkey-server): sudo apt install redis-server"
fi
if [ "${1:-}" = test ] && ! command -v promtool >/dev/null 2>&1; then
    say "promtool is missing (for the tests of the alerts): sudo apt install prometheus"
fi

exit "$missing"
