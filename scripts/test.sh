#!/bin/sh
# Everything that CI runs: format, lints, tests, doctests, the FreeBSD lane, and the demo.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
# perl, passwd, strace and util-linux are what the setuid helper is attacked with.
install_packages util-linux bash perl passwd strace
cargo nextest --version >/dev/null 2>&1 || {
    say "installing cargo-nextest (once; some minutes)"
    cargo install --quiet --locked cargo-nextest
}

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
say "tests"
if [ "$(id -u)" = 0 ]; then
    cargo nextest run --locked --workspace
else
    cargo nextest run --locked --workspace -E 'not binary(/^helper/)'
    say "tests of the setuid helper, as root"
    as_root env "PATH=$PATH" "HOME=$HOME" "CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}" "RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}" \
        cargo nextest run --locked -p colibri-tests -E 'binary(/^helper/)'
fi
say "doctests"
cargo test --quiet --locked --workspace --doc
say "demo"
scripts/demo.sh
if command -v apt-get >/dev/null; then
    say "FreeBSD"
    scripts/freebsd.sh
else
    say "FreeBSD: not checked, it takes Debian's Rust packages"
fi
say "all passed"
