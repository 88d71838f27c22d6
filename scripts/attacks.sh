#!/bin/sh
# Attacks sandboxes by the attempts in tests/attacks, and prints them as a table. COLIBRI_ATTACKS selects lines by a part of them.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
install_attack_tools
say "building"
cargo build --quiet --locked --workspace --bins
cargo test --quiet --locked -p colibri-tests --test attacks --no-run
say "attacking"
as_root env "PATH=$PATH" "HOME=$HOME" "CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}" "RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}" \
    COLIBRI_ATTACKS_TABLE=1 "COLIBRI_ATTACKS=${COLIBRI_ATTACKS:-}" RUST_BACKTRACE=0 \
    cargo test --quiet --locked -p colibri-tests --test attacks -- --nocapture
