#!/bin/sh
# Runs the tests of the pure crates under miri, which sees undefined behaviour that a test run does not: in
# the crates that they are built on, too, since these here are without unsafe code.
#
# usage: scripts/miri.sh [CRATE…]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

[ $# != 0 ] || set -- colibri-jail-core colibri-glasspane colibri-proto

command -v rustup >/dev/null || die "miri comes with a nightly toolchain of rustup: see https://rustup.rs"
cargo +nightly miri --version >/dev/null 2>&1 ||
    die "there is no miri; run: rustup toolchain install nightly --component miri,rust-src"
[ -d "$(rustc +nightly --print sysroot)/lib/rustlib/src" ] ||
    die "miri needs the sources of the standard library; run: rustup component add --toolchain nightly rust-src"

# Tests read their snapshots, and proptest the clock; insta would ask cargo where they are, and miri starts no processes.
export MIRIFLAGS="-Zmiri-disable-isolation" INSTA_WORKSPACE_ROOT="$PWD" INSTA_UPDATE=no
# An interpreter is slow: so few cases of each property.
export PROPTEST_CASES="${PROPTEST_CASES:-4}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
for crate do
    say "$crate under miri"
    # Of the protocol its codec: the tests of its types are mostly serde's and schemars' code, and take many minutes.
    case $crate in
        colibri-proto) set -- --lib codec:: ;;
        *) set -- --lib --tests ;;
    esac
    cargo +nightly miri test --locked --no-fail-fast -p "$crate" "$@"
done
