#!/bin/sh
# Injects faults into the real programs and counts losses. Exits with 1 if anything was lost.
#
# usage: scripts/torture.sh [--rounds N | --seconds N] [--seed N]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
cargo build --quiet --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/debug/torture" "$@"
