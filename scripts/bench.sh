#!/bin/sh
# Measures Colibri side by side with what one would use instead: scripts/bench.sh [--smoke] [all|spawn|throughput|…]
# [options of it]. --smoke: a little of everything with unoptimised programs, to see that it runs; all peers must.
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
# Elsewhere what is missing is said in the tables.
complete=
if command -v apt-get >/dev/null; then
    install_packages crun conmon supervisor s6 strace
    # Docker's own packages have one, and are removed where Debian's is installed.
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

# crun refuses version 2 of cgroups beside version 1 where both have controllers. Version 2 is hidden from all that is
# measured, in a mount namespace of its own.
unified=/sys/fs/cgroup/unified
if [ "$(id -u)" = 0 ] && [ -n "$(cat "$unified/cgroup.controllers" 2>/dev/null)" ]; then
    # shellcheck disable=SC2016 # for the inner shell
    exec unshare --mount sh -c 'umount "$0" && exec "$@"' "$unified" "$@"
fi
exec "$@"
