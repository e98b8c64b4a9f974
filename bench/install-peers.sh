#!/bin/sh
# Installs the peers: Mosquitto and ejabberd from Debian, without starting them, and nats-server from source into
# .local/bench/bin. Also the allocator that Debian's Redis uses, for the stack's own Redis.
set -eu
NATS_VERSION=v2.15.2

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
# In this runlevel, Debian's packages do not start their services.
$as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mosquitto ejabberd libjemalloc2
mkdir -p .local/bench/bin
GOBIN="$(pwd)/.local/bench/bin" go install "github.com/nats-io/nats-server/v2@$NATS_VERSION"
