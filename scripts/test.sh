#!/bin/sh
# Everything that CI runs: format, lints, tests, doctests, the FreeBSD lane, and the demo.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
install_packages util-linux bash
cargo nextest --version >/dev/null 2>&1 || {
    say "installing cargo-nextest (once; some minutes)"
    cargo install --quiet --locked cargo-nextest
}

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
say "tests"
cargo nextest run --locked --workspace
say "doctests"
cargo test --quiet --locked --workspace --doc
say "torture"
ROUNDS=200 SECONDS= scripts/torture.sh
say "demo"
scripts/demo.sh
if command -v apt-get >/dev/null; then
    say "FreeBSD"
    scripts/freebsd.sh
else
    say "FreeBSD: not checked, it takes Debian's Rust packages"
fi
say "all passed"
