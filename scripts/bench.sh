#!/bin/sh
# Benchmarks Colibri against its alternatives.
#
# usage: scripts/bench.sh [--smoke] [all|spawn|throughput|… [OPTIONS]]
# --smoke runs a short version with unoptimized programs and fails if an alternative is missing.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

smoke=
if [ "${1:-}" = --smoke ]; then
    smoke=--smoke
    shift
fi
[ $# -gt 0 ] || set -- all $smoke

setup
# On other systems the tables list missing alternatives.
complete=
if command -v apt-get >/dev/null; then
    install_packages crun conmon supervisor s6 strace
    # Docker's packages contain runc, and conflict with Debian's.
    [ -x /usr/bin/runc ] || install_packages runc
    complete=${smoke:+--complete}
fi
# pm2 --version would leave a daemon behind.
install_from_npm pm2 benches/peers node

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
if [ -n "$smoke" ]; then
    profile=debug
    say "building"
    cargo build --quiet --locked --workspace --bins
else
    profile=release
    say "building (release; some minutes the first time)"
    cargo build --quiet --locked --release --workspace --bins
fi
set -- "$TARGET/$profile/colibri-bench" --programs "$TARGET/$profile" --results "$TARGET/bench${smoke:+/smoke}" \
    --tools "$TARGET/tools" ${complete:+"$complete"} "$@"

# crun refuses cgroup versions 1 and 2 side by side if both have controllers. A separate mount namespace hides version 2 from
# all measured programs.
unified=/sys/fs/cgroup/unified
if [ "$(id -u)" = 0 ] && [ -n "$(cat "$unified/cgroup.controllers" 2>/dev/null)" ]; then
    # shellcheck disable=SC2016 # for the inner shell
    exec unshare --mount sh -c 'umount "$0" && exec "$@"' "$unified" "$@"
fi
exec "$@"
