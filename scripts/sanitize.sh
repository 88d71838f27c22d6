#!/bin/sh
# Runs the tests of crates with unsafe code under AddressSanitizer, which detects invalid memory accesses and leaks, also in
# calls of the C library. The stable toolchain is enough: it contains the runtime, and RUSTC_BOOTSTRAP allows the flag.
#
# usage: scripts/sanitize.sh [CRATE…]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

[ $# != 0 ] || set -- colibri-jail-helper colibri-sys

command -v cc >/dev/null || install_packages gcc libc6-dev
host=$(rustc -vV | sed -n 's/^host: //p')
[ -e "$(rustc --print sysroot)/lib/rustlib/$host/lib/librustc-stable_rt.asan.a" ] ||
    die "the toolchain contains no AddressSanitizer for $host; install the stable toolchain from https://rustup.rs"

for crate do
    say "$crate under AddressSanitizer"
    # --target keeps the flag from build scripts and procedural macros.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" \
        cargo test --quiet --locked -p "$crate" --tests --target "$host" --target-dir target/sanitize
done
