#!/bin/sh
# Injects faults under the real programs and prints what was lost, which must be nothing.
# ROUNDS=N kills N daemons (200), SECONDS=N goes on for so long; SEED=N repeats the choices of a run.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
cargo build --quiet --locked --workspace --bins
set -- --rounds "${ROUNDS:-200}"
[ -z "${SECONDS:-}" ] || set -- --seconds "$SECONDS"
[ -z "${SEED:-}" ] || set -- "$@" --seed "$SEED"
exec "${CARGO_TARGET_DIR:-target}/debug/torture" "$@"
