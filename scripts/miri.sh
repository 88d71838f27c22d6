#!/bin/sh
# Runs the tests of the pure crates under miri, which detects undefined behaviour. These crates contain no unsafe code;
# their dependencies do.
#
# usage: scripts/miri.sh [CRATE…]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

[ $# != 0 ] || set -- colibri-jail-core colibri-glasspane colibri-proto

command -v rustup >/dev/null || die "rustup is missing; install it from https://rustup.rs for a nightly toolchain with miri"
cargo +nightly miri --version >/dev/null 2>&1 ||
    die "miri is missing; run: rustup toolchain install nightly --component miri,rust-src"
[ -d "$(rustc +nightly --print sysroot)/lib/rustlib/src" ] ||
    die "the sources of the standard library are missing; run: rustup component add --toolchain nightly rust-src"

# Isolation is off because tests read snapshots and proptest reads the clock. INSTA_WORKSPACE_ROOT: insta would run cargo to
# find it, and miri cannot start processes.
export MIRIFLAGS="-Zmiri-disable-isolation" INSTA_WORKSPACE_ROOT="$PWD" INSTA_UPDATE=no
# Few cases per property: miri is slow.
export PROPTEST_CASES="${PROPTEST_CASES:-4}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
for crate do
    say "$crate under miri"
    # Only the codec of the protocol: tests of its types mostly run serde and schemars, for many minutes.
    case $crate in
        colibri-proto) set -- --lib codec:: ;;
        *) set -- --lib --tests ;;
    esac
    cargo +nightly miri test --locked --no-fail-fast -p "$crate" "$@"
done
