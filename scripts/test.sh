#!/bin/sh
# Everything that CI runs: format, lints, tests, doctests, faults, fuzzing, the demo, and
# the FreeBSD lane.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
# faketime: a test lets the clock jump. g++: libFuzzer is C++.
install_packages util-linux bash libfaketime g++
cargo nextest --version >/dev/null 2>&1 || {
    say "installing cargo-nextest (once; some minutes)"
    cargo install --quiet --locked cargo-nextest
}

say "format"
cargo fmt --all --check
cargo fmt --check --manifest-path fuzz/Cargo.toml
say "lints"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
say "tests"
cargo nextest run --locked --workspace
say "doctests"
cargo test --quiet --locked --workspace --doc
say "torture"
scripts/torture.sh --rounds 200
scripts/fuzz.sh 20
say "demo"
scripts/demo.sh
if command -v apt-get >/dev/null; then
    say "FreeBSD"
    scripts/freebsd.sh
else
    say "FreeBSD: not checked, it takes Debian's Rust packages"
fi
say "all passed"
