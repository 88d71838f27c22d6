#!/bin/sh
# Injects faults under the real programs and prints what was lost, which must be nothing.
#
# usage: scripts/torture.sh [--rounds N | --seconds N] [--seed N]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
cargo build --quiet --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/debug/torture" "$@"
